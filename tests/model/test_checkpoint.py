"""Checkpoints: the golden networks, every size from shapes, and everything that must be refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from support.golden import GoldenNetwork
from torch import Tensor

import trt_hspan
from trt_hspan import HSPAN, HspanConfig, HspanError, UsageError
from trt_hspan.model.checkpoint import source_sha256


def test_agrees_with_the_official_network(golden_network: GoldenNetwork) -> None:
    model = trt_hspan.load_model(golden_network.checkpoint, res_scale=golden_network.res_scale)
    with torch.no_grad():
        out = model(torch.from_numpy(golden_network.input))
    assert not model.training
    assert np.abs(out.numpy() - golden_network.output).max() <= 1e-5


@pytest.mark.parametrize(
    ("n_feats", "n_groups", "n_blocks", "scale", "reduction"),
    [(8, 1, 0, 2, 2), (9, 2, 1, 3, 2), (12, 1, 3, 4, 4), (7, 3, 1, 4, 3), (10, 1, 1, 8, 1), (24, 1, 1, 2, 5)],
)
def test_every_size_comes_back_from_the_shapes(
    tmp_path: Path, n_feats: int, n_groups: int, n_blocks: int, scale: int, reduction: int
) -> None:
    config = HspanConfig(
        n_feats=n_feats, n_groups=n_groups, n_blocks=n_blocks, scale=scale, reduction=reduction, res_scale=0.3
    )
    model = HSPAN(config).eval()
    trt_hspan.save_checkpoint(model, tmp_path / "net.pth")
    loaded = trt_hspan.load_model(tmp_path / "net.pth", res_scale=0.3)
    assert loaded.config.state_shapes() == config.state_shapes()
    assert (loaded.config.scale, loaded.config.n_blocks) == (scale, n_blocks)
    image = torch.rand(2, 3, 5, 6)
    with torch.no_grad():
        assert loaded(image).shape == (2, 3, 5 * scale, 6 * scale)
        torch.testing.assert_close(loaded(image), model(image))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_official_format_survives_a_round_trip(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    model = trt_hspan.load_model(_saved(tmp_path, state))
    trt_hspan.save_checkpoint(model, tmp_path / f"again{suffix}")
    again = trt_hspan.export_hspan_state(trt_hspan.load_model(tmp_path / f"again{suffix}"))
    assert list(again) == list(state)
    assert all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("name", "parameters", "keys"),
    [("hspan-x2", 32_288_698, 283), ("hspan-x3", 33_948_538, 283), ("hspan-x4", 33_616_570, 285)],
)
def test_presets_have_the_published_sizes(name: str, parameters: int, keys: int) -> None:
    state = trt_hspan.export_hspan_state(trt_hspan.load_model(name))
    assert len(state) == keys
    assert sum(tensor.numel() for tensor in state.values()) == parameters


def test_presets_are_the_same_every_time_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(1)
    first = trt_hspan.load_model("hspan-x2").head[0].weight
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(first, trt_hspan.load_model("hspan-x2").head[0].weight)
    assert source_sha256("hspan-x2") != source_sha256("hspan-x3")


@pytest.mark.parametrize(
    ("spoil", "kind", "key"),
    [
        ("delete", "1 missing", "body.1.body.2.conv_match2.0.bias"),
        ("add", "1 unexpected", "body.0.body.0.body.1.weight"),
        ("reshape", "1 misshaped", "head.0.weight"),
        ("reshape", "1 misshaped", "body.0.body.2.conv_assembly.0.weight"),
        ("delete", "1 missing", "head.0.weight"),
        ("delete", "1 missing", "a"),
    ],
)
def test_key_that_does_not_fit_is_named(
    tmp_path: Path, state: dict[str, Tensor], spoil: str, kind: str, key: str
) -> None:
    if spoil == "delete":
        del state[key]
    elif spoil == "add":
        state[key] = torch.zeros(1)
    else:
        state[key] = torch.zeros(25, 3, 3, 3)
    with pytest.raises(HspanError) as error:
        trt_hspan.load_model(_saved(tmp_path, state))
    assert f"{kind}: {key}" in str(error.value)


def test_all_bad_keys_are_listed_at_once(tmp_path: Path, state: dict[str, Tensor]) -> None:
    del state["tail.1.bias"], state["body.0.body.3.weight"]
    state["extra.one"] = state["extra.two"] = torch.zeros(1)
    state["head.0.bias"] = torch.zeros(23)
    with pytest.raises(HspanError) as error:
        trt_hspan.load_model(_saved(tmp_path, state))
    for text in (
        "2 missing",
        "tail.1.bias",
        "body.0.body.3.weight",
        "2 unexpected",
        "extra.one",
        "extra.two",
    ):
        assert text in str(error.value)
    assert "1 misshaped: head.0.bias (23,) instead of (24,)" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("length", [0, 1, 100, 5_000, 20_000])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_file_is_refused(
    tmp_path: Path, state: dict[str, Tensor], suffix: str, length: int
) -> None:
    model = trt_hspan.load_model(_saved(tmp_path, state))
    whole = tmp_path / f"whole{suffix}"
    trt_hspan.save_checkpoint(model, whole)
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(whole.read_bytes()[:length])
    _assert_refused(broken, "truncated")


@pytest.mark.parametrize("content", [b"hello", b"\x89PNG\r\n\x1a\n" + bytes(64), bytes(4096)])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(content)
    _assert_refused(path, "not a")


def test_checkpoint_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (marker,))  # type: ignore[return-value]

    torch.save({"a": Attack()}, tmp_path / "attack.pt")
    _assert_refused(tmp_path / "attack.pt", "run code")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "list"),
        ({"state_dict": {}}, "state_dict"),
        ({}, "dict"),
        (
            {"head.0.weight": torch.zeros(4, 3, 3, 3), "body.0.body.0.weight": torch.zeros(4, 4, 3, 3)},
            "not an HSPAN",
        ),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: object, words: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    _assert_refused(tmp_path / "other.pt", words)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(
    tmp_path: Path, state: dict[str, Tensor], value: float
) -> None:
    state["tail.1.bias"][0] = value
    _assert_refused(_saved(tmp_path, state), "tail.1.bias")


def test_network_for_pixels_up_to_255_is_rescaled(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    for key in ("sub_mean.bias", "add_mean.bias"):
        state[key] = 255 * state[key]
    loaded = trt_hspan.load_model(_saved(tmp_path, state))
    assert "rgb_range 255" in caplog.text
    of_255 = trt_hspan.HSPAN(loaded.config)
    of_255.load_state_dict(state)
    image = torch.rand((1, 3, 7, 9), dtype=torch.float64)
    with torch.no_grad():
        expected = of_255.double()(255 * image) / 255
        actual = loaded.double()(image)
    # Five weights are rounded to float32 up to twice, 2^-24 each; the small network amplifies that less than 100 times.
    torch.testing.assert_close(actual, expected, rtol=0, atol=5 * 2 * 2**-24 * 100)


def test_half_precision_checkpoint_is_widened(tmp_path: Path, state: dict[str, Tensor]) -> None:
    model = trt_hspan.load_model(_saved(tmp_path, {key: tensor.half() for key, tensor in state.items()}))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_missing_file_suggests_the_preset_meant() -> None:
    _assert_refused(Path("hspan-x-4"), "hspan-x4")


def test_folder_and_unknown_suffix_are_refused(tmp_path: Path) -> None:
    _assert_refused(tmp_path, "folder")
    (tmp_path / "net.txt").write_bytes(b"x")
    with pytest.raises(UsageError, match="safetensors"):
        trt_hspan.load_model(tmp_path / "net.txt")


@pytest.mark.parametrize("res_scale", [-1.0, float("nan"), float("inf")])
def test_impossible_res_scale_is_refused(res_scale: float) -> None:
    with pytest.raises(UsageError, match="res_scale"):
        trt_hspan.load_model("hspan-x2", res_scale=res_scale)


@pytest.mark.parametrize(
    "sizes", [{"n_feats": 0}, {"scale": 5}, {"scale": 1}, {"reduction": 9}, {"n_groups": 0}, {"n_blocks": -1}]
)
def test_impossible_sizes_are_refused(sizes: dict[str, int]) -> None:
    good = {"n_feats": 8, "n_groups": 1, "n_blocks": 1, "scale": 2}
    with pytest.raises(UsageError):
        HspanConfig(**{**good, **sizes})  # type: ignore[arg-type]


def test_attention_block_keeps_the_shape_and_adds_its_input() -> None:
    block = trt_hspan.HighSimilarityPassAttention(6, reduction=3, res_scale=0.0)
    image = torch.rand(2, 6, 4, 5)
    torch.testing.assert_close(block(image), image)
    with pytest.raises(ValueError, match="no query channels"):
        trt_hspan.HighSimilarityPassAttention(2, reduction=3)


def test_saving_refuses_other_suffixes_and_leaves_nothing(tmp_path: Path, state: dict[str, Tensor]) -> None:
    model = trt_hspan.load_model(_saved(tmp_path, state))
    before = set(tmp_path.iterdir())
    for name, metadata in (("net.onnx", None), ("net.pt", {"a": "b"})):
        with pytest.raises(UsageError):
            trt_hspan.save_checkpoint(model, tmp_path / name, metadata=metadata)
    assert set(tmp_path.iterdir()) == before


_numbers = itertools.count()


def _saved(folder: Path, state: dict[str, Tensor]) -> Path:
    path = folder / f"state{next(_numbers)}.pt"
    torch.save(state, path)
    return path


def _assert_refused(path: Path, words: str) -> None:
    with pytest.raises(HspanError) as error:
        trt_hspan.load_model(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.next_step
