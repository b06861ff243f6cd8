"""What is to be served: a network with its raw models and their files, from engines or from one source.

Owns which files belong together and what fits which backend; `repository` writes them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.runtime.runner import ShapeLimit
from trt_hspan.serving.model_config import Backend, RawModelSpec, Shape
from trt_hspan.serving.probe import ProbedSource, probe_source
from trt_hspan.sizes import ImageSize

if TYPE_CHECKING:
    from trt_hspan.engine.manifest import EngineManifest

BackendChoice = Literal["auto", "tensorrt", "python"]
#: Smallest, tuned for and largest shape, and the number of the profile in its engine.
_Bucket = tuple[Shape, Shape, Shape, int]
#: Largest side of a tile on a CPU, where nothing else sets a limit; see docs/serving.md.
CPU_TILE: Final = 64
CPU_BATCH: Final = 4
SMALLEST_SIDE: Final = 8


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network: raw models that differ in shapes, and the picture model in front of them.

    Attributes:
        files: for each raw model, the files of its version folder: file name -> the file.
        plugin: the plugin library that TensorRT engines need, None when they need none.
        flavor, tensorrt_version: of the engines; None when there is no engine.
    """

    name: str
    scale: int
    raw_models: tuple[RawModelSpec, ...]
    files: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    plugin: Path | None = None
    flavor: str | None = None
    tensorrt_version: str | None = None

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


def network_from_source(
    source: str,
    *,
    name: str | None = None,
    device: str = "auto",
    res_scale: float = 0.1,
    threads: int | None = None,
    instances: int = 1,
    tile: ImageSize | None = None,
    plugin: Path | None = None,
) -> Network:
    """A network that a Python model runs: a checkpoint, an ONNX file, an engine or a preset.

    An engine with several profiles gets one raw model for each. Arguments and errors as `open_runner`.
    """
    probed = probe_source(source, device=device, res_scale=res_scale, plugin=plugin)
    ranges = _tile_limits(probed, tile)
    suffix = Path(source).suffix.lower()
    base = model_name_from_text(name or Path(source).stem if suffix else name or source)
    parameters = {"device": device, "res_scale": repr(res_scale)}
    files: dict[str, Path] = {}
    if suffix == ".plan":
        files |= _engine_files(Path(source))
        if plugin is not None:
            files[plugin.name] = plugin
            parameters["plugin"] = plugin.name
    elif suffix:
        files[Path(source).name] = Path(source)
    parameters["source"] = Path(source).name if files else source
    if threads is not None:
        parameters["threads"] = str(threads)
    raw_models: dict[str, RawModelSpec] = {}
    for low, high in ranges:
        raw_name = base if len(ranges) == 1 else f"{base}_{high[2]}x{high[3]}"
        if raw_name in raw_models:
            raw_name = f"{raw_name}_profile{len(raw_models)}"
        raw_models[raw_name] = RawModelSpec(
            name=raw_name,
            backend="python",
            min=low,
            opt=high,
            max=high,
            dynamic_batch=not (len(ranges) == 1 and low[0] == high[0]),
            plans={},
            parameters=parameters,
            instances=instances,
        )
    return Network(
        name=base,
        scale=probed.scale,
        raw_models=tuple(raw_models.values()),
        files=dict.fromkeys(raw_models, files),
    )


