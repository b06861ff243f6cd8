"""Files against a reference in one call: opens the networks and pictures, compares, and writes the report."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from trt_hspan.engine.manifest import read_manifest
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.evaluation.compare import Outputs, ValidationReport, common_scale, validate_all
from trt_hspan.evaluation.datasets import Sample, sample_from_picture, samples_from_folder, shipped_samples
from trt_hspan.evaluation.layers import LAYER_SIDE, layer_errors
from trt_hspan.evaluation.metrics import require_bar
from trt_hspan.evaluation.report.evidence import EvidenceCollector
from trt_hspan.evaluation.report.page import PAGE_NAME, ReportInput, Row, require_report_tools, write_report
from trt_hspan.files import check_writable
from trt_hspan.graph import load_onnx
from trt_hspan.media.pixels import Uint8Array, tensor_from_image
from trt_hspan.runtime.opening import device_from_text, open_runner
from trt_hspan.runtime.runner import Float32Array, Runner
from trt_hspan.runtime.torch_runner import TorchRunner
from trt_hspan.upscaling.options import DEFAULT_OPTIONS, UpscaleOptions

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class ValidationRequest:
    """What is compared with what.

    Args:
        reference: a checkpoint file or preset, which PyTorch runs in float32, or a float32 ONNX file.
        files: engines and ONNX files that were made from it.
        precision: compares a checkpoint in this precision of PyTorch too, as `TorchRunner` takes it; on a GPU "fp32"
            where there are no files either.
        pictures: a folder as `samples_from_folder` takes it; None is the shipped photograph.
        limit: compare on the first so many pictures only.
        min_psnr_db, budget_db, options: as `validate_all` takes them.
        res_scale: of a checkpoint; None is what it or the files say, or 0.1.
        device: of engines and of a checkpoint in `precision`, as `open_runner` takes it. What is compared with is
            on the CPU.
        plugin: of engines, as `open_runner` takes it.
        report: a folder for `index.html` and `report.json`.

    Raises:
        UsageError: nothing to compare, a file named twice or of another kind, or options that make no sense.
    """

    reference: str
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
        if self.is_onnx_reference:
            for option, value in (("--precision", self.precision), ("--res-scale", self.res_scale)):
                if value is not None:
                    raise UsageError(option, "is for a checkpoint as the reference", "leave it out")
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
    def is_onnx_reference(self) -> bool:
        """Whether the reference is an ONNX file."""
        return Path(self.reference).suffix.lower() == ".onnx"

    @property
    def compared_precision(self) -> str | None:
        """In which precision the checkpoint itself is compared; None: it is not."""
        on_gpu = device_from_text(self.device).kind == "gpu" and not self.is_onnx_reference
        return "fp32" if self.precision is None and on_gpu and not self.files else self.precision


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a comparison came to.

    Attributes:
        names: of the networks: their files, or a checkpoint with its precision.
        reports: one for each, in the same order.
        page: the written report; None when none was requested.
    """

    names: tuple[str, ...]
    reports: tuple[ValidationReport, ...]
    page: Path | None


def validate_files(
    request: ValidationRequest, *, on_progress: Callable[[str, float, float], None] | None = None
) -> Validation:
    """Compares every network of a request with its reference.

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
    res_scale = next((value for value in (request.res_scale, *stored) if value is not None), None)
    reference = reference_runner(request.reference, res_scale=res_scale)
    names = [str(path) for path in request.files]
    if (precision := request.compared_precision) is not None:
        runner = open_runner(
            request.reference, device=request.device, res_scale=res_scale, precision=precision
        )
        candidates.append(runner)
        names.append(f"{request.reference} in {precision}")
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
        graph = _float32_graph(request.reference, res_scale)
        rows, layer_picture = _rows(request, candidates, reports, graph, samples[0])
        content = ReportInput(
            reference=request.reference,
            images="the shipped photograph" if request.pictures is None else str(request.pictures),
            rows=rows,
            evidence=evidence,
            layer_picture=layer_picture,
        )
        page = write_report(request.report, content)
    return Validation(names=tuple(names), reports=tuple(reports), page=page)


def validate(
    engine_or_onnx: str | os.PathLike[str],
    model_or_onnx: str | os.PathLike[str] | nn.Module,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Uint8Array] | None = None,
    *,
    min_psnr_db: float | None = None,
    budget_db: float | None = None,
    device: str = "auto",
    plugin: str | os.PathLike[str] | None = None,
) -> ValidationReport:
    """Compares an engine or an ONNX file with the network that it was made from, on pictures.

    Args:
        engine_or_onnx: a `.plan` with its manifest beside it, or an `.onnx` file.
        model_or_onnx: the reference: a module, a float32 ONNX file, a checkpoint file or a preset's name.
        images: a folder as `samples_from_folder` takes it, pictures' files, or pictures (H, W, 3) uint8; None is the
            shipped photograph.
        min_psnr_db, budget_db: as `compare.validate_all` takes them.
        device, plugin: of an engine, as `open_runner` takes them.

    Raises:
        HspanError: as `open_runner` and `compare.validate_all`; the reference is not float32.

    Example:
        >>> import trt_hspan
        >>> network = trt_hspan.load_model("hspan-tiny-x2")
        >>> path = trt_hspan.export_onnx("hspan-tiny-x2", "tiny.onnx", precision="fp16")
        >>> trt_hspan.validate(path, network).passed
        True
    """
    candidate = open_runner(engine_or_onnx, device=device, plugin=plugin)
    reference = reference_runner(model_or_onnx, res_scale=candidate.res_scale)
    scale = common_scale(reference, [candidate])
    if images is None:
        samples = shipped_samples(scale)
    elif isinstance(images, str | os.PathLike):
        samples = samples_from_folder(images, scale)
    else:
        samples = [sample_from_picture(picture, scale, index) for index, picture in enumerate(images)]
    (report,) = validate_all([candidate], reference, samples, min_psnr_db=min_psnr_db, budget_db=budget_db)
    return report


def reference_runner(
    network: str | os.PathLike[str] | nn.Module, *, res_scale: float | None = None
) -> Runner:
    """The network in float32 on a CPU: a checkpoint, preset or module in PyTorch, an ONNX file in ONNX Runtime.

    Raises:
        HspanError: it cannot be read, or an ONNX file computes in another type.
    """
    if not (isinstance(network, str | os.PathLike) and Path(network).suffix.lower() == ".onnx"):
        return TorchRunner(network, res_scale=res_scale)
    runner = open_runner(network, device="cpu")
    if runner.precision != "fp32":
        raise HspanError(
            network,
            f"computes in {runner.precision}, and a reference in float32",
            "name the file it was made from",
        )
    return runner


def _float32_graph(reference: str, res_scale: float | None) -> onnx.ModelProto:
    if Path(reference).suffix.lower() == ".onnx":
        return load_onnx(reference)
    from trt_hspan.export.to_onnx import variants_from_checkpoint

    return variants_from_checkpoint(reference, res_scale=res_scale).float32()


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
    graph: onnx.ModelProto,
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
            layers = layer_errors(model, graph, batch)
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
