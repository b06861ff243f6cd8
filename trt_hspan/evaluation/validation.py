"""Files against their checkpoint in one call: opens the networks and pictures, compares, and writes the report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trt_hspan.engine.manifest import read_manifest
from trt_hspan.errors import UsageError
from trt_hspan.evaluation.compare import Outputs, ValidationReport, common_scale, validate_all
from trt_hspan.evaluation.datasets import Sample, samples_from_folder, shipped_samples
from trt_hspan.evaluation.layers import LAYER_SIDE, layer_errors
from trt_hspan.evaluation.metrics import require_bar
from trt_hspan.evaluation.report.evidence import EvidenceCollector
from trt_hspan.evaluation.report.page import PAGE_NAME, ReportInput, Row, require_report_tools, write_report
from trt_hspan.files import check_writable
from trt_hspan.graph import load_onnx
from trt_hspan.media.pixels import tensor_from_image
from trt_hspan.model.checkpoint import load_model
from trt_hspan.model.config import DEFAULT_RES_SCALE
from trt_hspan.model.hspan import HSPAN
from trt_hspan.runtime.opening import device_from_text, open_runner
from trt_hspan.runtime.runner import Float32Array, Runner
from trt_hspan.runtime.torch_runner import TorchRunner
from trt_hspan.upscaling.options import DEFAULT_OPTIONS, UpscaleOptions


@dataclass(frozen=True, kw_only=True)
class ValidationRequest:
    """What is compared with what.

    Args:
        checkpoint: a checkpoint file or preset, which PyTorch runs in float32.
        files: engines and ONNX files that were made from it.
        precision: compares the checkpoint in this precision of PyTorch too, as `TorchRunner` takes it; on a GPU "fp32"
            where there are no files either.
        pictures: a folder as `samples_from_folder` takes it; None is the shipped photograph.
        limit: compare on the first so many pictures only.
        min_psnr_db, budget_db, options: as `validate_all` takes them.
        res_scale: of the checkpoint; None is what the files say, or 0.1.
        device: of engines and of the checkpoint in `precision`, as `open_runner` takes it. What is compared with is
            on the CPU.
        plugin: of engines, as `open_runner` takes it.
        report: a folder for `index.html` and `report.json`.

    Raises:
        UsageError: nothing to compare, a file named twice or of another kind, or options that make no sense.
    """

    checkpoint: str
    files: tuple[Path, ...] = ()
    precision: str | None = None
    pictures: Path | None = None
    limit: int | None = None
    min_psnr_db: float | None = None
    budget_db: float | None = None
    options: UpscaleOptions = DEFAULT_OPTIONS
    res_scale: float | None = None
    device: str = "auto"
    plugin: Path | None = None
    report: Path | None = None

    def __post_init__(self) -> None:
        if not self.files and self.compared_precision is None:
            raise UsageError("ENGINE_OR_ONNX", "nothing to compare", "name a .plan or an .onnx file")
        require_bar(self.min_psnr_db)
        if self.budget_db is not None and not (math.isfinite(self.budget_db) and self.budget_db >= 0):
            raise UsageError("--budget-db", f"got {self.budget_db}, expected decibels, 0 or more")
        for path in self.files:
            if path.suffix.lower() not in (".plan", ".onnx"):
                raise UsageError(
                    path, "is neither an engine nor an ONNX file", "name a .plan or an .onnx file"
                )
        repeated = {path for path in self.files if self.files.count(path) > 1}
        if repeated:
            raise UsageError(min(repeated), "was named twice", "name each file once")
        if self.compared_precision is not None and self.report is not None:
            raise UsageError(
                "--report",
                "compares layers of ONNX files, and a checkpoint has none",
                "leave it out, or --precision",
            )
        if self.report is not None and self.report.is_file():
            raise UsageError("--report", f"{self.report} is a file, expected a folder")

    @property
    def compared_precision(self) -> str | None:
        """In which precision the checkpoint itself is compared; None: it is not."""
        on_gpu = device_from_text(self.device).kind == "gpu"
        return "fp32" if self.precision is None and on_gpu and not self.files else self.precision


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a comparison came to.

    Attributes:
        names: of the networks: their files, or the checkpoint with its precision.
        reports: one for each, in the same order.
        page: the written report; None when none was requested.
    """

    names: tuple[str, ...]
    reports: tuple[ValidationReport, ...]
    page: Path | None


