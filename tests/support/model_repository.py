"""Engines whose manifests say what a test needs, and what an exported repository contains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from support.small_engine import SmallEngine
from trt_hspan.engine.manifest import read_manifest
from trt_hspan.model_repository.networks import config_from_text


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
