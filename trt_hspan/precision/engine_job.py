"""From a network of any form to an engine in one call: exported, audited or quantized on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from trt_hspan.engine.build import build_engine, check_buildable
from trt_hspan.engine.manifest import EngineManifest
from trt_hspan.engine.spec import EngineSpec, default_output
from trt_hspan.files import staged_files
from trt_hspan.graph import (
    checked_precision,
    load_onnx,
    precision_from_model,
    require_attention,
    save_onnx,
)
from trt_hspan.graph.variants import opset_to_write
from trt_hspan.native.progress import BuildProgress
from trt_hspan.precision.audit.audited_export import export_audited
from trt_hspan.precision.audit.network_audit import audit_network
from trt_hspan.precision.audit.range_request import RangeRequest
from trt_hspan.precision.quantize.job import OnProgress, QuantizationJob, quantized_network
from trt_hspan.precision.quantize.pipeline import companion_texts


@dataclass(frozen=True, kw_only=True)
class EngineJob:
    """An engine that is to be built from a network.

    Args:
        spec: the engine. `spec.onnx` is the network, unless there is a checkpoint.
        checkpoint: a checkpoint file or a preset, exported first; None for an ONNX file.
        ranges: what to audit, and what to keep in float32 for it.
        quantization: how the network is quantized first; None does not.
        res_scale, opset: of the export.
    """

    spec: EngineSpec
    checkpoint: str | None = None
    ranges: RangeRequest = field(default_factory=RangeRequest)
    quantization: QuantizationJob | None = None
    res_scale: float = 0.1
    opset: int | None = None


def build_from_network(job: EngineJob, *, on_progress: OnProgress | None = None) -> EngineManifest:
    """Builds the engine; what makes the build impossible is found before an export or a calibration.

    A quantized engine gets its recipe, and the calibration table if one was measured, beside it.

    Raises:
        UsageError, HspanError: as `export_audited`, `quantized_network` and `build_engine`.
    """
    report = on_progress or (lambda *_: None)
    if job.quantization is not None:
        return _build_quantized(job.spec, job.quantization, report)
    if job.checkpoint is not None:
        return _build_from_checkpoint(job.checkpoint, job, report)
    audit = None
    if job.ranges.pictures is not None:
        audit = audit_network(job.spec.onnx, job.ranges, on_progress=report)
    return _build(replace(job.spec, range_audit=audit), report)


def default_engine_path(network: str | Path, precision: str | None) -> Path:
    """`engines/<stem>_<precision>.plan`: of an ONNX file, unless it is given, the precision that it contains.

    Raises:
        HspanError: as `default_output`; the ONNX file cannot be read.
    """
    if precision is None and isinstance(network, Path):
        model = load_onnx(network)
        require_attention(model, network)
        precision = precision_from_model(model)
    return default_output(network, precision or "fp32")


def _build_from_checkpoint(checkpoint: str, job: EngineJob, report: OnProgress) -> EngineManifest:
    precision = checked_precision(job.spec.precision or "fp32")
    opset_to_write(precision, job.opset)
    check_buildable(job.spec)
    with _temporary_onnx(job.spec) as path:
        report(f"exporting {checkpoint}", 0, 0)
        audit = export_audited(
            checkpoint,
            path,
            job.ranges,
            precision=precision,
            res_scale=job.res_scale,
            opset=job.opset,
            on_picture=lambda sample: report(f"audited {sample.name}", 0, 0),
        )
        # What was kept may be every node: then the graph is float32, and the engine says so.
        asked = None if job.ranges.keep_fp32 else job.spec.precision
        return _build(replace(job.spec, onnx=path, precision=asked, range_audit=audit), report)


def _build_quantized(spec: EngineSpec, quantization: QuantizationJob, report: OnProgress) -> EngineManifest:
    check_buildable(spec)
    quantized = quantized_network(quantization, on_progress=report)
    with _temporary_onnx(spec) as path:
        save_onnx(quantized.model, path)
        texts = companion_texts(quantized)
        with staged_files([spec.output.with_suffix(suffix) for suffix in texts]) as staged:
            for file, text in zip(staged, texts.values(), strict=True):
                file.write_text(text, encoding="utf-8")
            return _build(replace(spec, onnx=path), report)


def _build(spec: EngineSpec, report: OnProgress) -> EngineManifest:
    def show(state: BuildProgress) -> None:
        phase = f": {state.phase}" if state.phase else ""
        report(f"building {spec.output.name}{phase}", state.fraction, 1.0)

    return build_engine(spec, on_progress=show)


@contextmanager
def _temporary_onnx(spec: EngineSpec) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="trt-hspan-") as folder:
        yield Path(folder) / spec.onnx_output.name
