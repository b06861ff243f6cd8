"""The shipped networks: their ONNX files are their checkpoints, and serve machines without PyTorch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import pytest

from trt_hspan.export import export_onnx
from trt_hspan.graph import load_onnx
from trt_hspan.model import presets
from trt_hspan.precision.network import variants_from_path
from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner
from trt_hspan.runtime.opening import open_runner

SHIPPED = ("hspan-tiny-x2", "hspan-tiny-x4")


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))


def content(path: Path) -> onnx.ModelProto:
    """The model without who wrote it."""
    model = load_onnx(path)
    model.ClearField("producer_version")
    return model


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_onnx_file_is_what_export_makes_of_the_shipped_checkpoint(
    name: str, tmp_path: Path, without_torch: None
) -> None:
    shipped = presets.shipped_onnx(name)
    assert shipped is not None
    again = f"trt-hspan export {name} -o trt_hspan/model/weights/{name}.onnx"
    assert content(export_onnx(name, tmp_path / "new.onnx")) == content(shipped), f"write it again: {again}"


def test_a_shipped_network_runs_as_onnx_where_there_is_no_torch(without_torch: None) -> None:
    runner = open_runner("hspan-tiny-x4")
    assert isinstance(runner, OnnxRuntimeRunner)
    assert not runner.emulated
    assert runner.label == f"{runner.name}, FP32"
    assert runner.picked.endswith("PyTorch is not installed, and hspan-tiny-x4 ships as ONNX too")
    assert variants_from_path("hspan-tiny-x4").metadata.scale == 4


def test_torch_is_preferred_and_other_networks_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert presets.shipped_onnx("hspan-tiny-x4") is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert presets.shipped_onnx("hspan-tiny-x4") is not None
    assert presets.shipped_onnx("hspan-tiny-x4", res_scale=1.0) is None
    for name in ("hspan-x4", "network.pt", "../weights/hspan-tiny-x4", "/absolute"):
        assert presets.shipped_onnx(name) is None
