"""The path for GPU machines, `--flavor tensorrt`, on a double of the package: what it is asked to do, and refuses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from support.small_networks import write_attention_network
from support.tensorrt_double import MemoryPoolType, Release, releases

from trt_hspan.engine import build as build_module
from trt_hspan.engine import builder, tensorrt_api
from trt_hspan.engine.build import build_engine
from trt_hspan.engine.manifest import verify_manifest
from trt_hspan.engine.spec import EngineSpec
from trt_hspan.errors import HspanError, UsageError


@pytest.fixture(params=releases(), ids=lambda release: release.module.__version__)
def tensorrt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A machine with this TensorRT and one GPU."""
    release = request.param
    release.plugins.clear()
    release.built, release.can_deserialize = None, True
    monkeypatch.setitem(sys.modules, "tensorrt", release.module)
    monkeypatch.setattr(tensorrt_api, "_PLUGINS_LOADED", {})
    for module in (build_module, builder, tensorrt_api):
        monkeypatch.setattr(module, "gpu_architectures", lambda: ("sm_87",))
    return release  # type: ignore[no-any-return]


def spec_for(network: Path, plugin: Path | None, **changes: Any) -> EngineSpec:
    return EngineSpec(onnx=network, output=network.parent / "e" / "net.plan", plugin=plugin, **changes)


@pytest.fixture
def serving_plugin(plugin_library: Path) -> Path:
    """The compiled plugin; its PTX serves the double's sm_87."""
    return plugin_library


def test_the_default_flavor_on_a_gpu_takes_the_plugin(
    tensorrt: Release, network: Path, serving_plugin: Path
) -> None:
    manifest = build_engine(spec_for(network, serving_plugin))
    assert (manifest.flavor, manifest.attention) == ("tensorrt", "plugin")
    assert manifest.tensorrt_version == tensorrt.module.__version__
    assert manifest.targets == ("sm_87",)
    assert manifest.network_layer_counts["PLUGIN_V3"] == 2
    assert verify_manifest(network.parent / "e" / "net.plan") == manifest


def test_the_network_is_strongly_typed_in_every_release(
    tensorrt: Release, network: Path, serving_plugin: Path
) -> None:
    build_engine(spec_for(network, serving_plugin))
    assert tensorrt.built is not None
    assert tensorrt.built[0].strongly_typed


def test_options_reach_the_builder(tensorrt: Release, network: Path, serving_plugin: Path) -> None:
    build_engine(
        spec_for(network, serving_plugin, workspace_mib=64, tactic_dram_mib=512, optimization_level=5)
    )
    assert tensorrt.built is not None
    config = tensorrt.built[1]
    assert config.pools == {MemoryPoolType.WORKSPACE: 64 << 20, MemoryPoolType.TACTIC_DRAM: 512 << 20}
    assert config.builder_optimization_level == 5
    assert tensorrt.module.BuilderFlag.TF32 not in config.flags
    assert config.profiles[0].shapes == {"input": ((1, 3, 16, 16), (1, 3, 128, 128), (1, 3, 256, 256))}


def test_what_was_not_requested_is_left_to_tensorrt(
    tensorrt: Release, network: Path, serving_plugin: Path
) -> None:
    build_engine(spec_for(network, serving_plugin))
    assert tensorrt.built is not None
    assert (tensorrt.built[1].pools, tensorrt.built[1].builder_optimization_level) == ({}, 3)


def test_a_fixed_size_needs_no_profile(tensorrt: Release, tmp_path: Path, serving_plugin: Path) -> None:
    network = write_attention_network(tmp_path / "net.onnx", shape=(1, 3, 8, 8))
    build_engine(spec_for(network, serving_plugin))
    assert tensorrt.built is not None
    assert tensorrt.built[1].profiles == []


def test_the_engine_itself_is_asked_for_its_memory(
    tensorrt: Release, network: Path, serving_plugin: Path
) -> None:
    manifest = build_engine(spec_for(network, serving_plugin))
    assert (manifest.activation_memory_bytes, manifest.activation_memory_source) == (5000, "engine")


def test_an_engine_that_does_not_open_here_leaves_the_log_to_ask(
    tensorrt: Release, network: Path, serving_plugin: Path
) -> None:
    tensorrt.can_deserialize = False
    manifest = build_engine(spec_for(network, serving_plugin))
    assert (manifest.activation_memory_bytes, manifest.activation_memory_source) == (4096, "builder log")


def test_targets_are_refused(tensorrt: Release, network: Path, serving_plugin: Path) -> None:
    with pytest.raises(UsageError, match="--target: TensorRT builds for the GPU at hand only"):
        build_engine(spec_for(network, serving_plugin, targets=("sm_87",)))


def test_a_plugin_library_that_tensorrt_refuses_is_one_line(
    tensorrt: Release, network: Path, serving_plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = type("Registry", (), {"load_library": lambda self, path: None})
    monkeypatch.setattr(tensorrt.module, "get_plugin_registry", registry)
    with pytest.raises(
        HspanError, match="TensorRT cannot load this plugin library: it registers no new plugin"
    ):
        build_engine(spec_for(network, serving_plugin))


def test_a_plugin_that_is_not_registered_is_never_replaced_by_something_else(
    tensorrt: Release, network: Path, serving_plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "load_plugin_library", lambda *_: None)
    with pytest.raises(HspanError, match=r"cannot read this model: node attention0 .*: Plugin not found"):
        build_engine(spec_for(network, serving_plugin))
    assert not (network.parent / "e").exists()


def test_without_a_gpu_one_line_says_what_to_do(
    tensorrt: Release, network: Path, serving_plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "gpu_architectures", lambda: ())
    with pytest.raises(HspanError, match=r"builds on an NVIDIA GPU .* or use --flavor tensorrt-rtx"):
        build_engine(spec_for(network, serving_plugin, flavor="tensorrt"))
