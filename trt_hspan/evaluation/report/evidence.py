"""What the report shows of each picture, gathered while the outputs are in memory.

Only encoded pictures and counts are kept, so any number of pictures can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from trt_hspan.evaluation.compare import Outputs, PictureReport
from trt_hspan.evaluation.report.pictures import (
    Float64Array,
    Uint8Array,
    crop_uri,
    heat_map,
    heat_uri,
    photograph_uri,
    worst_window,
)
from trt_hspan.media.pixels import image_from_tensor
from trt_hspan.runtime.runner import Float32Array

# Pictures with sliders on the page; its table lists all.
MOST_PICTURES: Final = 12
# Edges of the histogram of absolute errors, in gray levels (1/255), ten to a decade.
HISTOGRAM_EDGES: Final = tuple(10.0 ** (exponent / 10) for exponent in range(-50, 21))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One picture to slide over another."""

    key: str
    label: str
    uri: str


@dataclass(frozen=True, kw_only=True)
class Detail:
    """Where one network's error is largest, in pixels of the output; crops as data URIs."""

    label: str
    top: int
    left: int
    side_rows: int
    side_columns: int
    mean_error_levels: float
    crops: tuple[Layer, ...]


@dataclass(frozen=True, kw_only=True)
class PictureEvidence:
    """One picture on the page; sizes of the output. Maps, details and reports: one for each network."""

    name: str
    height: int
    width: int
    layers: tuple[Layer, ...]  # bicubic, FP32, ground truth where there is one, and each network's output
    heat_maps: tuple[Layer, ...]
    details: tuple[Detail, ...]
    reports: tuple[PictureReport, ...]
    worst_psnr_db: float  # NaN counts as smaller than any


class EvidenceCollector:
    """Gathers the evidence as the `on_outputs` of `validate_all`.

    Args:
        labels: of the candidates, all different.
        most_pictures: pictures to keep; of more, those on which a network is worst.

    Attributes:
        histograms: for each candidate, values in each cell of `HISTOGRAM_EDGES`; values beyond its ends count in
            the first and last cell.
        equal_values, values: for each candidate, how many were exactly FP32's, and how many there were.
    """

    def __init__(self, labels: Sequence[str], most_pictures: int = MOST_PICTURES) -> None:
        self._labels, self._most = tuple(labels), most_pictures
        self._pictures: list[PictureEvidence] = []
        self.seen = 0
        self.histograms = [np.zeros(len(HISTOGRAM_EDGES) - 1, dtype=np.int64) for _ in labels]
        self.equal_values = [0] * len(self._labels)
        self.values = [0] * len(self._labels)

    def __call__(self, outputs: Outputs) -> None:
        self.seen += 1
        errors = [_error_levels(candidate, outputs.reference) for candidate in outputs.candidates]
        for index, error in enumerate(errors):
            self._count(index, error)
        worst = min(_rank(report.agreement.psnr_db) for report in outputs.reports)
        if len(self._pictures) >= self._most:
            if worst >= max(_rank(picture.worst_psnr_db) for picture in self._pictures):
                return
            self._pictures.remove(max(self._pictures, key=lambda picture: _rank(picture.worst_psnr_db)))
        self._pictures.append(self._evidence(outputs, errors, worst))

    @property
    def pictures(self) -> tuple[PictureEvidence, ...]:
        """The pictures, worst first."""
        return tuple(sorted(self._pictures, key=lambda picture: _rank(picture.worst_psnr_db)))

    def _count(self, index: int, error: Float64Array) -> None:
        finite = error[np.isfinite(error)]
        nonzero = np.clip(finite[finite > 0], HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
        self.histograms[index] += np.histogram(nonzero, bins=np.array(HISTOGRAM_EDGES))[0]
        self.equal_values[index] += finite.size - nonzero.size
        self.values[index] += error.size

    def _evidence(self, outputs: Outputs, errors: Sequence[Float64Array], worst: float) -> PictureEvidence:
        images: list[tuple[str, str, Uint8Array]] = [
            ("bicubic", "Bicubic", outputs.bicubic),
            ("fp32", "FP32 reference", _shown(outputs.reference)),
        ]
        if outputs.truth is not None:
            images.append(("truth", "Ground truth", outputs.truth))
        references = tuple(images)
        networks = [_shown(candidate) for candidate in outputs.candidates]
        for index, image in enumerate(networks):
            images.append((f"network{index}", self._labels[index], image))
        planes = [error.max(axis=2) for error in errors]
        return PictureEvidence(
            name=outputs.sample.name,
            height=int(outputs.reference.shape[2]),
            width=int(outputs.reference.shape[3]),
            layers=tuple(Layer(key=k, label=label, uri=photograph_uri(i)) for k, label, i in images),
            heat_maps=tuple(
                Layer(key=f"network{index}", label=self._labels[index], uri=heat_uri(plane))
                for index, plane in enumerate(planes)
            ),
            details=tuple(
                _detail(self._labels[index], planes[index], references, image)
                for index, image in enumerate(networks)
            ),
            reports=outputs.reports,
            worst_psnr_db=worst,
        )


def _detail(
    label: str, plane: Float64Array, references: Sequence[tuple[str, str, Uint8Array]], network: Uint8Array
) -> Detail:
    rows, columns = worst_window(plane)
    crops = [
        Layer(key=key, label=text, uri=crop_uri(image[rows, columns]))
        for key, text, image in (*references, ("network", label, network))
    ]
    crops.append(Layer(key="error", label="Error", uri=crop_uri(heat_map(plane[rows, columns]))))
    return Detail(
        label=label,
        top=rows.start,
        left=columns.start,
        side_rows=rows.stop - rows.start,
        side_columns=columns.stop - columns.start,
        mean_error_levels=float(plane[rows, columns].mean()),
        crops=tuple(crops),
    )


def _error_levels(result: Float32Array, reference: Float32Array) -> Float64Array:
    """(1, 3, H, W) twice -> (H, W, 3) absolute difference in gray levels, before clamping and rounding."""
    difference = np.abs(result[0].astype(np.float64) - reference[0].astype(np.float64)) * 255.0
    moved: Float64Array = np.moveaxis(difference, 0, -1)
    return moved


def _shown(output: Float32Array) -> Uint8Array:
    """A network's output as a picture; pixels that are not finite are magenta."""
    image = image_from_tensor(np.nan_to_num(output, nan=0.0, posinf=0.0, neginf=0.0))
    image[~np.isfinite(output[0]).all(axis=0)] = (255, 0, 255)
    return image


def _rank(psnr_db: float) -> float:
    return -math.inf if math.isnan(psnr_db) else psnr_db
