"""The ONNX files of the shipped networks are their checkpoints."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import pytest

from trt_hspan.export import export_onnx
from trt_hspan.graph import load_onnx
from trt_hspan.model import presets


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))


def content(path: Path) -> onnx.ModelProto:
    """The model without who wrote it."""
    model = load_onnx(path)
    model.ClearField("producer_version")
    return model


@pytest.mark.parametrize("name", ["hspan-tiny-x2", "hspan-tiny-x4"])
def test_the_shipped_onnx_file_is_what_export_makes_of_the_shipped_checkpoint(
    name: str, tmp_path: Path, without_torch: None
) -> None:
    shipped = presets.shipped_onnx(name)
    assert shipped is not None
    again = f"trt-hspan export {name} -o trt_hspan/model/weights/{name}.onnx"
    assert content(export_onnx(name, tmp_path / "new.onnx")) == content(shipped), f"write it again: {again}"
