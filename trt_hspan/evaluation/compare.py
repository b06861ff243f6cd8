"""Does a network on one backend compute what its reference computes?

Polygraphy's Comparator does it picture by picture: all backends run, then their outputs are compared. So no
more than one picture's tensors are in memory at a time. Pictures that are too large for one of the networks go
through all of them in the same tiles.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError
from trt_hspan.evaluation.datasets import Sample
from trt_hspan.evaluation.metrics import (
    EXACT_DB,
    Agreement,
    Quality,
    agreement,
    default_bar_db,
    mean_quality,
    quality_of,
    require_measurable,
)
from trt_hspan.evaluation.polygraphy_adapter import run_and_compare
from trt_hspan.evaluation.resize import bicubic_pixels
from trt_hspan.evaluation.shared_tiles import SharedTiles, shared_tiles
from trt_hspan.media.pixels import image_from_tensor, tensor_from_image
from trt_hspan.runtime.runner import Float32Array, Runner
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.options import DEFAULT_OPTIONS, UpscaleOptions
from trt_hspan.upscaling.upscaler import upscale_batch

#: A trained network is above bicubic interpolation; one that is so far below has other weights than it should.
FAR_BELOW_BICUBIC_DB: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class PictureReport:
    """One picture.

    Attributes:
        name: as the data set calls it.
        height, width: of the input, in pixels.
        agreement: candidate against reference, on raw outputs.
        reference_quality, candidate_quality, bicubic_quality: each against ground truth; None without one.
        tile: size of the tiles that both networks saw; None for the picture as a whole.
        reference_seconds, candidate_seconds: wall time of the runs, without loading.
    """

    name: str
    height: int
    width: int
    agreement: Agreement
    reference_quality: Quality | None
    candidate_quality: Quality | None
    bicubic_quality: Quality | None
    tile: ImageSize | None
    reference_seconds: float
    candidate_seconds: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All pictures together.

    Attributes:
        worst_psnr_db: the smallest PSNR of candidate against reference; this is what the bar applies to. NaN
            when any value is NaN.
        mean_psnr_db: mean of the pictures' PSNRs, as benchmark tables form it, over those that differ; infinite when
            none does.
        max_abs_error: largest of all.
        mean_abs_error: mean over all values of all pictures.
        nan_count: values that are NaN or infinite, in all outputs together.
        reference_quality, candidate_quality, bicubic_quality: means over the pictures that have ground truth, of PSNR-Y
            as `mean_psnr_y` forms them; None without any. Bicubic interpolation is what a network has to beat.
        psnr_y_loss_db: PSNR-Y of the reference less that of the candidate; None without ground truth.
        ssim_loss: likewise for SSIM.
        reference_seconds, candidate_seconds: sums over the pictures.
    """

    worst_psnr_db: float
    mean_psnr_db: float
    max_abs_error: float
    mean_abs_error: float
    nan_count: int
    reference_quality: Quality | None
    candidate_quality: Quality | None
    bicubic_quality: Quality | None
    psnr_y_loss_db: float | None
    ssim_loss: float | None
    reference_seconds: float
    candidate_seconds: float


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """What `validate` measured.

    Attributes:
        candidate: label of the engine or ONNX file, such as "ONNX Runtime 1.32.0, FP16, emulated on CPU".
        reference: label of the reference, such as "PyTorch 2.13.0, FP32".
        emulated: the engine itself did not run.
        why_emulated: why not; None when no engine was requested, or when it ran.
        precision: of the candidate.
        scale: of both.
        same_source: whether both come from one checkpoint; None when the candidate does not say.
        min_psnr_db: the bar.
        budget_db: the most PSNR-Y that may be lost; None without a budget.
        passed: the worst picture reaches the bar, the loss is within the budget, and nothing is NaN.
        total: all pictures together.
        pictures: one by one.
        remarks: what is odd about the pictures, one line each.
        warning: one line where it passed and is far worse than no network; None otherwise.
    """

    candidate: str
    reference: str
    emulated: bool
    why_emulated: str | None
    precision: str
    scale: int
    same_source: bool | None
    min_psnr_db: float
    budget_db: float | None
    passed: bool
    total: Summary
    pictures: tuple[PictureReport, ...]
    remarks: tuple[str, ...] = ()
    warning: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The networks' outputs on one picture; passed on while they are in memory.

    Attributes:
        sample: the picture.
        low: (H, W, 3) uint8.
        truth: (H * scale, W * scale, 3) uint8, or None.
        bicubic: (H * scale, W * scale, 3) uint8, interpolated from the input.
        reference: (1, 3, H * scale, W * scale) float32.
        candidates: likewise, one of each network.
        reports: one of each network.
    """

    sample: Sample
    low: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.uint8] | None
    bicubic: npt.NDArray[np.uint8]
    reference: Float32Array
    candidates: tuple[Float32Array, ...]
    reports: tuple[PictureReport, ...]


def validate_all(
    candidates: Sequence[Runner],
    reference: Runner,
    samples: Sequence[Sample],
    *,
    min_psnr_db: float | None = None,
    budget_db: float | None = None,
    options: UpscaleOptions = DEFAULT_OPTIONS,
    on_outputs: Callable[[Outputs], None] | None = None,
) -> list[ValidationReport]:
    """Runs all networks on every picture and compares each candidate with the reference.

    Example:
        >>> from trt_hspan import export_onnx
        >>> from trt_hspan.evaluation.compare import validate_all
        >>> from trt_hspan.evaluation.datasets import shipped_samples
        >>> from trt_hspan.runtime.opening import open_runner
        >>> candidate = open_runner(export_onnx("hspan-tiny-x2", "tiny.onnx", precision="fp16"))
        >>> (report,) = validate_all([candidate], open_runner("hspan-tiny-x2"), shipped_samples(2))
        >>> report.passed, report.same_source, report.precision
        (True, True, 'fp16')

    Args:
        candidates: engines, or ONNX files under ONNX Runtime.
        reference: the network in float32.
        samples: at least one picture, for the networks' scale.
        min_psnr_db: the bar for the worst picture; None is `default_bar_db` of each candidate's precision.
        budget_db: the most PSNR-Y against ground truth that a candidate may lose, as a mean over the pictures.
        options: tiles; all networks see the same ones, the smallest that any of them needs, and a picture that is
            too small for one of them grows for all.
        on_outputs: called after each picture, for progress and reports.

    Returns:
        One report for each candidate, in their order.

    Raises:
        HspanError: the scales differ, there are no pictures, a picture cannot be read, does not fit a network
            or would fill the memory, there is a budget and no ground truth (all checked before the first run), or
            a backend fails.
    """
    scale = common_scale(reference, candidates)
    if not samples:
        raise HspanError("validate", "there are no pictures to compare on", "name some with --images")
    if budget_db is not None and all(sample.ground_truth is None for sample in samples):
        raise HspanError(
            "--budget-db",
            "none of the pictures has a ground truth to lose PSNR-Y against",
            f"give a benchmark set: HR/NAME.png and LR_bicubic/X{scale}/NAMEx{scale}.png",
        )
    runners = (reference, *candidates)
    plans = []
    for sample in samples:
        size = sample.size()
        plans.append(shared_tiles(runners, size, options, what=sample.name))
        if sample.ground_truth is not None:
            require_measurable(size.scaled(scale), scale, sample.name)
    pictures_of: list[list[PictureReport]] = [[] for _ in candidates]
    remarks: list[str] = []
    with contextlib.ExitStack() as stack:
        for runner in runners:
            stack.enter_context(runner)
        for sample, plan in zip(samples, plans, strict=True):
            outputs = _compared(sample, candidates, reference, plan)
            remarks += _remarks(outputs)
            for pictures, report in zip(pictures_of, outputs.reports, strict=True):
                pictures.append(report)
            if on_outputs is not None:
                on_outputs(outputs)
    return [
        _report(candidate, reference, pictures, remarks, min_psnr_db=min_psnr_db, budget_db=budget_db)
        for candidate, pictures in zip(candidates, pictures_of, strict=True)
    ]


def _report(
    candidate: Runner,
    reference: Runner,
    pictures: Sequence[PictureReport],
    remarks: Sequence[str],
    *,
    min_psnr_db: float | None,
    budget_db: float | None,
) -> ValidationReport:
    total = _summary(pictures)
    bar_db = default_bar_db(candidate.precision) if min_psnr_db is None else min_psnr_db
    within_budget = budget_db is None or (
        total.psnr_y_loss_db is not None and total.psnr_y_loss_db <= budget_db
    )
    passed = total.worst_psnr_db >= bar_db and within_budget  # NaN reaches no bar
    sources = (candidate.source_sha256, reference.source_sha256)
    return ValidationReport(
        candidate=candidate.label,
        reference=reference.label,
        emulated=candidate.emulated,
        why_emulated=candidate.why_emulated,
        precision=candidate.precision,
        scale=reference.scale,
        same_source=None if None in sources else sources[0] == sources[1],
        min_psnr_db=bar_db,
        budget_db=budget_db,
        passed=passed,
        total=total,
        pictures=tuple(pictures),
        remarks=tuple(remarks),
        warning=_below_bicubic(total) if passed else None,
    )


def _below_bicubic(total: Summary) -> str | None:
    quality, bicubic = total.candidate_quality, total.bicubic_quality
    if (
        quality is None or bicubic is None or bicubic.psnr_y_db >= EXACT_DB
    ):  # at scale 1 the input may be the truth
        return None
    if quality.psnr_y_db >= bicubic.psnr_y_db - FAR_BELOW_BICUBIC_DB:
        return None
    return (
        f"its PSNR-Y is {quality.psnr_y_db:.2f} dB, that of bicubic interpolation {bicubic.psnr_y_db:.2f} dB: agreeing "
        "with its reference does not make its weights good; are they trained, at this scale and --res-scale?"
    )


def common_scale(reference: Runner, candidates: Sequence[Runner]) -> int:
    """The scale of all networks. Raises: HspanError when they differ."""
    for candidate in candidates:
        if candidate.scale != reference.scale:
            raise HspanError(
                candidate.where,
                f"has scale {candidate.scale}, but {reference.where} has scale {reference.scale}",
                "give the network that it was made from",
            )
    return reference.scale


def _compared(sample: Sample, candidates: Sequence[Runner], reference: Runner, tiles: SharedTiles) -> Outputs:
    low, truth = sample.load()
    size = ImageSize(*low.shape[:2])
    height, width = size.scaled(sample.scale)
    measured: list[Agreement] = []

    def infer(runner: Runner, batch: Float32Array) -> Float32Array:
        output = upscale_batch(runner, tiles.padded(batch), tiles.options, what=sample.name)
        return output[:, :, :height, :width]

    def matches(expected: Float32Array, output: Float32Array) -> bool:
        measured.append(agreement(output, expected))
        return measured[-1].nan_count == 0

    runs = run_and_compare([reference, *candidates], tensor_from_image(low), matches, infer=infer)
    bicubic = bicubic_pixels(low, sample.scale)
    bicubic_quality, *qualities = [
        None if truth is None else quality_of(image, truth, sample.scale)
        for image in (bicubic, *(_pixels(run.output) for run in runs))
    ]
    tile = tiles.options.tile if isinstance(tiles.options.tile, ImageSize) else None
    cut = None if tile is None or size.within(tile) == size else tile
    reports = tuple(
        PictureReport(
            name=sample.name,
            height=size.height,
            width=size.width,
            agreement=difference,
            reference_quality=qualities[0],
            candidate_quality=quality,
            bicubic_quality=bicubic_quality,
            tile=cut,
            reference_seconds=runs[0].seconds,
            candidate_seconds=run.seconds,
        )
        for difference, run, quality in zip(measured, runs[1:], qualities[1:], strict=True)
    )
    return Outputs(
        sample=sample,
        low=low,
        truth=truth,
        bicubic=bicubic,
        reference=runs[0].output,
        candidates=tuple(run.output for run in runs[1:]),
        reports=reports,
    )


def _remarks(outputs: Outputs) -> list[str]:
    """What is odd about a picture and its ground truth."""
    if outputs.truth is None:
        return []
    remark, name = outputs.sample.remark(outputs.low, outputs.truth), outputs.sample.name
    remarks = [] if remark is None else [remark]
    quality = outputs.reports[0].reference_quality
    if quality is not None and quality.psnr_y_db == math.inf:
        remarks.append(f"{name}: the reference restores it exactly, so it is not in the mean PSNR-Y")
    return remarks


def _pixels(output: Float32Array) -> npt.NDArray[np.uint8] | None:
    """None for an output with NaN."""
    return image_from_tensor(output) if np.isfinite(output).all() else None


def _summary(pictures: Sequence[PictureReport]) -> Summary:
    measured = [picture.agreement for picture in pictures]
    pixels = np.array([picture.height * picture.width for picture in pictures], dtype=np.float64)
    psnrs = np.array([m.psnr_db for m in measured])
    errors = np.array([m.mean_abs_error for m in measured])
    references = [picture.reference_quality for picture in pictures]
    reference = _mean(references, references)
    candidate = _mean([picture.candidate_quality for picture in pictures], references)
    return Summary(
        worst_psnr_db=float(psnrs.min()),  # NaN wins over every number
        mean_psnr_db=float(psnrs[psnrs < math.inf].mean())
        if (psnrs < math.inf).any()
        else float(psnrs.max()),
        max_abs_error=float(np.max([m.max_abs_error for m in measured])),
        mean_abs_error=float((errors * pixels).sum() / pixels.sum()),
        nan_count=sum(m.nan_count for m in measured),
        reference_quality=reference,
        candidate_quality=candidate,
        bicubic_quality=_mean([picture.bicubic_quality for picture in pictures], references),
        psnr_y_loss_db=None if not (reference and candidate) else reference.psnr_y_db - candidate.psnr_y_db,
        ssim_loss=None if not (reference and candidate) else reference.ssim_y - candidate.ssim_y,
        reference_seconds=sum(picture.reference_seconds for picture in pictures),
        candidate_seconds=sum(picture.candidate_seconds for picture in pictures),
    )


def _mean(qualities: Sequence[Quality | None], references: Sequence[Quality | None]) -> Quality | None:
    """Over the pictures that have ground truth; None without any."""
    measured = [q for q in qualities if q is not None]
    return mean_quality(measured, [r for r in references if r is not None]) if measured else None
