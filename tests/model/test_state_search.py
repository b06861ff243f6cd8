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
from support.command_line import CommandLine
from torch import Tensor

import trt_hspan
from trt_hspan import HspanError, load_model
from trt_hspan.model.hspan import DIV2K_MEAN

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


def test_tensors_that_cannot_be_converted_are_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    tensor = state[KEY]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        odd = {
            "sparse": tensor.to_sparse(),
            "meta": tensor.to("meta"),
            "quantized": torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
            "floating point": tensor.to(torch.complex64),
            "not floating point": tensor.to(torch.int64),
        }
    for word, value in odd.items():
        torch.save({**state, KEY: value}, tmp_path / "odd.pt")
        line = refusal(tmp_path / "odd.pt")
        assert word in line
        assert KEY in line


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


def test_export_tells_the_residual_scale_that_it_takes(
    tmp_path: Path, state: dict[str, Tensor], run: CommandLine
) -> None:
    path = tmp_path / "net.pt"
    torch.save({"params": state}, path)
    result = run("export", path, "-o", tmp_path / "net.onnx")
    lines = result.err.splitlines()
    assert result.code == 0
    assert [line.startswith(f"trt-hspan: note: {path}: ") for line in lines] == [True, True], result.err
    assert "['params']" in lines[0]
    assert "the default 0.1, which --res-scale changes" in lines[1]
    assert "residual scale" not in run("export", path, "-o", tmp_path / "b.onnx", "--res-scale", "0.1").err
    assert run("export", "hspan-tiny-x2", "-o", tmp_path / "c.onnx").err == ""


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