def validate_files(
    request: ValidationRequest, *, on_progress: Callable[[str, float, float], None] | None = None
) -> Validation:
    """Compares every network of a request with the checkpoint in PyTorch.

    Args:
        on_progress: called with what is being done, pictures done, and pictures in all.

    Raises:
        HspanError: as `open_runner` and `validate_all`; the report cannot be written.
    """
    progress = on_progress or (lambda *_: None)
    if request.report is not None:
        require_report_tools()
        check_writable(request.report / PAGE_NAME)
    candidates = [_runner(path, request) for path in request.files]
    stored = [runner.res_scale for runner in candidates]
    res_scale = next(value for value in (request.res_scale, *stored, DEFAULT_RES_SCALE) if value is not None)
    reference = TorchRunner(request.checkpoint, res_scale=res_scale)
    names = [str(path) for path in request.files]
    if (precision := request.compared_precision) is not None:
        runner = open_runner(
            request.checkpoint, device=request.device, res_scale=res_scale, precision=precision
        )
        candidates.append(runner)
        names.append(f"{request.checkpoint} in {precision}")
    scale, pictures = common_scale(reference, candidates), request.pictures
    samples = shipped_samples(scale) if pictures is None else samples_from_folder(pictures, scale)
    samples = samples[: request.limit]
    evidence = None if request.report is None else EvidenceCollector(_labels(request.files, candidates))
    count = iter(range(1, len(samples) + 1))

    def on_outputs(outputs: Outputs) -> None:
        if evidence is not None:
            evidence(outputs)
        progress(f"compared {outputs.sample.name}", next(count), len(samples))

    progress("comparing", 0, len(samples))
    reports = validate_all(
        candidates,
        reference,
        samples,
        min_psnr_db=request.min_psnr_db,
        budget_db=request.budget_db,
        options=request.options,
        on_outputs=on_outputs,
    )
    page = None
    if request.report is not None and evidence is not None:
        progress("writing the report", len(samples), len(samples))
        rows, layer_picture = _rows(
            request, candidates, reports, load_model(request.checkpoint, res_scale=res_scale), samples[0]
        )
        content = ReportInput(
            checkpoint=request.checkpoint,
            images="the shipped photograph" if request.pictures is None else str(request.pictures),
            rows=rows,
            evidence=evidence,
            layer_picture=layer_picture,
        )
        page = write_report(request.report, content)
    return Validation(names=tuple(names), reports=tuple(reports), page=page)


def _runner(path: Path, request: ValidationRequest) -> Runner:
    """ONNX files run on the CPU whatever engines do, computed as an engine would unless a library was named."""
    device = request.device
    if path.suffix.lower() != ".plan":
        device = device if device_from_text(device).library else "cpu:onnxruntime"
    return open_runner(path, device=device, plugin=request.plugin)


def _labels(files: Sequence[Path], runners: Sequence[Runner]) -> list[str]:
    """A short name for each network: its precision, with the file's name where that is not enough."""
    precisions = [runner.precision.upper() for runner in runners]
    names = Counter(path.name for path in files)
    return [
        precision
        if precisions.count(precision) == 1
        else f"{precision} {path.stem if names[path.name] == 1 else path}"
        for precision, path in zip(precisions, files, strict=True)
    ]


def _rows(
    request: ValidationRequest,
    runners: Sequence[Runner],
    reports: Sequence[ValidationReport],
    network: HSPAN,
    sample: Sample,
) -> tuple[list[Row], str]:
    """The report's rows, with the layers measured on the middle of one picture, and what that middle is."""
    rows, size = [], ""
    labels = _labels(request.files, runners)
    for path, runner, report, label in zip(request.files, runners, reports, labels, strict=True):
        manifest = read_manifest(path) if path.suffix.lower() == ".plan" else None
        batch = _middle(sample, runner)
        layers = []
        if batch is not None:
            model = load_onnx(path if manifest is None else path.parent / manifest.onnx_file)
            layers = layer_errors(model, network, batch)
            size = f"{batch.shape[2]}\N{MULTIPLICATION SIGN}{batch.shape[3]}"
        rows.append(Row(label=label, path=path, manifest=manifest, report=report, layers=layers))
    return rows, f"the middle {size} input pixels of {sample.name}"


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
