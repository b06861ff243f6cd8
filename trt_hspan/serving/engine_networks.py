"""The networks behind engines: which files belong together, and what fits which of Triton's backends.

Owns no file: `repository` writes them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.serving.model_config import Backend, RawModelSpec, Shape, ShapeRange

if TYPE_CHECKING:
    from trt_hspan.engine.manifest import EngineManifest

BackendChoice = Literal["auto", "tensorrt", "python"]
_Member = tuple[Path, "EngineManifest"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network: raw models that differ in shapes, and the picture model in front of them.

    Attributes:
        files: for each raw model, the files of its version folder: file name -> the file.
        plugin: the plugin library that TensorRT engines need, None when they need none.
        flavor, tensorrt_version: of the engines; None when there is no engine.
        version_compatible: later TensorRT releases run all of its engines too.
    """

    name: str
    scale: int
    raw_models: tuple[RawModelSpec, ...]
    files: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    plugin: Path | None = None
    flavor: str | None = None
    tensorrt_version: str | None = None
    version_compatible: bool = False

    @property
    def image_name(self) -> str:
        """Of the picture model."""
        return f"{self.name}_image"


def model_name_from_text(text: str) -> str:
    """A name that Triton, Kubernetes labels and URLs take: letters, digits, dash and underscore."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-")
    if not name:
        raise UsageError("--name", f"got {text!r}, expected letters, digits, dashes or underscores")
    return name[:100]


def networks_from_engines(
    engines: Sequence[Path],
    *,
    backend: BackendChoice = "auto",
    name: str | None = None,
    plugin: Path | None = None,
    instances: int = 1,
) -> list[Network]:
    """The networks behind some engines, each checked against its manifest.

    Engines of one network and precision become one network: those of the same profiles for several GPUs one raw
    model, others one each, between which the picture model chooses. An engine is loaded once on a GPU, whatever the
    number of its profiles.

    Args:
        backend: "auto" takes Triton's TensorRT backend for TensorRT, and ours in Python for TensorRT-RTX, which
            Triton has no backend for.
        name: of the network; only when there is one.
        plugin: the plugin library; None takes the one that `trt-hspan plugin build` writes.
        instances: copies of each raw model on a device.
    """
    if not engines:
        raise UsageError("serve export", "no engine given", "name .plan files that trt-hspan build wrote")
    from trt_hspan.engine.manifest import verify_manifest

    groups: dict[tuple[object, ...], list[_Member]] = defaultdict(list)
    for engine in engines:
        manifest = verify_manifest(engine)
        _check_engine(engine, manifest, backend)
        key = (
            manifest.source_sha256 or manifest.onnx_sha256,
            manifest.precision,
            manifest.scale,
            manifest.flavor,
            manifest.tensorrt_version,
        )
        groups[key].append((engine, manifest))
    if name is not None and len(groups) > 1:
        raise UsageError(
            "--name", f"is for one network, the engines are of {len(groups)}", "leave it out: files name them"
        )
    networks = [
        _network_from_group(members, backend=backend, name=name, plugin=plugin, instances=instances)
        for members in groups.values()
    ]
    _require_distinct([raw.name for network in networks for raw in network.raw_models])
    _require_distinct([network.name for network in networks])
    return networks


def engine_files(engine: Path) -> dict[str, Path]:
    """The plan with all that `open_runner` needs beside it."""
    from trt_hspan.engine.manifest import manifest_path, verify_manifest

    manifest = verify_manifest(engine)
    beside = (engine, manifest_path(engine), engine.parent / manifest.onnx_file)
    return {path.name: path for path in beside}


def _network_from_group(
    members: list[_Member], *, backend: BackendChoice, name: str | None, plugin: Path | None, instances: int
) -> Network:
    first = members[0][1]
    chosen: Backend = "python" if backend == "python" or first.flavor != "tensorrt" else "tensorrt"
    library = _plugin_for(members, plugin)
    buckets: dict[tuple[ShapeRange, ...], list[_Member]] = defaultdict(list)
    for engine, manifest in members:
        ranges = tuple(
            ShapeRange(min=_shape(profile.min), opt=_shape(profile.opt), max=_shape(profile.max))
            for profile in manifest.profiles
        )
        buckets[ranges].append((engine, manifest))
    base = model_name_from_text(name or members[0][0].stem)
    raw_models: list[RawModelSpec] = []
    files: dict[str, dict[str, Path]] = {}
    for ranges, engines in buckets.items():
        raw_name = base
        if len(buckets) > 1 and name is None:
            raw_name = model_name_from_text(engines[0][0].stem)
        elif len(buckets) > 1:
            _, _, height, width = max((r.max for r in ranges), key=lambda shape: shape[2] * shape[3])
            raw_name = f"{base}_{height}x{width}"
        if raw_name in files:
            raw_name = f"{raw_name}_{len(files) + 1}"
        plans, parameters, contents = _raw_contents(engines, chosen, library)
        dynamic = next(t for t in engines[0][1].io_tensors if t.mode == "input").shape[0] < 0
        raw_models.append(
            RawModelSpec(
                name=raw_name,
                backend=chosen,
                ranges=ranges,
                dynamic_batch=dynamic,
                plans=plans,
                parameters=parameters,
                instances=instances,
            )
        )
        _require_common_batch(engines[0][0], raw_models[-1])
        files[raw_name] = contents
    assert first.scale is not None
    return Network(
        name=base,
        scale=first.scale,
        raw_models=tuple(raw_models),
        files=files,
        plugin=library,
        flavor=first.flavor,
        tensorrt_version=first.tensorrt_version,
        version_compatible=all("version-compatible" in manifest.traits for _, manifest in members),
    )


def _require_common_batch(engine: Path, raw: RawModelSpec) -> None:
    """Triton's TensorRT backend has one largest batch for all profiles of a model."""
    least = max(shapes.min[0] for shapes in raw.ranges)
    if least > raw.max_batch:
        raise HspanError(
            engine,
            f"one of its profiles takes at most {raw.max_batch} pictures at a time, another at least {least}",
            "export it with --backend python, or build an engine for each",
        )


