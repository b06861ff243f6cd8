"""From files and their comparison to the report's rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx

from trt_hspan.engine.manifest import EngineManifest, read_manifest
from trt_hspan.evaluation.compare import ValidationReport
from trt_hspan.evaluation.datasets import Sample
from trt_hspan.evaluation.layers import LAYER_SIDE, LayerError, layer_errors
from trt_hspan.evaluation.report.evidence import EvidenceCollector
from trt_hspan.evaluation.report.page import ReportInput, Row, write_report
from trt_hspan.graph import load_onnx
from trt_hspan.media.pixels import tensor_from_image
from trt_hspan.model.checkpoint import load_model
from trt_hspan.runtime.runner import Float32Array, Runner


def labels_of(files: Sequence[Path], runners: Sequence[Runner]) -> list[str]:
    """A short name for each network: its precision, with the file's name where that is not enough."""
    precisions = [runner.precision.upper() for runner in runners]
    names = Counter(path.name for path in files)
    return [
        precision
        if precisions.count(precision) == 1
        else f"{precision} {path.stem if names[path.name] == 1 else path}"
        for precision, path in zip(precisions, files, strict=True)
    ]


def written_report(
    folder: Path,
    *,
    checkpoint: str,
    images: str,
    files: Sequence[Path],
    runners: Sequence[Runner],
    reports: Sequence[ValidationReport],
    evidence: EvidenceCollector,
    sample: Sample,
    reference: Runner,
) -> Path:
    """Measures the layers of each network on the middle of one picture, and writes the page.

    Args:
        folder: for `index.html` and `report.json`.
        checkpoint, images: as the user named them.
        files, runners, reports: of the networks, in the same order.
        evidence: gathered while the networks ran.
        sample: the picture for the layers.
        reference: PyTorch; its residual scale is used.

    Raises:
        HspanError: a file cannot be read or written, or ONNX Runtime fails.
    """
    network = load_model(checkpoint, res_scale=0.1 if reference.res_scale is None else reference.res_scale)
    rows = []
    size = ""
    for path, runner, report, label in zip(files, runners, reports, labels_of(files, runners), strict=True):
        manifest, model = _files_of(path)
        batch = _middle(sample, runner)
        layers: list[LayerError] = []
        if batch is not None:
            layers = layer_errors(model, network, batch)
            size = f"{batch.shape[2]}\N{MULTIPLICATION SIGN}{batch.shape[3]}"
        rows.append(
            Row(
                label=label,
                file=path.name,
                size_bytes=path.stat().st_size,
                manifest=manifest,
                report=report,
                layers=layers,
            )
        )
    content = ReportInput(
        checkpoint=checkpoint,
        images=images,
        rows=rows,
        evidence=evidence,
        layer_picture=f"the middle {size} input pixels of {sample.name}",
    )
    return write_report(folder, content)


def _files_of(path: Path) -> tuple[EngineManifest | None, onnx.ModelProto]:
    if path.suffix.lower() != ".plan":
        return None, load_onnx(path)
    manifest = read_manifest(path)
    return manifest, load_onnx(path.parent / manifest.onnx_file)


def _middle(sample: Sample, runner: Runner) -> Float32Array | None:
    """(1, 3, h, w): the middle of the picture; None when the network takes only inputs that are larger than it."""
    image, _ = sample.load()
    height, width = image.shape[:2]
    rows, columns = (
        fixed or min(LAYER_SIDE, size)
        for fixed, size in zip(runner.fixed_shape[2:], image.shape[:2], strict=True)
    )
    if rows > height or columns > width or runner.fixed_shape[0] not in (None, 1):
        return None
    top, left = (height - rows) // 2, (width - columns) // 2
    return tensor_from_image(image[top : top + rows, left : left + columns])
