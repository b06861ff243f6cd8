"""A network on the benchmark sets of the published tables: PSNR-Y and SSIM of each picture, resumable."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError
from trt_hspan.evaluation.datasets import Sample, benchmark_sets
from trt_hspan.evaluation.metrics import Quality, mean_quality, quality_of, require_measurable
from trt_hspan.evaluation.resize import bicubic_pixels
from trt_hspan.files import check_writable, error_from_os_error, sha256_from_file, write_text
from trt_hspan.media.pixels import PixelFormat
from trt_hspan.records import MistypedError, dataclass_from_json, json_text
from trt_hspan.runtime.runner import Runner
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.upscaler import OnTile, Upscaler

OFFICIAL: Final = UpscaleOptions(protocol="official")
# What two runs must have in common to share a file of results; the network's file may have moved.
_SAME_RUN: Final = ("sha256", "scale", "res_scale", "protocol", "tile", "self_ensemble")


@dataclass(frozen=True, kw_only=True)
class BenchmarkPicture:
    """One picture.

    Attributes:
        set, name: where it is.
        height, width: of the input, in pixels.
        quality, bicubic: of the network's result and of bicubic interpolation, against ground truth; at scale 1 the
            latter is the input itself.
        seconds: wall time of the network, without reading and measuring.
        remark: what is odd about it, if anything.
        sha256: of the ground truth's file, and of the input's if it has one.
    """

    set: str
    name: str
    height: int
    width: int
    quality: Quality
    bicubic: Quality
    seconds: float
    remark: str | None
    sha256: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BenchmarkSet:
    """The means over the pictures of a set, of a PSNR-Y over those where it is finite; seconds are a sum."""

    name: str
    pictures: int
    quality: Quality
    bicubic: Quality
    seconds: float


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """What `evaluate` measured.

    Attributes:
        network, sha256: where it comes from, and the hash of its file.
        backend: label of what ran it.
        scale, res_scale: of the network; a residual scale that its file does not say is None.
        protocol, tile, self_ensemble: how pictures went through it, as `UpscaleOptions` has them.
        complete: whether all pictures of the sets are here.
        sets: the means, of the pictures that are here.
        pictures: set by set.
    """

    network: str
    sha256: str | None
    backend: str
    scale: int
    res_scale: float | None
    protocol: str
    tile: str
    self_ensemble: bool
    complete: bool = False
    sets: tuple[BenchmarkSet, ...] = ()
    pictures: tuple[BenchmarkPicture, ...] = ()


def evaluate(
    runner: Runner,
    data: str | os.PathLike[str],
    sets: Sequence[str] = (),
    *,
    options: UpscaleOptions = OFFICIAL,
    results: Path | None = None,
    on_progress: Callable[[str, float, float], None] = lambda *_: None,
) -> BenchmarkReport:
    """Runs a network on benchmark sets and holds its results against ground truth, by the official code's protocol.

    Results are rounded to 8 bits; see `psnr_y` and `ssim_y` for the rest. The mean of a set is that of its pictures'
    PSNR-Y, as the official code prints it.

    Example:
        >>> from trt_hspan.data import DEMO_PHOTOGRAPH
        >>> from trt_hspan.evaluation.benchmark import evaluate
        >>> from trt_hspan.runtime.opening import open_runner
        >>> report = evaluate(open_runner("hspan-tiny-x4"), DEMO_PHOTOGRAPH.parent)
        >>> report.sets[0].quality.psnr_y_db > report.sets[0].bicubic.psnr_y_db
        True

    Args:
        runner: of the network, not active yet.
        data, sets: as `benchmark_sets` takes them.
        options: how pictures go through the network. `OFFICIAL` cuts them as the official code's `--chop` does, from
            which the published figures come.
        results: a JSON file that is written whole after each picture. Pictures that it already contains are not run
            again, where they, the network and the options are still the same.
        on_progress: called with the picture, pictures done, and pictures in all.

    Raises:
        HspanError: as `benchmark_sets`; a picture cannot be read, does not fit the network, or is too small to be
            measured (all checked before the first run); a result is NaN; the file of results is of another network or
            other options.
    """
    if results is not None:
        check_writable(results)
    with runner:
        upscaler = Upscaler(runner, options)
        samples = [
            (name, sample)
            for name, samples in benchmark_sets(data, upscaler.scale, sets).items()
            for sample in samples
        ]
        for name, sample in samples:
            _require_usable(sample, upscaler, f"{name}/{sample.name}")
        report = _head(upscaler)
        stored = _stored_pictures(results, report)
        for done, (name, sample) in enumerate(samples):
            what = f"{name}/{sample.name}"
            on_progress(what, done, len(samples))

            def on_tile(finished: int, count: int, what: str = what, done: int = done) -> None:
                on_progress(what, done + finished / count, len(samples))

            hashes = _hashes(sample)
            picture = stored.get((name, sample.name, *hashes))
            if picture is None:
                picture = _measured(upscaler, name, sample, hashes, on_tile)
            pictures = (*report.pictures, picture)
            complete = len(pictures) == len(samples)
            report = replace(report, pictures=pictures, sets=_means(pictures), complete=complete)
            if results is not None:
                write_text(results, json_text(asdict(report)) + "\n")
    return report


def _require_usable(sample: Sample, upscaler: Upscaler, what: str) -> None:
    """Raises: HspanError for a picture that cannot be evaluated, before the first run."""
    size = sample.size()
    if sample.scale == 1 and sample.low_resolution is None:
        raise HspanError(
            what,
            "is ground truth without an input, and a network of scale 1 needs one that is worse",
            f"put inputs beside HR, as LR_bicubic/X1/{sample.name}x1.png",
        )
    try:
        upscaler.plan(size, what=what)
    except HspanError as error:
        if upscaler.options.protocol == "tiles" and upscaler.options.tile != "none":
            raise
        raise HspanError(error.where, error.what, "take --protocol tiles") from error
    require_measurable(size.scaled(sample.scale), sample.scale, what)


def _head(upscaler: Upscaler) -> BenchmarkReport:
    runner, options = upscaler.runner, upscaler.options
    file = Path(runner.where)
    return BenchmarkReport(
        network=runner.where,
        sha256=sha256_from_file(file) if file.is_file() else runner.source_sha256,
        backend=runner.label,
        scale=upscaler.scale,
        res_scale=runner.res_scale,
        protocol=options.protocol,
        tile=str(options.tile if isinstance(options.tile, str) else ImageSize(*options.tile)),
        self_ensemble=options.self_ensemble,
    )


def _hashes(sample: Sample) -> tuple[str, ...]:
    files = (sample.ground_truth, sample.low_resolution)
    return tuple(sha256_from_file(file) for file in files if file is not None)


def _stored_pictures(
    results: Path | None, report: BenchmarkReport
) -> dict[tuple[str, ...], BenchmarkPicture]:
    """What a file of results contains, by set, name and hashes.

    Raises:
        HspanError: it is no file of results, or of another network or other options than the report.
    """
    if results is None or not results.exists():
        return {}
    try:
        document = json.loads(results.read_bytes())
        entries, head = list(document["pictures"]), {name: document[name] for name in _SAME_RUN}
    except OSError as error:
        raise error_from_os_error(results, error, action="read") from error
    except (ValueError, KeyError, TypeError) as error:
        raise HspanError(results, "exists and is no file of results", "name another file") from error
    for name, value in head.items():
        if value != getattr(report, name):
            raise HspanError(
                results,
                f"is of another run, with {name.replace('_', ' ')} {value}, not {getattr(report, name)}",
                "name another file, or remove this one",
            )
    stored = {}
    for entry in entries:
        with contextlib.suppress(MistypedError):  # a figure that is not finite
            picture = dataclass_from_json(entry, BenchmarkPicture)
            stored[(picture.set, picture.name, *picture.sha256)] = picture
    return stored


def _measured(
    upscaler: Upscaler, name: str, sample: Sample, hashes: tuple[str, ...], on_tile: OnTile
) -> BenchmarkPicture:
    low, truth = sample.load()
    assert truth is not None
    what = f"{name}/{sample.name}"
    pixels = PixelFormat.of(low, where=f"{upscaler.runner.where} on {what}")
    started = time.perf_counter()
    result = upscaler.whole(low, pixels, on_tile=on_tile, what=what)
    seconds = time.perf_counter() - started
    quality, remark = quality_of(result, truth, sample.scale), sample.remark(low, truth)
    if quality.psnr_y_db == math.inf:
        remark = f"{sample.name}: restored exactly, so it is not in the mean PSNR-Y"
    return BenchmarkPicture(
        set=name,
        name=sample.name,
        height=low.shape[0],
        width=low.shape[1],
        quality=quality,
        bicubic=quality_of(bicubic_pixels(low, sample.scale), truth, sample.scale),
        seconds=seconds,
        remark=remark,
        sha256=hashes,
    )


def _means(pictures: Sequence[BenchmarkPicture]) -> tuple[BenchmarkSet, ...]:
    sets: dict[str, list[BenchmarkPicture]] = {}
    for picture in pictures:
        sets.setdefault(picture.set, []).append(picture)
    return tuple(
        BenchmarkSet(
            name=name,
            pictures=len(own),
            quality=mean_quality([p.quality for p in own], [p.quality for p in own]),
            bicubic=mean_quality([p.bicubic for p in own], [p.bicubic for p in own]),
            seconds=sum(picture.seconds for picture in own),
        )
        for name, own in sets.items()
    )
