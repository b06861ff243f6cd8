"""How far two pictures are apart, in float64.

Two families that must not be mixed up:

- Quality against ground truth follows the protocol of the official EDSR and HSPAN code, and with it of the
  published tables: 8-bit pictures, luma only, `scale` pixels cropped on each side.
- Agreement of two backends compares their raw outputs on [0, 1], neither clamped nor rounded nor cropped, so that
  no rounding hides a difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.sizes import ImageSize

Float64Array = npt.NDArray[np.float64]
Uint8Array = npt.NDArray[np.uint8]

# ITU-R BT.601 luma of RGB in 0..255, as MATLAB's rgb2ycbcr and the official code weigh it.
LUMA_WEIGHTS: Final = np.array([65.738, 129.057, 25.064]) / 256.0
LUMA_OFFSET: Final = 16.0

# Wang, Bovik, Sheikh & Simoncelli, "Image quality assessment", IEEE TIP 13(4), 2004, section III-C.
_SSIM_WINDOW: Final = 11
_SSIM_SIGMA: Final = 1.5
_SSIM_C1: Final = (0.01 * 255.0) ** 2
_SSIM_C2: Final = (0.03 * 255.0) ** 2


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far a tensor is from a reference, both nominally in [0, 1].

    Attributes:
        psnr_db: -10 log10(mean squared error), peak 1; infinite when equal, NaN when `nan_count` > 0.
        max_abs_error: largest absolute difference; NaN when `nan_count` > 0.
        mean_abs_error: mean absolute difference; NaN when `nan_count` > 0.
        nan_count: values that are NaN or infinite, of both tensors together.
    """

    psnr_db: float
    max_abs_error: float
    mean_abs_error: float
    nan_count: int


def default_bar_db(precision: str) -> float:
    """The PSNR in dB that a network's worst picture has to reach against FP32 PyTorch, unless the user says another.

    50 dB is a mean error of a third of an 8-bit gray level. "int8" and "fp8" need 40 dB, one level: steps of
    8 bits inside the network leave an error of that order, which costs little against ground truth (--budget-db
    limits that).
    """
    return 40.0 if precision in ("int8", "fp8") else 50.0


def require_bar(min_psnr_db: float | None) -> None:
    """Raises: UsageError when the bar is infinite or no number."""
    if min_psnr_db is not None and not math.isfinite(min_psnr_db):
        raise UsageError("--min-psnr", f"got {min_psnr_db}, expected a number of decibels")


def agreement(result: npt.NDArray[np.floating], reference: npt.NDArray[np.floating]) -> Agreement:
    """Compares two tensors of the same shape, in float64.

    Raises:
        HspanError: different shapes, or no values.

    Example:
        >>> import numpy as np
        >>> from trt_hspan.evaluation.metrics import agreement
        >>> reference = np.full((1, 3, 4, 6), 0.5, np.float32)
        >>> agreement(reference + np.float32(0.125), reference).max_abs_error
        0.125
    """
    if result.shape != reference.shape or result.size == 0:
        raise HspanError(
            "compare", f"expected two tensors of the same shape, got {result.shape} and {reference.shape}"
        )
    nan_count = sum(int(a.size - np.count_nonzero(np.isfinite(a))) for a in (result, reference))
    if nan_count:
        return Agreement(
            psnr_db=math.nan, max_abs_error=math.nan, mean_abs_error=math.nan, nan_count=nan_count
        )
    difference = result.astype(np.float64) - reference.astype(np.float64)
    mean_squared_error = float(np.mean(np.square(difference)))
    np.abs(difference, out=difference)
    return Agreement(
        psnr_db=_db_from_mean_squared_error(mean_squared_error),
        max_abs_error=float(difference.max()),
        mean_abs_error=float(difference.mean()),
        nan_count=0,
    )


def _db_from_mean_squared_error(mean_squared_error: float) -> float:
    return math.inf if mean_squared_error == 0.0 else -10.0 * math.log10(mean_squared_error)


#: A PSNR-Y that stands for infinity: one value of an 8-bit picture that is one step off gives less.
EXACT_DB: Final = 150.0


def mean_psnr_y(values_db: Sequence[float], references_db: Sequence[float]) -> float:
    """The mean PSNR-Y over the pictures that the reference does not restore exactly; finite, or NaN when one is NaN.

    A difference of two infinities is no loss. Where the reference restores every picture, all are taken.

    Args:
        values_db: one of each picture; each counts as `EXACT_DB` at most.
        references_db: what the reference reaches, in the same order.
    """
    capped, restored = np.minimum(values_db, EXACT_DB), np.asarray(references_db) >= EXACT_DB
    return float(np.mean(capped if restored.all() else capped[~restored]))


def luma_from_rgb(image: Uint8Array) -> Float64Array:
    """(H, W, 3) uint8 RGB -> (H, W) float64 luma in 16..235, not rounded.

    Example:
        >>> import numpy as np
        >>> from trt_hspan.evaluation.metrics import luma_from_rgb
        >>> luma_from_rgb(np.zeros((1, 2, 3), np.uint8))
        array([[16., 16.]])
    """
    return LUMA_OFFSET + image.astype(np.float64) @ LUMA_WEIGHTS


