"""Networks with a name: the published sizes, and the shipped ones, which machines without PyTorch run as ONNX."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from pathlib import Path

import pytest
import torch

from trt_hspan import HSPAN, HspanConfig, load_model
from trt_hspan.model import presets
from trt_hspan.model.checkpoint import source_sha256
from trt_hspan.precision.network import variants_from_path
from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner
from trt_hspan.runtime.opening import open_runner

SHIPPED = ("hspan-tiny-x2", "hspan-tiny-x4")


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))


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


@pytest.mark.parametrize(
    ("name", "parameters", "keys"),
    [("hspan-x2", 32_288_698, 283), ("hspan-x3", 33_948_538, 283), ("hspan-x4", 33_616_570, 285)],
)
def test_presets_have_the_published_sizes(name: str, parameters: int, keys: int) -> None:
    shapes = presets.PRESETS[name].state_shapes()
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (keys, parameters)
    assert presets.PRESETS[name].res_scale == 0.1


def test_names_of_networks_are_those_of_the_presets_and_of_what_is_shipped() -> None:
    assert presets.preset_names() == [*SHIPPED, "hspan-x2", "hspan-x3", "hspan-x4"]
    assert presets.closest_preset("hspan-tiny4") == "hspan-tiny-x4"
    assert presets.closest_preset("picture.png") is None
    weights = presets.shipped_weights("hspan-tiny-x2")
    assert weights is not None
    assert weights.name == "hspan-tiny-x2.safetensors"
    assert presets.shipped_weights("hspan-x2") is None


def test_random_weights_are_those_of_one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = HspanConfig(n_feats=8, n_groups=1, n_blocks=1, scale=2)
    monkeypatch.setitem(presets.PRESETS, "small", sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2024)
        expected = HSPAN(sizes).state_dict()
    actual = load_model("small", res_scale=0.5)
    assert actual.config.res_scale == 0.5
    assert not actual.training
    assert all(torch.equal(actual.state_dict()[key], tensor) for key, tensor in expected.items())
    digest = hashlib.sha256(f"{sizes} seed 2024".encode()).hexdigest()
    assert source_sha256("small") == digest


def test_a_shipped_network_says_its_residual_scale_where_it_is_the_usual(without_torch: None) -> None:
    for res_scale in (None, 0.1):
        assert presets.shipped_onnx(Path("hspan-tiny-x4"), res_scale=res_scale) is not None