def networks_from_engines(
    engines: Sequence[Path],
    *,
    backend: BackendChoice = "auto",
    name: str | None = None,
    plugin: Path | None = None,
    instances: int = 1,
) -> list[Network]:
    """The networks behind some engines, each checked against its manifest.

    Engines of one network and precision become one network: those of one profile for several GPUs one raw model,
    those of several profiles one raw model each, between which the picture model chooses. An engine with several
    profiles gets one raw model for each.

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

    groups: dict[tuple[object, ...], list[tuple[Path, EngineManifest]]] = defaultdict(list)
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


def _network_from_group(
    members: list[tuple[Path, EngineManifest]],
    *,
    backend: BackendChoice,
    name: str | None,
    plugin: Path | None,
    instances: int,
) -> Network:
    first = members[0][1]
    chosen: Backend = "python" if backend == "python" or first.flavor != "tensorrt" else "tensorrt"
    library = _plugin_for(members, plugin)
    buckets: dict[_Bucket, list[tuple[Path, EngineManifest]]] = defaultdict(list)
    for engine, manifest in members:
        for index, profile in enumerate(manifest.profiles):
            shapes = (_shape(profile.min), _shape(profile.opt), _shape(profile.max))
            buckets[(*shapes, index)].append((engine, manifest))
    base = model_name_from_text(name or members[0][0].stem)
    raw_models, files = [], {}
    for (low, best, high, index), engines in buckets.items():
        stem = engines[0][0].stem
        if name is not None or len(engines[0][1].profiles) > 1:
            stem = f"{base if name is not None else stem}_{high[2]}x{high[3]}"
        raw_name = base if len(buckets) == 1 else model_name_from_text(stem)
        if raw_name in files:
            raw_name = f"{raw_name}_profile{index}"
        plans, parameters, contents = _raw_contents(engines, chosen, library)
        raw_models.append(
            RawModelSpec(
                name=raw_name,
                backend=chosen,
                min=low,
                opt=best,
                max=high,
                dynamic_batch=next(t for t in engines[0][1].io_tensors if t.mode == "input").shape[0] < 0,
                plans=plans,
                parameters=parameters,
                instances=instances,
                profile=index,
            )
        )
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
    )


def _raw_contents(
    engines: list[tuple[Path, EngineManifest]], backend: Backend, plugin: Path | None
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
        parameters = {"source": engine.name, "device": "auto"}
        files = _engine_files(engine)
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


def _plugin_for(members: list[tuple[Path, EngineManifest]], plugin: Path | None) -> Path | None:
    from trt_hspan.files import sha256_from_file
    from trt_hspan.native.plugin import default_plugin_path, plugin_info_from_library

    records = [(engine, manifest.plugin) for engine, manifest in members if manifest.plugin is not None]
    if not records:
        return None
    path = plugin or default_plugin_path()
    plugin_info_from_library(path)
    actual = sha256_from_file(path)
    for engine, record in records:
        assert record is not None
        if record.sha256 != actual:
            raise HspanError(
                path,
                f"SHA-256 is {actual[:12]}..., but {engine.name} was built with {record.sha256[:12]}...",
                "name the plugin library that it was built with: --plugin",
            )
    return path


def _engine_files(engine: Path) -> dict[str, Path]:
    """The plan with all that `open_runner` needs beside it."""
    from trt_hspan.engine.manifest import manifest_path, verify_manifest

    manifest = verify_manifest(engine)
    beside = (engine, manifest_path(engine), engine.parent / manifest.onnx_file)
    return {path.name: path for path in beside}


def _shape(values: tuple[int, ...]) -> Shape:
    n, c, h, w = values
    return (n, c, h, w)


def _require_distinct(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            "serve export", f"two models would be called {twice[0]}", "rename the engines' files"
        )


def _tile_limits(probed: ProbedSource, tile: ImageSize | None) -> list[tuple[Shape, Shape]]:
    """Smallest and largest (N, 3, H, W) of a tile, of each range that takes one of at most `tile`."""
    limits = [_limited(low, high, tile) for low, high in probed.shape_ranges]
    if tile is not None and not any(_takes(high, tile) for _, high in probed.shape_ranges):
        raise UsageError("--tile", f"{tile} is more than the network takes", "give a smaller one")
    return list(dict.fromkeys(limits))


def _limited(low: ShapeLimit, high: ShapeLimit, tile: ImageSize | None) -> tuple[Shape, Shape]:
    least = [side if side is not None else SMALLEST_SIDE for side in low[2:]]
    most = [
        max(min(limit or size, size) if tile else limit or size, smallest)
        for limit, size, smallest in zip(high[2:], tile or ImageSize(CPU_TILE, CPU_TILE), least, strict=True)
    ]
    return (low[0] or 1, 3, least[0], least[1]), (high[0] or CPU_BATCH, 3, most[0], most[1])


def _takes(high: ShapeLimit, tile: ImageSize) -> bool:
    return all(limit is None or side <= limit for side, limit in zip(tile, high[2:], strict=True))
