"""Does a network on one backend compute what it computes in PyTorch? Owns the comparison; prints nothing.

Polygraphy's Comparator does it picture by picture: both backends run, then their outputs are compared. So no
more than one picture's tensors are in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError
from trt_hspan.evaluation.datasets import Sample
from trt_hspan.evaluation.metrics import Agreement, agreement, psnr_y, require_measurable, ssim_y
from trt_hspan.evaluation.polygraphy_adapter import run_and_compare
from trt_hspan.runtime.images import image_from_tensor, tensor_from_image
from trt_hspan.runtime.memory import require_memory
from trt_hspan.runtime.runner import CHANNELS, Float32Array, Runner


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How close an output is to ground truth, by the official protocol (see `metrics`); NaN for one with NaN."""

    psnr_y_db: float
    ssim_y: float


@dataclass(frozen=True, kw_only=True)
class PictureReport:
    """One picture.

    Attributes:
        name: as the data set calls it.
        height, width: of the input, in pixels.
        agreement: candidate against reference, on raw outputs.
        reference_quality, candidate_quality: each against ground truth; None without one.
    """

    name: str
    height: int
    width: int
    agreement: Agreement
    reference_quality: Quality | None
    candidate_quality: Quality | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All pictures together.

    Attributes:
        worst_psnr_db: the smallest PSNR of candidate against reference; this is what the bar applies to. NaN
            when any value is NaN.
        mean_psnr_db: mean of the pictures' PSNRs, as benchmark tables form it; infinite when one of them is.
        max_abs_error: largest of all.
        mean_abs_error: mean over all values of all pictures.
        nan_count: values that are NaN or infinite, in all outputs together.
        reference_quality, candidate_quality: means over the pictures that have ground truth; None without
        any.
    """

    worst_psnr_db: float
    mean_psnr_db: float
    max_abs_error: float
    mean_abs_error: float
    nan_count: int
    reference_quality: Quality | None
    candidate_quality: Quality | None


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """What `validate` found.

    Attributes:
        candidate: label of the engine or ONNX file, such as "ONNX Runtime 1.32.0, FP16, emulated on CPU".
        reference: label of PyTorch.
        emulated: the engine itself did not run.
        why_emulated: why not; None when no engine was asked for, or when it ran.
        precision: of the candidate.
        scale: of both.
        same_source: whether both come from one checkpoint; None when the candidate does not say.
        min_psnr_db: the bar.
        passed: the worst picture reaches the bar and nothing is NaN.
        total: all pictures together.
        pictures: one by one.
    """

    candidate: str
    reference: str
    emulated: bool
    why_emulated: str | None
    precision: str
    scale: int
    same_source: bool | None
    min_psnr_db: float
    passed: bool
    total: Summary
    pictures: tuple[PictureReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """Nested dictionaries and tuples of plain values, for JSON."""
        return asdict(self)


def validate(
    candidate: Runner,
    reference: Runner,
    samples: Sequence[Sample],
    *,
    min_psnr_db: float = 50.0,
    on_picture: Callable[[PictureReport], None] | None = None,
) -> ValidationReport:
    """Runs both networks on every picture and compares them.

    Args:
        candidate: the engine, or the ONNX file under ONNX Runtime.
        reference: the network in PyTorch.
        samples: at least one picture, made for the networks' scale.
        min_psnr_db: the bar for the worst picture; 50 dB is a mean error of a third of an 8-bit grey level.
        on_picture: called after each picture, for progress.

    Raises:
        HspanError: the scales differ, there are no pictures, a picture cannot be read, does not fit a network
            or would fill the memory (all told before the first run), or a backend fails.
    """
    scale = common_scale(candidate, reference)
    if not samples:
        raise HspanError("validate", "there are no pictures to compare on", "name some with --images")
    for sample in samples:
        height, width = sample.size()
        for runner in (reference, candidate):
            shape = (1, CHANNELS, height, width)
            runner.require_shape(shape, sample.name)
            require_memory(runner, shape, sample.name)
        if sample.ground_truth is not None:
            require_measurable(height * scale, width * scale, scale, sample.name)
    pictures = []
    with reference, candidate:
        for sample in samples:
            pictures.append(_compare_on(sample, candidate, reference, min_psnr_db))
            if on_picture is not None:
                on_picture(pictures[-1])
    total = _summary(pictures)
    return ValidationReport(
        candidate=candidate.label,
        reference=reference.label,
        emulated=candidate.emulated,
        why_emulated=candidate.why_emulated,
        precision=candidate.precision,
        scale=scale,
        same_source=None
        if candidate.source_sha256 is None
        else candidate.source_sha256 == reference.source_sha256,
        min_psnr_db=min_psnr_db,
        passed=total.worst_psnr_db >= min_psnr_db,  # NaN reaches no bar
        total=total,
        pictures=tuple(pictures),
    )


def common_scale(candidate: Runner, reference: Runner) -> int:
    """The scale of both networks. Raises: HspanError when they differ, or the reference does not say its own."""
    if reference.scale is None:
        raise HspanError(reference.where, "does not say its scale", "give a checkpoint")
    if candidate.scale not in (None, reference.scale):
        raise HspanError(
            candidate.where,
            f"has scale {candidate.scale}, but {reference.where} has scale {reference.scale}",
            "give the checkpoint that it was exported from",
        )
    return reference.scale


def _compare_on(sample: Sample, candidate: Runner, reference: Runner, min_psnr_db: float) -> PictureReport:
    low, truth = sample.load()
    outputs: list[Float32Array] = []
    measured: list[Agreement] = []

    def matches(expected: Float32Array, found: Float32Array) -> bool:
        outputs.extend((expected, found))
        measured.append(agreement(found, expected))
        return measured[0].psnr_db >= min_psnr_db

    run_and_compare(reference, candidate, tensor_from_image(low), matches)
    qualities = [None if truth is None else _quality(output, truth, sample.scale) for output in outputs]
    return PictureReport(
        name=sample.name,
        height=low.shape[0],
        width=low.shape[1],
        agreement=measured[0],
        reference_quality=qualities[0],
        candidate_quality=qualities[1],
    )


def _quality(output: Float32Array, truth: npt.NDArray[np.uint8], scale: int) -> Quality:
    if not np.isfinite(output).all():
        return Quality(psnr_y_db=math.nan, ssim_y=math.nan)
    image = image_from_tensor(output)
    return Quality(psnr_y_db=psnr_y(image, truth, scale), ssim_y=ssim_y(image, truth, scale))


def _summary(pictures: Sequence[PictureReport]) -> Summary:
    measured = [picture.agreement for picture in pictures]
    pixels = np.array([picture.height * picture.width for picture in pictures], dtype=np.float64)
    psnrs = np.array([m.psnr_db for m in measured])
    errors = np.array([m.mean_abs_error for m in measured])
    return Summary(
        worst_psnr_db=float(psnrs.min()),  # NaN wins over every number
        mean_psnr_db=float(psnrs.mean()),
        max_abs_error=float(np.max([m.max_abs_error for m in measured])),
        mean_abs_error=float((errors * pixels).sum() / pixels.sum()),
        nan_count=sum(m.nan_count for m in measured),
        reference_quality=_mean_quality([picture.reference_quality for picture in pictures]),
        candidate_quality=_mean_quality([picture.candidate_quality for picture in pictures]),
    )


def _mean_quality(qualities: Sequence[Quality | None]) -> Quality | None:
    known = [quality for quality in qualities if quality is not None]
    if not known:
        return None
    return Quality(
        psnr_y_db=float(np.mean([quality.psnr_y_db for quality in known])),
        ssim_y=float(np.mean([quality.ssim_y for quality in known])),
    )