def _raw_contents(
    engines: list[_Member], backend: Backend, plugin: Path | None
) -> tuple[dict[str, str], dict[str, str], dict[str, Path]]:
    """Plans by compute capability, parameters, and files of one raw model's version folder."""
    if backend == "python":
        if len(engines) > 1:
            raise UsageError(
                engines[1][0],
                f"has the same shapes as {engines[0][0].name}, and the Python backend runs one of them",
                "export them as repositories of their own",
            )
        engine = engines[0][0]
        parameters = {"source": engine.name}
        files = engine_files(engine)
        if plugin is not None:
            files[plugin.name] = plugin
            parameters["plugin"] = plugin.name
        return {}, parameters, files
    plans: dict[str, str] = {}
    files = {}
    for engine, manifest in engines:
        capabilities = [f"{target[3:-1]}.{target[-1]}" for target in manifest.targets]
        file = "model.plan" if len(engines) == 1 else f"model_{'_'.join(manifest.targets)}.plan"
        if len(engines) == 1:
            plans[""] = file
        for capability in capabilities:
            if capability in plans:
                raise UsageError(
                    engine,
                    f"is for compute capability {capability} and shapes that another engine is for too",
                    "name one of them",
                )
            plans[capability] = file
        files[file] = engine
    return plans, {}, files


def _check_engine(engine: Path, manifest: EngineManifest, backend: BackendChoice) -> None:
    if backend == "tensorrt" and manifest.flavor != "tensorrt":
        raise HspanError(
            engine,
            f"is built by {manifest.flavor}, and Triton's TensorRT backend runs engines of tensorrt only",
            "leave out --backend or give --backend python, or build it with --flavor tensorrt",
        )
    if manifest.scale is None:
        raise HspanError(engine, "its manifest contains no scale", "serve networks that trt-hspan exported")
    names = {(tensor.mode, tensor.name) for tensor in manifest.io_tensors}
    if names != {("input", "input"), ("output", "output")}:
        raise HspanError(
            engine, "its tensors are not named input and output", "export it with trt-hspan export"
        )


def _plugin_for(members: list[_Member], plugin: Path | None) -> Path | None:
    from trt_hspan.files import sha256_from_file
    from trt_hspan.native.plugin import default_plugin_path, plugin_info_from_library

    records = [
        (engine, manifest.plugin)
        for engine, manifest in members
        if manifest.plugin and manifest.needs_library
    ]
    if not records:
        return None
    path = plugin or default_plugin_path()
    plugin_info_from_library(path)
    actual = sha256_from_file(path)
    for engine, record in records:
        if record.sha256 != actual:
            raise HspanError(
                path,
                f"SHA-256 is {actual[:12]}..., but {engine.name} was built with {record.sha256[:12]}...",
                "name the plugin library that it was built with: --plugin",
            )
    return path


def _shape(values: tuple[int, ...]) -> Shape:
    n, c, h, w = values
    return (n, c, h, w)


def _require_distinct(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            "serve export", f"two models would be called {twice[0]}", "rename the engines' files"
        )
