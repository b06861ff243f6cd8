"""`jetson build` on the double of classic TensorRT: which limits arrive, what is refused before anything is built."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command_line import CommandLine
from support.jetson_root import write_jetson_root
from support.small_networks import write_attention_network
from support.tensorrt_double import MemoryPoolType, Release, releases

from trt_hspan.engine import build as build_module
from trt_hspan.engine import builder, tensorrt_api
from trt_hspan.engine.manifest import verify_manifest
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.jetson import board_build as board_build_module
from trt_hspan.jetson.board_build import board_build, device_plugin, require_builder
from trt_hspan.jetson.boards import board_from_name
from trt_hspan.machine import jetson as device
from trt_hspan.machine.jetson import DeviceFacts, device_from_root
from trt_hspan.native.plugin import default_plugin_path
from trt_hspan.sizes import ImageSize

NANO = board_from_name("orin-nano-8g")
MIB = 1 << 20


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Release:
    """JetPack 6: TensorRT 10.3 and the GPU of an Orin."""
    release = next(iter(releases()))
    monkeypatch.setitem(sys.modules, "tensorrt", release.module)
    monkeypatch.setattr(tensorrt_api, "_PLUGINS_LOADED", {})
    for module in (build_module, builder, tensorrt_api, board_build_module):
        monkeypatch.setattr(module, "gpu_architectures", lambda: ("sm_87",))
    return release


@pytest.fixture
def nano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeviceFacts:
    """The commands find themselves on an Orin Nano 8GB."""
    facts = device_from_root(write_jetson_root(tmp_path / "root"))
    monkeypatch.setattr(device, "this_device", lambda: facts)
    return facts


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_attention_network(tmp_path / "net.onnx", precision="fp16", blocks=2)


def request_for(network: Path, facts: DeviceFacts, **changes: Any) -> Any:
    return board_build(network, network.with_suffix(".plan"), NANO, facts, **changes)


def test_the_command_builds_within_the_boards_memory(
    tensorrt: Release, nano: DeviceFacts, network: Path, run: CommandLine
) -> None:
    plan = network.parent / "e" / "net.plan"
    completed = run("jetson", "build", network, "-o", plan, "--plugin", default_plugin_path(), "--json")
    assert completed.code == 0, completed.err
    report = json.loads(completed.out)
    assert report["board"] == "orin-nano-8g"
    assert "p3767-0005" in report["board_found"]
    assert "sudo jetson_clocks" in completed.err
    assert report["advice"][0]["commands"] == ["sudo jetson_clocks"]
    assert tensorrt.built is not None
    config = tensorrt.built[1]
    assert nano.available_bytes is not None
    assert config.pools == {
        MemoryPoolType.WORKSPACE: 512 * MIB,
        # 8 GiB less 2 GiB that are reserved is less than the 6.0 GiB that are free, but for rounding to MiB
        MemoryPoolType.TACTIC_DRAM: min(6 << 30, nano.available_bytes) // MIB * MIB,
    }
    assert config.profiles[0].shapes == {"input": ((1, 3, 16, 16), (1, 3, 256, 256), (1, 3, 256, 256))}
    assert verify_manifest(plan).targets == ("sm_87",)


def test_the_table_shows_board_limits_and_sizes(
    tensorrt: Release, nano: DeviceFacts, network: Path, run: CommandLine
) -> None:
    plan = network.parent / "net.plan"
    completed = run(
        *("jetson", "build", network, "-o", plan, "--plugin", default_plugin_path()),
        *("--size", "48x64", "--opt-level", "1"),
    )
    assert completed.code == 0, completed.err
    assert "min 1x3x16x16, opt 1x3x48x64, max 1x3x48x64" in completed.out
    assert "workspace 512 MiB" in completed.out
    assert "Traceback" not in completed.err
    assert tensorrt.built is not None
    assert tensorrt.built[1].builder_optimization_level == 1


def test_the_largest_input_is_the_tile_that_fits(network: Path) -> None:
    small = dataclasses.replace(NANO, memory_bytes=NANO.reserved_bytes + 64 * MIB)
    request = board_build(network, Path("x.plan"), small, DeviceFacts(), size=ImageSize(2000, 3000))
    assert not request.plan.whole
    (profile,) = request.spec.profiles
    assert profile.max is not None
    assert profile.max == request.plan.tiles.tile
    assert profile.max.height < 2000
    assert request.plan.memory.total <= small.memory_bytes


def test_the_workspace_holds_what_the_plugin_asks_for(network: Path) -> None:
    tight = dataclasses.replace(NANO, workspace_mib=1)
    request = board_build(network, Path("x.plan"), tight, DeviceFacts(), size=ImageSize(360, 640))
    needed = request.plan.memory.workspace
    assert request.spec.workspace_mib is not None
    assert needed <= request.spec.workspace_mib * MIB < needed + MIB


def test_less_free_memory_lowers_the_limit_of_trial_runs(network: Path) -> None:
    free = 900 * MIB
    request = request_for(network, DeviceFacts(available_bytes=free), size=ImageSize(64, 64))
    assert request.spec.tactic_dram_mib == 900


def test_a_network_that_does_not_fit_is_reported_before_the_build(network: Path) -> None:
    tiny = dataclasses.replace(NANO, memory_bytes=NANO.reserved_bytes + 1000)
    with pytest.raises(
        HspanError, match=r"net.onnx: does not fit the Jetson Orin Nano 8GB: 16x16 pixels need"
    ):
        board_build(network, Path("x.plan"), tiny, DeviceFacts())


def test_too_little_free_memory_is_reported_before_the_build(
    tensorrt: Release, tmp_path: Path, network: Path, run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = device_from_root(write_jetson_root(tmp_path / "root", available_kib=100_000))
    monkeypatch.setattr(device, "this_device", lambda: facts)
    completed = run("jetson", "build", network, "-o", tmp_path / "e" / "net.plan", "--size", "360x640")
    assert completed.code == 1
    assert "memory: an engine for 360x640 needs" in completed.error_line
    assert "0.10 GB are free" in completed.error_line
    assert tensorrt.built is None
    assert not (tmp_path / "e").exists()


def test_a_fixed_size_needs_no_profile_and_takes_no_other(tmp_path: Path) -> None:
    network = write_attention_network(tmp_path / "net.onnx", shape=(1, 3, 8, 12))
    request = request_for(network, DeviceFacts())
    assert request.plan.tiles.picture == (8, 12)
    assert request.spec.profiles[0].max is None
    with pytest.raises(UsageError, match="360x640, but the network was exported for 8x12 only"):
        request_for(network, DeviceFacts(), size=ImageSize(360, 640))


def test_a_model_without_attention_is_refused(tmp_path: Path) -> None:
    network = write_attention_network(tmp_path / "net.onnx", blocks=0)
    with pytest.raises(HspanError, match="contains no hspan::HighSimilarityPassAttention"):
        request_for(network, DeviceFacts())


@pytest.mark.parametrize(
    ("here", "part"),
    [((), "builds on the board itself"), (("sm_89",), "this GPU is sm_89, that of the Jetson")],
)
def test_another_gpu_than_the_boards_is_refused(tensorrt: Release, here: tuple[str, ...], part: str) -> None:
    with pytest.raises(HspanError, match=part):
        require_builder(NANO, here)
    require_builder(NANO, ("sm_87",))


def test_without_tensorrt_one_line_says_so(
    nano: DeviceFacts, network: Path, run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for module in (build_module, builder, tensorrt_api, board_build_module):
        monkeypatch.setattr(module, "gpu_architectures", lambda: ("sm_87",))
    completed = run("jetson", "build", network, "-o", network.parent / "e" / "net.plan")
    assert completed.code == 1
    assert "tensorrt: JetPack's Python module is missing" in completed.error_line
    assert "--system-site-packages" in completed.error_line
    assert not (network.parent / "e").exists()


def test_the_packages_plugin_is_found_unless_another_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = tmp_path / "libhspan_plugin.so"
    packaged.touch()
    monkeypatch.delenv("TRT_HSPAN_PLUGIN", raising=False)
    assert device_plugin() == default_plugin_path()
    monkeypatch.setattr(board_build_module, "PACKAGED_PLUGIN", packaged)
    assert device_plugin() == packaged
    monkeypatch.setenv("TRT_HSPAN_PLUGIN", "/mine.so")
    assert device_plugin() == Path("/mine.so")


@pytest.mark.parametrize(
    "words", [("--board", "pi"), ("--size", "64"), ("--size", "0x3"), ("--opt-level", "9")]
)
def test_wrong_usage_is_one_line(
    nano: DeviceFacts, network: Path, run: CommandLine, words: tuple[str, ...]
) -> None:
    completed = run("jetson", "build", network, "-o", network.parent / "e" / "net.plan", *words)
    assert completed.code == 2
    assert words[0] in completed.error_line
