"""The path for GPU machines, `--flavor tensorrt`, on a double of the package: what it is asked to do, and refuses."""

from __future__ import annotations

import sys
import tempfile
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
from trt_hspan.files import sha256_from_file


@pytest.fixture(params=releases(), ids=lambda release: release.module.__version__)
def tensorrt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A machine with this TensorRT and one GPU."""
    release = request.param
    release.plugins.clear()
    release.built, release.can_deserialize, release.refuses_refit = None, True, False
    release.runtimes.clear()
    monkeypatch.setitem(sys.modules, "tensorrt", release.module)
    monkeypatch.setattr(tensorrt_api, "_PLUGINS_LOADED", {})
    for module in (build_module, builder, tensorrt_api):
        monkeypatch.setattr(module, "gpu_architectures", lambda: ("sm_87",))
    return release  # type: ignore[no-any-return]


def spec_for(network: Path, plugin: Path | None, **changes: Any) -> EngineSpec:
    return EngineSpec(onnx=network, output=network.parent / "e" / "net.plan", plugin=plugin, **changes)


@pytest.fixture
def desktop(tensorrt: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is no Jetson's."""
    monkeypatch.setattr(build_module, "gpu_architectures", lambda: ("sm_86",))


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


def test_a_generation_that_may_come_is_named_when_it_is_loaded(
    tensorrt: Release, caplog: pytest.LogCaptureFixture
) -> None:
    tensorrt_api._note_generation.cache_clear()
    for _ in range(2):
        tensorrt_api.load_tensorrt("tensorrt")
    line = "tensorrt 12.0.0 is of a generation that this trt-hspan does not know (10 and 11)"
    named = [message for message in caplog.messages if message.startswith(line)]
    assert len(named) == (tensorrt.major == 12)
    assert len(caplog.messages) == len(named)


def test_traits_reach_the_builder_and_the_manifest(
    tensorrt: Release, network: Path, serving_plugin: Path, desktop: None
) -> None:
    traits = frozenset({"embedded-plugin", "version-compatible", "ampere+"})
    manifest = build_engine(spec_for(network, serving_plugin, traits=traits))
    assert tensorrt.built is not None
    config, flags = tensorrt.built[1], tensorrt.module.BuilderFlag
    assert config.flags == {flags.VERSION_COMPATIBLE}
    assert config.plugins_to_serialize == [str(serving_plugin.resolve())]
    assert config.hardware_compatibility_level == tensorrt.module.HardwareCompatibilityLevel.AMPERE_PLUS
    assert manifest.traits == ("embedded-plugin", "version-compatible", "ampere+")
    assert not manifest.needs_library
    assert verify_manifest(network.parent / "e" / "net.plan") == manifest
    assert tensorrt.runtimes[-1].engine_host_code_allowed  # to ask the engine for its memory
    assert tensorrt.runtimes[-1].temporary_directory == tempfile.gettempdir()


def test_without_traits_no_code_of_a_plan_may_run(
    tensorrt: Release, network: Path, serving_plugin: Path
) -> None:
    manifest = build_engine(spec_for(network, serving_plugin))
    assert tensorrt.built is not None
    config = tensorrt.built[1]
    assert (manifest.traits, manifest.needs_library) == ((), True)
    assert (config.flags, config.plugins_to_serialize) == (set(), [])
    assert config.hardware_compatibility_level is None
    assert not tensorrt.runtimes[-1].engine_host_code_allowed


def test_code_of_a_plan_stays_in_memory_where_no_folder_may_hold_it(
    tensorrt: Release, network: Path, serving_plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_folder() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tensorrt_api.tempfile, "gettempdir", no_folder)
    build_engine(spec_for(network, serving_plugin, traits=frozenset({"embedded-plugin"})))
    runtime = tensorrt.runtimes[-1]
    assert (runtime.temporary_directory, runtime.tempfile_control_flags) == (None, 1)


@pytest.mark.parametrize("gpu", ["sm_75", "sm_87", "sm_110"])
@pytest.mark.parametrize("trait", ["ampere+", "same-cc"])
def test_hardware_compatibility_is_for_desktops_and_servers_from_ampere_on(
    tensorrt: Release, network: Path, monkeypatch: pytest.MonkeyPatch, gpu: str, trait: Any
) -> None:
    monkeypatch.setattr(build_module, "gpu_architectures", lambda: (gpu,))
    with pytest.raises(UsageError, match=f"that are no Jetson, this one is {gpu}; leave it out"):
        build_engine(spec_for(network, None, traits=frozenset({trait})))


def test_one_kind_of_gpu_is_a_level_of_later_releases(
    tensorrt: Release, network: Path, serving_plugin: Path, desktop: None
) -> None:
    spec = spec_for(network, serving_plugin, traits=frozenset({"same-cc"}))
    if tensorrt.module.__version__ == "10.3.0":
        with pytest.raises(
            UsageError, match=r"--hardware-compatible same-cc: TensorRT 10\.3\.0 cannot do that"
        ):
            build_engine(spec)
        return
    assert build_engine(spec).traits == ("same-cc",)
    assert tensorrt.built is not None
    assert tensorrt.built[1].hardware_compatibility_level.name == "SAME_COMPUTE_CAPABILITY"


def test_a_timing_cache_is_read_and_written_whole(
    tensorrt: Release, network: Path, serving_plugin: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "new" / "times"
    start = f"times of {tensorrt.module.__version__}:".encode()
    for builds in (1, 2):
        manifest = build_engine(spec_for(network, serving_plugin, timing_cache=cache))
        assert cache.read_bytes() == start + b"+" * builds
        assert manifest.timing_cache_sha256 == sha256_from_file(cache)
        assert [path.name for path in cache.parent.iterdir()] == ["times"]
    assert not any("timing cache" in message for message in caplog.messages)
    cache.write_bytes(b"of another GPU")
    build_engine(spec_for(network, serving_plugin, timing_cache=cache))
    assert cache.read_bytes() == start + b"+"
    assert (
        "the timing cache is of another GPU or TensorRT, or damaged; a new one is measured" in caplog.messages
    )
    assert build_engine(spec_for(network, serving_plugin)).timing_cache_sha256 is None


def test_a_timing_cache_that_cannot_be_written_is_an_error_before_the_build(
    tensorrt: Release, network: Path, serving_plugin: Path, unwritable_folder: Path
) -> None:
    with pytest.raises(HspanError, match="no permission to write here"):
        build_engine(spec_for(network, serving_plugin, timing_cache=unwritable_folder / "times"))
    assert tensorrt.built is None


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
    registry = type("Registry", (), {"load_library": lambda self, path: None, "all_creators": ()})
    monkeypatch.setattr(tensorrt.module, "get_plugin_registry", registry)
    with pytest.raises(
        HspanError, match="TensorRT cannot load this plugin library: it registers no new plugin"
    ):
        build_engine(spec_for(network, serving_plugin))


def test_a_plugin_that_is_not_registered_is_never_replaced_by_something_else(
    tensorrt: Release, network: Path, serving_plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "load_plugin_library", lambda *_: None)
    with pytest.raises(HspanError, match=r"cannot read this model: node attention0: it has no operator High"):
        build_engine(spec_for(network, serving_plugin))
    assert not (network.parent / "e").exists()


def test_without_a_gpu_one_line_says_what_to_do(
    tensorrt: Release, network: Path, serving_plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "gpu_architectures", lambda: ())
    with pytest.raises(HspanError, match=r"builds on an NVIDIA GPU .* or use --flavor tensorrt-rtx"):
        build_engine(spec_for(network, serving_plugin, flavor="tensorrt"))