def require_measurable(size: ImageSize, scale: int, where: object) -> None:
    """Raises: HspanError when less than SSIM's 11x11 window is left after cropping `scale` pixels on each side."""
    height, width = (max(0, side - 2 * scale) for side in size)
    if min(height, width) < _SSIM_WINDOW:
        raise HspanError(
            where,
            f"{size} pixels leave {height}x{width} after "
            f"cropping {scale} on each side, SSIM needs {_SSIM_WINDOW}x{_SSIM_WINDOW}",
            "evaluate larger pictures",
        )


def _cropped_lumas(image: Uint8Array, truth: Uint8Array, scale: int) -> tuple[Float64Array, Float64Array]:
    if image.shape != truth.shape or image.ndim != 3 or image.shape[2] != 3:
        raise HspanError(
            "metrics", f"expected two (H, W, 3) pictures of the same size, got {image.shape}, {truth.shape}"
        )
    require_measurable(ImageSize(*image.shape[:2]), scale, "metrics")
    inner = slice(scale, -scale)
    return luma_from_rgb(image[inner, inner]), luma_from_rgb(truth[inner, inner])


def psnr_y(image: Uint8Array, truth: Uint8Array, scale: int) -> float:
    """PSNR of the luma in dB as the published tables give it; infinite for equal pictures.

    With d = (image - truth) / 255 per channel: -10 log10(mean over pixels of (weights . d)^2), weights
    (65.738, 129.057, 25.064) / 256, after cropping `scale` pixels on each side.

    Args:
        image: (H, W, 3) uint8: the network's output times 255, clamped, rounded.
        truth: (H, W, 3) uint8.
        scale: the network's scale; the width of the border that is left out.

    Raises:
        HspanError: different sizes, or less than 11x11 pixels are left after cropping.

    Example:
        >>> import numpy as np
        >>> from trt_hspan.evaluation.metrics import psnr_y
        >>> truth = np.full((24, 24, 3), 128, np.uint8)
        >>> round(psnr_y(truth + np.uint8(1), truth, scale=2), 2)
        49.45
    """
    ours, theirs = _cropped_lumas(image, truth, scale)
    return _db_from_mean_squared_error(float(np.mean(np.square((ours - theirs) / 255.0))))


def ssim_y(image: Uint8Array, truth: Uint8Array, scale: int) -> float:
    """Structural similarity of the luma, the one of the published tables.

    Wang et al. 2004: 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, dynamic range 255, biased
    (population) moments, averaged over the positions where the window fits; borders of `scale` are left out
    first.

    Args:
        image: (H, W, 3) uint8.
        truth: (H, W, 3) uint8.
        scale: as in `psnr_y`.

    Returns:
        At most 1; 1 for equal pictures.

    Raises:
        HspanError: different sizes, or less than 11x11 pixels are left after cropping.

    Example:
        >>> import numpy as np
        >>> from trt_hspan.evaluation.metrics import ssim_y
        >>> truth = np.full((24, 24, 3), 128, np.uint8)
        >>> ssim_y(truth, truth, scale=2)
        1.0
    """
    ours, theirs = _cropped_lumas(image, truth, scale)
    mean_x, mean_y = _blur(ours), _blur(theirs)
    variance_x = _blur(ours * ours) - mean_x * mean_x
    variance_y = _blur(theirs * theirs) - mean_y * mean_y
    covariance = _blur(ours * theirs) - mean_x * mean_y
    numerator = (2.0 * mean_x * mean_y + _SSIM_C1) * (2.0 * covariance + _SSIM_C2)
    denominator = (mean_x * mean_x + mean_y * mean_y + _SSIM_C1) * (variance_x + variance_y + _SSIM_C2)
    return float(np.mean(numerator / denominator))


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How close a picture is to ground truth; NaN for a network's output with NaN."""

    psnr_y_db: float
    ssim_y: float


def quality_of(image: Uint8Array | None, truth: Uint8Array, scale: int) -> Quality:
    """`psnr_y` and `ssim_y` of a picture; no image stands for an output with NaN."""
    if image is None:
        return Quality(psnr_y_db=math.nan, ssim_y=math.nan)
    return Quality(psnr_y_db=psnr_y(image, truth, scale), ssim_y=ssim_y(image, truth, scale))


def mean_quality(qualities: Sequence[Quality], references: Sequence[Quality]) -> Quality:
    """The means over pictures, of PSNR-Y as `mean_psnr_y` forms it with the references."""
    reached = [quality.psnr_y_db for quality in references]
    return Quality(
        psnr_y_db=mean_psnr_y([quality.psnr_y_db for quality in qualities], reached),
        ssim_y=float(np.mean([quality.ssim_y for quality in qualities])),
    )


def _gaussian_window() -> Float64Array:
    x = np.arange(_SSIM_WINDOW) - (_SSIM_WINDOW - 1) / 2
    window = np.exp(-(x * x) / (2.0 * _SSIM_SIGMA**2))
    normalized: Float64Array = window / window.sum()
    return normalized


def _blur(plane: Float64Array) -> Float64Array:
    """(H, W) -> (H - 10, W - 10): the separable Gaussian where its window fits."""
    height, width = (size - _SSIM_WINDOW + 1 for size in plane.shape)
    rows = np.zeros((height, plane.shape[1]))
    blurred = np.zeros((height, width))
    for i, weight in enumerate(_gaussian_window()):
        rows += weight * plane[i : i + height]
    for i, weight in enumerate(_gaussian_window()):
        blurred += weight * rows[:, i : i + width]
    return blurred
