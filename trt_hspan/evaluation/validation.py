"""Files against their checkpoint in one call: opens the networks and pictures, compares, and writes the report."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trt_hspan.errors import UsageError
from trt_hspan.evaluation.compare import Outputs, ValidationReport, common_scale, validate_all
from trt_hspan.evaluation.datasets import Sample, samples_from_folder, shipped_samples
from trt_hspan.evaluation.metrics import require_bar
from trt_hspan.evaluation.report import EvidenceCollector
from trt_hspan.evaluation.report.page import PAGE_NAME, require_report_tools
from trt_hspan.evaluation.report.rows import labels_of, written_report
from trt_hspan.files import check_writable
from trt_hspan.runtime.opening import device_from_text, open_runner
from trt_hspan.runtime.runner import Runner
from trt_hspan.runtime.torch_runner import TorchRunner
from trt_hspan.upscaling.options import DEFAULT_OPTIONS, UpscaleOptions


@dataclass(frozen=True, kw_only=True)
class ValidationRequest:
    """What is compared with what.

    Args:
        checkpoint: a checkpoint file or preset, which PyTorch runs in float32.
        files: engines and ONNX files that were made from it.
        precision: "bf16" compares the checkpoint in this precision of PyTorch too.
        pictures: a folder as `samples_from_folder` takes it; None is the shipped photograph.
        limit: compare on the first so many pictures only.
        min_psnr_db, budget_db, options: as `validate_all` takes them.
        res_scale: of the checkpoint; None is what the files say, or 0.1.
        device, plugin: of engines, as `open_runner` takes them.
        report: a folder for the report of `written_report`.

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
        if not self.files and self.precision is None:
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
        if self.precision is not None and self.report is not None:
            raise UsageError(
                "--report",
                "compares layers of ONNX files, and --precision has none",
                "leave one of them out",
            )
        device_from_text(self.device)
        if self.report is not None and self.report.is_file():
            raise UsageError("--report", f"{self.report} is a file, expected a folder")


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
        HspanError: as `open_runner`, `validate_all` and `written_report`.
    """
    progress = on_progress or (lambda *_: None)
    if request.report is not None:
        require_report_tools()
        check_writable(request.report / PAGE_NAME)
    candidates = [_runner(path, request) for path in request.files]
    stored = [runner.res_scale for runner in candidates]
    res_scale = next(value for value in (request.res_scale, *stored, 0.1) if value is not None)
    reference = TorchRunner(request.checkpoint, res_scale=res_scale)
    names = [str(path) for path in request.files]
    if request.precision is not None:
        candidates.append(TorchRunner(request.checkpoint, res_scale=res_scale, precision=request.precision))
        names.append(f"{request.checkpoint} in {request.precision}")
    samples = _samples(request, common_scale(reference, candidates))
    evidence = None if request.report is None else EvidenceCollector(labels_of(request.files, candidates))
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
        page = written_report(
            request.report,
            checkpoint=request.checkpoint,
            images="the shipped photograph" if request.pictures is None else str(request.pictures),
            files=request.files,
            runners=candidates,
            reports=reports,
            evidence=evidence,
            sample=samples[0],
            reference=reference,
        )
    return Validation(names=tuple(names), reports=tuple(reports), page=page)


def _runner(path: Path, request: ValidationRequest) -> Runner:
    """ONNX files run on the CPU whatever engines do."""
    if path.suffix.lower() != ".plan":
        return open_runner(path)
    return open_runner(path, device=request.device, plugin=request.plugin)


def _samples(request: ValidationRequest, scale: int) -> list[Sample]:
    pictures = request.pictures
    samples = shipped_samples(scale) if pictures is None else samples_from_folder(pictures, scale)
    return samples[: request.limit]
