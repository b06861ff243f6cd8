"""Engines whose manifests say what a test needs, and what an exported repository contains."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.manifest_corpus import BASE
from support.small_engine import SmallEngine
from trt_hspan.engine.families import EngineFamily
from trt_hspan.engine.manifest import IoTensor, ProfileRecord, manifest_from_json, read_manifest
from trt_hspan.files import sha256_from_file
from trt_hspan.model_repository.networks import Backend, Network, RawModel, config_from_text


def engine_as(small: SmallEngine, folder: Path, name: str, **changes: Any) -> Path:
    """A copy of the engine whose manifest says something else; export never runs a plan."""
    folder.mkdir(exist_ok=True)
    plan = folder / f"{name}.plan"
    plan.write_bytes(small.plan.read_bytes())
    manifest = small.manifest
    (folder / manifest.onnx_file).write_bytes(small.onnx.read_bytes())
    profile = changes.pop("profile_max", None)
    if profile is not None:
        changes["profiles"] = (dataclasses.replace(manifest.profiles[0], opt=profile, max=profile),)
    plan.with_suffix(".json").write_text(dataclasses.replace(manifest, **changes).as_json())
    read_manifest(plan)
    return plan


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def config_of(repository: Path, model: str) -> Any:
    return config_from_text((repository / model / "config.pbtxt").read_text())


def network_of(
    name: str = "net",
    folder: Path = Path("nowhere"),
    *,
    version: str = "10.7.0.23",
    flavor: str = "tensorrt",
    backend: Backend = "tensorrt",
    travels: bool = False,
    side: int = 16,
) -> Network:
    """A network of one raw model whose plan, in a folder that is there, is a text."""
    plan, shape = folder / f"{name}.plan", (1, 3, side, side)
    if folder.is_dir():
        plan.write_text(f"{name} {side}")
    raw = RawModel(
        name=name,
        backend=backend,
        profiles=(ProfileRecord(min=shape, opt=shape, max=shape, activation_memory_bytes=None),),
        dynamic_batch=True,
        files={"model.plan": plan},
        plans={"": "model.plan"},
        parameters={},
    )
    manifest: Any = SimpleNamespace(
        flavor=flavor,
        tensorrt_version=version,
        traits=("version-compatible",) if travels else (),
        scale=4,
        size_multiple=1,
    )
    return Network(
        name=name, family=EngineFamily(members=((plan, manifest),), plugin=None), raw_models=(raw,)
    )


def described_engine(folder: Path) -> SmallEngine:
    """An engine by its manifest alone, as `small_engine` is: for tests that never open one."""
    plan, model = folder / "small.plan", folder / "small.onnx"
    plan.write_bytes(b"a plan")
    model.write_bytes(b"a model")
    low, high = (1, 3, 16, 16), (1, 3, 32, 32)
    manifest = dataclasses.replace(
        manifest_from_json(json.dumps(BASE).encode(), where="base"),
        plan_sha256=sha256_from_file(plan),
        plan_size_bytes=plan.stat().st_size,
        onnx_file=model.name,
        onnx_sha256=sha256_from_file(model),
        plugin=None,
        flavor="tensorrt-rtx",
        tensorrt_version="1.7.1.116",
        traits=(),
        targets=("sm_86",),
        attention="function",
        scale=4,
        size_multiple=1,
        profiles=(ProfileRecord(min=low, opt=high, max=high, activation_memory_bytes=None),),
        io_tensors=tuple(
            IoTensor(name=mode, dtype="float32", shape=(-1, 3, -1, -1), mode=mode)  # type: ignore[arg-type]
            for mode in ("input", "output")
        ),
    )
    plan.with_suffix(".json").write_text(manifest.as_json())
    return SmallEngine(plan, manifest)
