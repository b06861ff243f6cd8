"""The attention block as a building block: another network, all the way to an engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.edsr_like import EdsrLike

from trt_hspan import onnx_from_model
from trt_hspan.engine.build import build_engine
from trt_hspan.engine.spec import Attention, EngineSpec, ProfileRequest
from trt_hspan.graph import save_onnx
from trt_hspan.sizes import ImageSize


@pytest.mark.parametrize("attention", ["function", "plugin"])
def test_network_with_the_block_becomes_an_engine(
    tmp_path: Path, plugin_library: Path, attention: Attention
) -> None:
    torch.manual_seed(0)
    model = onnx_from_model(EdsrLike().eval(), channels=1, precision="fp16")
    save_onnx(model, tmp_path / "edsr.onnx")
    spec = EngineSpec(
        onnx=tmp_path / "edsr.onnx",
        output=tmp_path / "out" / "edsr.plan",
        flavor="tensorrt-rtx",
        attention=attention,
        plugin=plugin_library if attention == "plugin" else None,
        profiles=(ProfileRequest(max=ImageSize(height=64, width=48)),),
    )
    manifest = build_engine(spec)
    assert manifest.network_layer_counts.get("PLUGIN_V3", 0) == (1 if attention == "plugin" else 0)
    assert manifest.profiles[0].max == (1, 1, 64, 48)
    assert manifest.precision == "fp16"
    assert sorted(path.name for path in spec.output.parent.iterdir()) == [
        "edsr.json",
        "edsr.onnx",
        "edsr.plan",
    ]
