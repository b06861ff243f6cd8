"""Engines whose manifests say what a test needs, and what an exported repository contains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.small_engine import SmallEngine
from trt_hspan.engine.families import EngineFamily
from trt_hspan.engine.manifest import ProfileRecord, read_manifest
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
