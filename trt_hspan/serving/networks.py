"""What is to be served here: a network from one source, as raw models of the Python backend."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trt_hspan.errors import UsageError
from trt_hspan.runtime.runner import ShapeLimit
from trt_hspan.serving.engine_networks import Network, engine_files, model_name_from_text
from trt_hspan.serving.model_config import RawModelSpec, Shape, ShapeRange
from trt_hspan.serving.probe import ProbedSource, probe_source
from trt_hspan.sizes import ImageSize

#: Largest side of a tile on a CPU, where nothing else sets a limit; see docs/serving.md.
CPU_TILE: Final = 64
CPU_BATCH: Final = 4
SMALLEST_SIDE: Final = 8


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
        files |= engine_files(Path(source))
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
            ranges=(ShapeRange(min=low, opt=high, max=high),),
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
