"""Checkpoints: what is loaded and saved, and everything that must be refused."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import trt_hspan
from trt_hspan import HSPAN, HspanConfig, HspanError, UsageError
from trt_hspan.model.checkpoint import says_res_scale, source_sha256
from trt_hspan.model.presets import PRESETS


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


@pytest.fixture
def small_preset(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a preset with random weights that is quick to make."""
    config = HspanConfig(n_feats=6, n_groups=1, n_blocks=1, scale=2)
    monkeypatch.setitem(PRESETS, "hspan-small", config)
    return "hspan-small"


def test_presets_are_the_same_every_time_and_leave_the_random_state_alone(small_preset: str) -> None:
    torch.manual_seed(1)
    first = trt_hspan.load_model(small_preset)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(first.head[0].weight, trt_hspan.load_model(small_preset).head[0].weight)
    assert not first.training
    assert source_sha256("hspan-x2") != source_sha256("hspan-x3")


def test_the_residual_scale_of_a_preset_is_the_requested_one(small_preset: str) -> None:
    assert trt_hspan.load_model(small_preset).config.res_scale == 0.1
    for res_scale in (0.0, 0.3):
        assert trt_hspan.load_model(small_preset, res_scale=res_scale).config.res_scale == res_scale


def test_the_residual_scale_is_the_requested_one_else_the_files_else_the_official_one(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    bare, says = _saved(tmp_path, state), _saved(tmp_path, {**state, "res_scale": 0.25})  # type: ignore[dict-item]
    assert trt_hspan.load_model(bare).config.res_scale == 0.1
    assert trt_hspan.load_model(says).config.res_scale == 0.25
    for path in (bare, says):
        assert trt_hspan.load_model(path, res_scale=0.0).config.res_scale == 0.0
    assert (says_res_scale(bare), says_res_scale(says)) == (False, True)
    assert says_res_scale("hspan-tiny-x2")
    assert says_res_scale("hspan-x4")


@pytest.mark.parametrize("res_scale", [-1.0, float("nan"), float("inf")])
def test_impossible_res_scale_is_refused(small_preset: str, res_scale: float) -> None:
    with pytest.raises(UsageError, match="res_scale"):
        trt_hspan.load_model(small_preset, res_scale=res_scale)


def test_the_hash_is_that_of_the_file_that_is_loaded(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = _saved(tmp_path, state)
    assert source_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    shipped = Path(trt_hspan.__file__).parent / "model" / "weights" / "hspan-tiny-x2.safetensors"
    assert source_sha256("hspan-tiny-x2") == hashlib.sha256(shipped.read_bytes()).hexdigest()
    with pytest.raises(HspanError, match="no such file"):
        source_sha256(tmp_path / "none.pt")


def test_a_loaded_network_learns_all_but_its_mean_shifts(tmp_path: Path, state: dict[str, Tensor]) -> None:
    model = trt_hspan.load_model(_saved(tmp_path, state))
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert fixed == {"sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias"}
    assert not model.training
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.parametrize(("mean", "is_of_255"), [(-1.5, False), (1.5, False), (-1.6, True), (1.6, True)])
def test_a_mean_color_beyond_one_and_a_half_is_of_pixels_up_to_255(
    tmp_path: Path, state: dict[str, Tensor], mean: float, is_of_255: bool
) -> None:
    state["sub_mean.bias"] = torch.tensor([0.0, mean, 0.0])
    loaded = trt_hspan.load_model(_saved(tmp_path, state)).state_dict()
    for key, factor in (
        ("sub_mean.bias", 1 / 255),
        ("head.0.weight", 255),
        ("body.0.body.0.body.0.weight", 1),
    ):
        expected = state[key] * (factor if is_of_255 else 1)
        torch.testing.assert_close(loaded[key], expected, rtol=2**-22, atol=0)  # rounded twice


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(
    tmp_path: Path, state: dict[str, Tensor], value: float
) -> None:
    state["tail.1.bias"][0] = state["head.0.bias"][-1] = value
    line = _assert_refused(_saved(tmp_path, state), "NaN or infinite values in ")
    assert line.partition(" values in ")[2].startswith("head.0.bias, tail.1.bias; ")


@pytest.mark.parametrize(("count", "more"), [(1, ""), (3, ""), (4, " and 1 more"), (5, " and 2 more")])
def test_tensors_of_another_type_are_named_as_far_as_a_line_takes_them(
    tmp_path: Path, state: dict[str, Tensor], count: int, more: str
) -> None:
    keys = list(state)[:count]
    integers = {key: state[key].to(torch.int64) for key in keys}
    # Of another kind, and so no part of the same line.
    sparse = {"tail.1.weight": state["tail.1.weight"].to_sparse()}
    line = _assert_refused(_saved(tmp_path, state | integers | sparse), "not floating point that converts")
    assert f": {', '.join(keys[:3])}{more}; give a float checkpoint" in line


@pytest.mark.parametrize(
    ("kind", "convert"),
    [
        ("sparse tensors", lambda tensor: tensor.to_sparse()),
        ("misshaped: tail.1.weight () instead of", lambda tensor: torch.nested.nested_tensor(list(tensor))),
        ("without values (meta tensors)", lambda tensor: tensor.to("meta")),
        ("quantized tensors", lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)),
        ("not floating point", lambda tensor: tensor.to(torch.complex64)),
        ("not floating point", lambda tensor: tensor.to(torch.uint8).view(torch.float4_e2m1fn_x2)),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_does_not_convert_is_called_what_it_is(
    tmp_path: Path, state: dict[str, Tensor], kind: str, convert: Callable[[Tensor], Tensor]
) -> None:
    path = _saved(tmp_path, state | {"tail.1.weight": convert(state["tail.1.weight"])})
    assert "tail.1.weight" in _assert_refused(path, kind)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("hspan-x-4", "check the path; did you mean the preset hspan-x4?"),
        ("zzz.pt", "check the path; presets are hspan-tiny-x2, hspan-tiny-x4, hspan-x2, hspan-x3, hspan-x4"),
    ],
)
def test_a_file_that_is_not_there_suggests_presets(name: str, hint: str) -> None:
    assert _assert_refused(Path(name), "no such file").endswith(hint)


def test_folder_and_unknown_suffix_are_refused(tmp_path: Path) -> None:
    _assert_refused(tmp_path, "is a folder, expected a checkpoint")
    (tmp_path / "net.txt").write_bytes(b"x")
    with pytest.raises(UsageError, match="safetensors"):
        trt_hspan.load_model(tmp_path / "net.txt")


def test_where_a_network_was_and_what_was_changed_is_one_line(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    scaled = {key: tensor * 255 if "mean.bias" in key else tensor for key, tensor in state.items()}
    path = _saved(tmp_path, {"net": scaled})  # type: ignore[dict-item]
    trt_hspan.load_model(path)
    assert caplog.messages == [
        f"{path}: its network is in ['net']; trained on pixels in 0..255 (rgb_range 255); rescaled to 0..1"
    ]


def test_saving_refuses_other_suffixes_and_leaves_nothing(tmp_path: Path, state: dict[str, Tensor]) -> None:
    model = trt_hspan.load_model(_saved(tmp_path, state))
    before = set(tmp_path.iterdir())
    for name, metadata in (("net.onnx", None), ("net.pt", {"a": "b"})):
        with pytest.raises(UsageError):
            trt_hspan.save_checkpoint(model, tmp_path / name, metadata=metadata)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("metadata", [{}, {"made by": "a test", "res_scale": "0.3"}])
def test_texts_are_stored_in_the_header_of_safetensors(
    tmp_path: Path, state: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    model = trt_hspan.load_model(_saved(tmp_path, state))
    trt_hspan.save_checkpoint(model, tmp_path / "net.safetensors", metadata=metadata)
    trt_hspan.save_checkpoint(model, tmp_path / "net.pth", metadata={})
    with safe_open(tmp_path / "net.safetensors", framework="pt") as file:
        assert (file.metadata() or {}) == metadata


_numbers = itertools.count()


def _saved(folder: Path, state: dict[str, Tensor]) -> Path:
    path = folder / f"state{next(_numbers)}.pt"
    torch.save(state, path)
    return path


def _assert_refused(path: Path, words: str) -> str:
    with pytest.raises(HspanError) as error:
        trt_hspan.load_model(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.next_step
    return str(error.value)
