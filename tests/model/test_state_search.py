"""Checkpoints as people have them: wrappers, prefixes, types of numbers, and files that are something else."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import trt_hspan
from trt_hspan import HspanError, load_model
from trt_hspan.model.hspan import DIV2K_MEAN
from trt_hspan.model.state_search import state_from_loaded, with_constants

KEY = "head.0.weight"


def assert_loads(path: Path, state: dict[str, Tensor]) -> None:
    loaded = trt_hspan.export_hspan_state(trt_hspan.load_model(path))
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def refusal(path: Path) -> str:
    with pytest.raises(HspanError) as error:
        trt_hspan.load_model(path)
    assert str(path) in str(error.value)
    assert error.value.next_step
    return str(error.value)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "net_g.", "generator.", "net_g.module._orig_mod.", "body.net."],
)
def test_prefix_is_found_and_said_in_one_line(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture, prefix: str
) -> None:
    torch.save({prefix + key: tensor for key, tensor in state.items()}, tmp_path / "net.pt")
    assert_loads(tmp_path / "net.pt", state)
    assert len(caplog.messages) == 1
    assert prefix in caplog.text


@pytest.mark.parametrize(
    "entries",
    [("params_ema",), ("params",), ("state_dict",), ("model_state_dict",), ("epoch_3", "net", "weights")],
)
def test_entry_that_contains_the_network_is_found_and_named(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture, entries: tuple[str, ...]
) -> None:
    saved: dict[str, object] = dict(state)
    for entry in reversed(entries):
        saved = {"epoch": 3, entry: saved, "optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}}}
    torch.save(saved, tmp_path / "net.pt")
    assert_loads(tmp_path / "net.pt", state)
    assert len(caplog.messages) == 1
    assert all(entry in caplog.text for entry in entries)


def test_bare_state_dict_needs_no_line(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(state, tmp_path / "net.pt")
    assert_loads(tmp_path / "net.pt", state)
    assert not caplog.messages


def test_modules_that_were_compiled_or_wrapped_on_their_own_are_found(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    renamed = {
        key.replace("body.0.body.", "body.0._orig_mod.body.", 1).replace(
            "tail.0.", "tail.0.module.", 1
        ): tensor
        for key, tensor in state.items()
    }
    assert renamed.keys() != state.keys()
    torch.save(renamed, tmp_path / "net.pt")
    assert_loads(tmp_path / "net.pt", state)


def test_averaged_copy_is_taken_when_it_is_complete(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    other = {key: tensor + 1e-3 for key, tensor in state.items()}
    torch.save({"params": other, "params_ema": state}, tmp_path / "both.pt")
    assert_loads(tmp_path / "both.pt", state)
    assert "params_ema" in caplog.messages[0]
    assert "also an HSPAN: ['params']" in caplog.messages[0]
    part = {key: tensor for key, tensor in other.items() if "mean" not in key}
    torch.save({"params": state, "params_ema": part}, tmp_path / "part.pt")
    assert_loads(
        tmp_path / "part.pt", {key: (part if key in part else state)[key] for key in state if key != "a"}
    )


def test_network_beside_a_discriminator_and_a_counter_is_found(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 2))
    assert "n_averaged" in averaged.state_dict()
    keys = {f"module.{key}": tensor for key, tensor in state.items()}
    torch.save({"n_averaged": torch.tensor(7), "net_d.0.weight": torch.zeros(3), **keys}, tmp_path / "net.pt")
    assert_loads(tmp_path / "net.pt", state)
    assert "left out: n_averaged, net_d.0.weight" in caplog.text


def test_numbers_beside_the_weights_are_left_out(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"epoch": 3, **state, "loss": 0.1}, tmp_path / "net.pt")
    assert_loads(tmp_path / "net.pt", state)


def test_counters_of_thop_are_left_out_in_one_line(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    modules = ["", *dict.fromkeys(f"{key.rpartition('.')[0]}." for key in state if "." in key)]
    counters = {f"{name}{key}": torch.zeros(1) for name in modules for key in ("total_ops", "total_params")}
    torch.save({"params": state | counters}, tmp_path / "net.pt")
    assert_loads(tmp_path / "net.pt", state)
    assert len(caplog.messages) == 1
    assert (
        f"left out: total_ops, total_params, sub_mean.total_ops and {len(counters) - 3} more" in caplog.text
    )


def test_key_that_does_not_fit_is_named_with_its_entry(tmp_path: Path, state: dict[str, Tensor]) -> None:
    del state[KEY]
    torch.save({"net": {f"module.{key}": tensor for key, tensor in state.items()}}, tmp_path / "net.pt")
    line = refusal(tmp_path / "net.pt")
    assert "['net']" in line
    assert f"1 missing: {KEY}" in line


def test_objects_beside_the_network_are_not_loaded_and_do_not_matter(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (marker,))

    saved = {
        "args": argparse.Namespace(lr=1e-4, folder=tmp_path),
        "best": np.float64(31.2),
        "curve": np.arange(3),
        "state_dict": OrderedDict(state),
    }
    torch.save(saved, tmp_path / "train.pt")
    assert_loads(tmp_path / "train.pt", state)
    torch.save({**saved, "hook": Attack()}, tmp_path / "attack.pt")
    assert "run code" in refusal(tmp_path / "attack.pt")
    assert not marker.exists()


def test_whole_pickled_network_is_refused_with_the_line_that_saves_its_state(tmp_path: Path) -> None:
    torch.save(trt_hspan.load_model("hspan-tiny-x2"), tmp_path / "whole.pt")
    assert "torch.save(model.state_dict(), path)" in refusal(tmp_path / "whole.pt")


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_type_of_number_is_converted(
    tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype
) -> None:
    saved = {key: tensor.to(dtype) for key, tensor in state.items()}
    torch.save(saved, tmp_path / "net.pt")
    assert_loads(tmp_path / "net.pt", {key: tensor.float() for key, tensor in saved.items()})


def test_tensors_that_are_no_network_are_named_with_their_entry(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "model": {"conv.weight": torch.zeros(3, 3, 1, 1)}}, tmp_path / "net.pt")
    line = refusal(tmp_path / "net.pt")
    assert "['model']: not an HSPAN checkpoint: its 1 keys" in line


@pytest.mark.parametrize("name", ["net.PT", "net.ckpt", "net.bin", "net.pth.tar", "NET.SafeTensors"])
def test_names_that_people_give_are_read(tmp_path: Path, state: dict[str, Tensor], name: str) -> None:
    trt_hspan.save_checkpoint(trt_hspan.load_model(_saved(tmp_path, state)), tmp_path / name)
    assert_loads(tmp_path / name, state)


def test_contents_say_what_a_file_is_whatever_its_name(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    model = trt_hspan.load_model(_saved(tmp_path, state))
    for right, wrong, kind in ((".safetensors", ".pth", "safetensors"), (".pt", ".safetensors", "PyTorch")):
        trt_hspan.save_checkpoint(model, tmp_path / f"right{right}")
        (tmp_path / f"right{right}").rename(tmp_path / f"wrong{wrong}")
        caplog.clear()
        assert_loads(tmp_path / f"wrong{wrong}", state)
        assert kind in caplog.text


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 134\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "HTML page"),
        (b"<html lang='en'>" + bytes(400), "HTML page"),
        (b"\x1f\x8b\x08" + bytes(400), "an archive"),
        (b"net.pt" + bytes(251) + b"ustar" + bytes(250), "an archive"),
    ],
)
def test_files_saved_by_mistake_are_called_what_they_are(
    tmp_path: Path, suffix: str, content: bytes, words: str
) -> None:
    (tmp_path / f"net{suffix}").write_bytes(content)
    assert words in refusal(tmp_path / f"net{suffix}")


def test_torchscript_archive_is_called_what_it_is(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "net.pt")
    assert "TorchScript" in refusal(tmp_path / "net.pt")


def _saved(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, folder / "saved.pt")
    return folder / "saved.pt"


@pytest.fixture(autouse=True)
def _warnings_are_caught(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


@pytest.mark.parametrize(
    "around",
    [
        lambda state: {"state_dict": state, "args": argparse.Namespace(res_scale=0.25, scale="2")},
        lambda state: {"params": state, "opt": {"network_g": {"type": "HSPAN", "res_scale": 0.25}}},
        lambda state: {**state, "res_scale": 0.25},
    ],
    ids=["arguments", "options", "beside the weights"],
)
def test_residual_scale_that_a_checkpoint_says_is_taken(
    tmp_path: Path,
    state: dict[str, Tensor],
    caplog: pytest.LogCaptureFixture,
    around: Callable[[dict[str, Tensor]], object],
) -> None:
    torch.save(around(state), tmp_path / "said.pt")
    assert load_model(tmp_path / "said.pt").config.res_scale == 0.25
    assert "it says res_scale 0.25" in caplog.messages[-1]
    assert load_model(tmp_path / "said.pt", res_scale=0.5).config.res_scale == 0.5


def test_residual_scale_in_a_safetensors_header_is_taken(tmp_path: Path, state: dict[str, Tensor]) -> None:
    tensors = {key: tensor.contiguous() for key, tensor in state.items()}
    save_file(tensors, tmp_path / "said.safetensors", metadata={"res_scale": "0.3"})
    assert load_model(tmp_path / "said.safetensors").config.res_scale == 0.3


def test_averaged_copy_without_the_constant_mean_shifts_is_complete(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    trained = {key: t for key, t in state.items() if key != "a" and "mean" not in key}
    torch.save({"params": state, "params_ema": trained}, tmp_path / "ema.pt")
    model = load_model(tmp_path / "ema.pt")
    assert "took those of ['params']" in caplog.messages[-1]
    torch.testing.assert_close(model.state_dict()["sub_mean.bias"], state["sub_mean.bias"])
    torch.save({"params_ema": trained}, tmp_path / "ema.pt")
    model = load_model(tmp_path / "ema.pt")
    assert "took DIV2K's" in caplog.messages[-1]
    torch.testing.assert_close(model.state_dict()["sub_mean.bias"], -torch.tensor(DIV2K_MEAN))
    torch.testing.assert_close(model.state_dict()["head.0.weight"], state["head.0.weight"])


def nested_in(levels: int, state: object) -> object:
    for _ in range(levels):
        state = {"in": state}
    return state


def test_a_network_is_found_within_seven_entries(state: dict[str, Tensor]) -> None:
    found = state_from_loaded(nested_in(7, state), Path("net.pt"), [])
    assert found.where == "net.pt: " + 7 * "['in']"
    with pytest.raises(HspanError, match="contains a dict of in without tensors"):
        state_from_loaded(nested_in(8, state), Path("net.pt"), [])


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_network_is_found_in_a_list_of_up_to_a_hundred(state: dict[str, Tensor], kind: type) -> None:
    found = state_from_loaded(kind([0] * 99 + [state]), Path("net.pt"), [])
    assert found.note == "its network is in [99]"
    with pytest.raises(HspanError, match=f"contains {kind.__name__}, expected a state dict"):
        state_from_loaded(kind([0] * 100 + [state]), Path("net.pt"), [])


@pytest.mark.parametrize(
    ("loaded", "what"),
    [
        ({}, "contains an empty dict, expected a state dict; save model.state_dict()"),
        (dict.fromkeys("abcde"), "contains a dict of a, b, c, d, e without tensors"),
        (dict.fromkeys("abcdef"), "contains a dict of a, b, c, d, e without tensors"),
        ({1: "x"}, "contains a dict of 1 without tensors"),
        ([], "contains list, expected"),
        ("text", "contains str, expected"),
    ],
)
def test_what_contains_no_tensors_is_described(loaded: object, what: str) -> None:
    with pytest.raises(HspanError) as refused:
        state_from_loaded(loaded, Path("net.pt"), [])
    assert str(refused.value).startswith(f"net.pt: {what}")


def test_objects_alone_are_named_and_so_are_whole_modules() -> None:
    for loaded in ({"a": 1}, {"net": {"_parameters": {}, "w": torch.zeros(1)}}):
        with pytest.raises(HspanError, match=r"contains Python objects \(a\.B\) besides tensors"):
            state_from_loaded(loaded, Path("net.pt"), ["a.B"])


def test_of_other_networks_the_largest_is_described() -> None:
    one, two = {"w": torch.zeros(1)}, {"w": torch.zeros(1), "v": torch.zeros(1), "n": 3, 7: torch.zeros(1)}
    found = state_from_loaded({"small": one, "large": two, "none": {}}, Path("net.pt"), [])
    assert (found.where, sorted(found.state), found.note) == ("net.pt: ['large']", ["v", "w"], None)
    assert state_from_loaded(one, Path("net.pt"), []).where == "net.pt"


@pytest.mark.parametrize("count", [1, 5, 6])
def test_entries_that_are_no_tensors_are_named_as_far_as_a_line_takes_them(
    state: dict[str, Tensor], count: int
) -> None:
    keys = [key for key in state if key.startswith("body.0.body.0.")] + ["head.0.weight", "tail.1.bias"]
    spoiled: dict[str, object] = {**state, **dict.fromkeys(keys[:count], 0)}
    with pytest.raises(HspanError) as refused:
        state_from_loaded(spoiled, Path("net.pt"), [])
    listed = [key for key in state if key in keys[:count]][:5]
    assert str(refused.value) == f"net.pt: not tensors: {', '.join(listed)}; save model.state_dict()"


@pytest.mark.parametrize(("count", "more"), [(1, ""), (3, ""), (4, " and 1 more"), (5, " and 2 more")])
def test_what_is_left_out_is_named_as_far_as_a_line_takes_it(
    state: dict[str, Tensor], count: int, more: str
) -> None:
    others = [f"d.{number}" for number in range(count)]
    loaded = {f"g.{key}": tensor for key, tensor in state.items()} | dict.fromkeys(others, torch.zeros(1))
    note = f"its network is in the prefix 'g.'; left out: {', '.join(others[:3])}{more}"
    assert state_from_loaded(loaded, Path("net.pt"), []).note == note


def test_every_other_copy_is_named_and_of_like_ones_the_first_is_taken(state: dict[str, Tensor]) -> None:
    copies = {f"{name}.{key}": tensor for name in ("a", "b", "ema") for key, tensor in state.items()}
    found = state_from_loaded(copies, Path("net.pt"), [])
    assert found.note is not None
    assert found.note.startswith(
        "its network is in the prefix 'ema.'; also an HSPAN: the prefix 'a.', the prefix 'b.'; left out: a.a"
    )
    whole = {"net": state, "swa": {key: state[key] for key in list(state)[:-1]}}
    found = state_from_loaded(whole, Path("net.pt"), [])
    assert found.note == "its network is in ['net']; also an HSPAN: ['swa']"
    both = {**state, **{f"ema.{key}": tensor for key, tensor in state.items()}}
    del both["ema.tail.1.bias"]
    found = state_from_loaded(both, Path("net.pt"), [])
    assert found.state.keys() == state.keys()
    assert (found.where, found.note and found.note.partition("; left out: ")[0]) == (
        "net.pt",
        "also an HSPAN: the prefix 'ema.'",
    )


@pytest.mark.parametrize(
    ("around", "res_scale"),
    [
        ({"res_scale": 0.25}, 0.25),
        ({"res_scale": "0.25"}, 0.25),
        ({"res_scale": 0}, 0.0),
        ({"a": {"res_scale": 0.25}, "b": {"res_scale": 0.25}}, 0.25),
        ({"a": {"res_scale": "none"}, "b": {"res_scale": 0.25}}, 0.25),
        ({"a": {"res_scale": None}, "b": {"res_scale": 0.25}}, 0.25),
        ({"a": {}, "b": {"res_scale": 0.25}}, 0.25),
        ({"a": {"res_scale": -1}, "b": {"res_scale": 0.25}}, 0.25),
        ({"a": {"res_scale": float("inf")}, "b": {"res_scale": 0.25}}, 0.25),
        ({"a": {"res_scale": 0.5}, "b": {"res_scale": 0.25}}, None),
        ({"res_scale": -0.5}, None),
        ({}, None),
    ],
)
def test_the_one_possible_residual_scale_of_a_file_is_taken(
    state: dict[str, Tensor], around: dict[str, object], res_scale: float | None
) -> None:
    found = state_from_loaded({"net": state, **around}, Path("net.pt"), [])
    assert found.res_scale == res_scale
    assert found.note is not None
    said = "" if res_scale is None else f"; it says res_scale {res_scale:g}"
    assert found.note == f"its network is in ['net']{said}"


def test_the_official_residual_scale_needs_no_words(state: dict[str, Tensor]) -> None:
    found = state_from_loaded({"net": state, "res_scale": 0.1}, Path("net.pt"), [])
    assert (found.res_scale, found.note) == (0.1, "its network is in ['net']")


def test_what_is_the_same_in_every_network_is_added_only_where_all_of_it_lacks(
    state: dict[str, Tensor],
) -> None:
    constants = ["a", "sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias"]
    trained = {key: tensor for key, tensor in state.items() if key not in constants}
    added = with_constants(trained)
    assert added.keys() == state.keys()
    mean = torch.tensor(DIV2K_MEAN)
    assert torch.equal(added["sub_mean.bias"], -mean)
    assert torch.equal(added["add_mean.bias"], mean)
    assert torch.equal(added["sub_mean.weight"], torch.eye(3).view(3, 3, 1, 1))
    assert torch.equal(added["a"], torch.zeros(1))
    for key in constants[1:]:
        part = {**trained, key: state[key]}
        assert with_constants(part) == part


def test_mean_shifts_come_from_the_copy_that_has_them(state: dict[str, Tensor]) -> None:
    state["sub_mean.bias"] = state["sub_mean.bias"] + 0.25
    trained = {key: t for key, t in state.items() if not key.startswith(("sub_mean.", "add_mean."))}
    found = state_from_loaded({"ema": trained, "other": trained, "net": state}, Path("net.pt"), [])
    assert torch.equal(found.state["sub_mean.bias"], state["sub_mean.bias"])
    assert found.note is not None
    assert found.note.endswith("it lacks the mean shifts, which are constants; took those of ['net']")


def test_keys_that_are_no_text_and_counters_do_not_hide_a_network(state: dict[str, Tensor]) -> None:
    odd: dict[object, object] = {**state, 3: "x", "total_ops": torch.zeros(1), "step": 5}
    found = state_from_loaded(odd, Path("net.pt"), [])
    assert found.state.keys() == state.keys()
    assert found.note == "left out: total_ops, step"
