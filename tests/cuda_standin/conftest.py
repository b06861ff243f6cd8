"""Fixtures of the scenarios: the driver's counters, an engine of the double, and the check that nothing was left."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from support.small_networks import attention_network

from cuda_standin import engine_double
from trt_hspan.engine import rtx_wheel
from trt_hspan.engine.manifest import FORMAT_VERSION, EngineManifest, IoTensor, ProfileRecord
from trt_hspan.graph import OnnxMetadata, save_onnx, with_metadata

Profile = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
WIDE: Profile = ((1, 3, 4, 4), (1, 3, 8, 8), (4, 3, 24, 24))
HANDLES = ("device", "pinned", "stream", "event", "graph", "graph exec")


class Driver:
    """The stand-in's counters and injected failures."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._library.custandin_live.restype = ctypes.c_long

    def count(self, what: str) -> int:
        return int(self._library.custandin_live(what.encode()))

    def alive(self) -> dict[str, int]:
        return {name: self.count(name) for name in HANDLES}

    def fail(self, function: str, call: int, *, always: bool = False) -> None:
        self._library.custandin_fail(function.encode(), ctypes.c_long(call), int(always))


@dataclasses.dataclass(frozen=True)
class Release:
    package: str
    flavor: Any
    version: str


RTX = Release("tensorrt_rtx", "tensorrt-rtx", "1.7.1.116")
CLASSIC = Release("tensorrt", "tensorrt", "10.3.0")


@pytest.fixture
def driver() -> Iterator[Driver]:
    """Wants everything freed at the end, and no call refused that was not asked to fail."""
    driver = Driver()
    before = driver.alive()
    yield driver
    driver.fail("", 0)
    assert driver.alive() == before
    assert engine_double.MISUSES == []


@pytest.fixture(params=[RTX, CLASSIC], ids=lambda release: release.flavor)
def release(request: pytest.FixtureRequest) -> Release:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def make_engine(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes an engine of the double: plan, model and manifest; makes its TensorRT the installed one."""
    engine_double.reset()
    monkeypatch.setattr(rtx_wheel, "preload_with_unversioned_name", lambda: None)

    def make(
        release: Release,
        *,
        profiles: tuple[Profile, ...] = (WIDE,),
        changes: dict[str, Any] | None = None,
        inside: str = "",
        **plan: Any,
    ) -> Path:
        for name in ("tensorrt", "tensorrt_rtx"):
            monkeypatch.setitem(sys.modules, name, None)
        double = engine_double.module(release.package, release.version)
        monkeypatch.setitem(sys.modules, release.package, double)
        path = tmp_path / "net.plan"
        save_onnx(doubling_network(), path.with_suffix(".onnx"))
        document = {"onnx": str(path.with_suffix(".onnx")), "profiles": profiles} | plan
        path.write_text(f"{json.dumps(document)}\n{inside}")
        manifest = dataclasses.replace(manifest_for(path, release, profiles), **(changes or {}))
        path.with_suffix(".json").write_text(manifest.as_json())
        return path

    return make


def doubling_network() -> onnx.ModelProto:
    """The small attention network with every pixel repeated in a square of 2x2: scale 2."""
    model = attention_network()
    graph = model.graph
    graph.node[-1].output[0] = "small"
    scales = helper.make_tensor("scales", TensorProto.FLOAT, [4], [1.0, 1.0, 2.0, 2.0])
    graph.initializer.append(scales)
    resize = helper.make_node("Resize", ["small", "", "scales"], ["output"], name="resize", mode="nearest")
    graph.node.append(resize)
    graph.output[0].CopyFrom(helper.make_tensor_value_info("output", TensorProto.FLOAT, ("N", 3, "2H", "2W")))
    return with_metadata(model, OnnxMetadata(scale=2, precision="fp32", source_sha256="c" * 64))


def manifest_for(plan: Path, release: Release, profiles: tuple[Profile, ...]) -> EngineManifest:
    def sha256(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    tensors = [
        IoTensor(name=name, dtype="float32", shape=(-1, 3, -1, -1), mode=name) for name in ("input", "output")
    ]  # type: ignore[arg-type]
    return EngineManifest(
        format_version=FORMAT_VERSION,
        plan_sha256=sha256(plan),
        plan_size_bytes=plan.stat().st_size,
        onnx_file=plan.with_suffix(".onnx").name,
        onnx_sha256=sha256(plan.with_suffix(".onnx")),
        plugin=None,
        flavor=release.flavor,
        tensorrt_version=release.version,
        traits=(),
        timing_cache_sha256=None,
        targets=("sm_86",),
        precision="fp32",
        base_precision="fp32",
        quantization=None,
        attention="function",
        scale=2,
        profiles=tuple(
            ProfileRecord(min=low, opt=best, max=high, activation_memory_bytes=None)
            for low, best, high in profiles
        ),
        io_tensors=tuple(tensors),
        activation_memory_bytes=None,
        activation_memory_source=None,
        weights_memory_bytes=None,
        network_layer_counts={},
        engine_layer_counts=None,
        build_time_seconds=0.1,
        tool_version="0",
        source_sha256=None,
        created_utc="2026-01-01T00:00:00Z",
    )
