"""From a network of any form to an engine in one call: exported, audited or quantized on the way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from trt_hspan.engine.build import PreparedModel, build_engine
from trt_hspan.engine.manifest import EngineManifest, verify_manifest
from trt_hspan.engine.refit import refit_engine, require_refittable
from trt_hspan.engine.spec import EngineSpec, default_output
from trt_hspan.errors import UsageError
from trt_hspan.graph import (
    checked_precision,
    load_onnx,
    metadata_from_model,
    opset_of,
    precision_from_model,
    require_attention,
    with_metadata,
)
from trt_hspan.graph.precision import float32_nodes
from trt_hspan.graph.quantized import quantized_type_from_model
from trt_hspan.graph.variants import opset_to_write
from trt_hspan.native.progress import BuildProgress
from trt_hspan.precision.audit.network_audit import audit_variants, audited_model
from trt_hspan.precision.audit.range_request import RangeRequest
from trt_hspan.precision.network import OnProgress, no_progress, variants_from_path
from trt_hspan.precision.quantize.pipeline import companion_texts, quantized_network
from trt_hspan.precision.quantize.request import QuantizationJob


@dataclass(frozen=True, kw_only=True)
class EngineJob:
    """An engine that is to be built from a network.

    Args:
        spec: the engine; `spec.onnx` is the network.
        quantization: how the network is quantized first; None does not.
        export: the network is written in `spec.precision`, float32 if that is None: a checkpoint, a preset, or an
            ONNX file in float32. An ONNX file of another type is built as it is.
        ranges: what to audit, and what to keep in float32 for it.
        res_scale, opset: of the export.
    """

    spec: EngineSpec
    quantization: QuantizationJob | None = None
    export: bool = False
    ranges: RangeRequest = field(default_factory=RangeRequest)
    res_scale: float | None = None
    opset: int | None = None


def build_from_network(job: EngineJob, *, on_progress: OnProgress = no_progress) -> EngineManifest:
    """Builds the engine; what makes the build impossible is an error before an export or a calibration.

    A quantized engine gets its recipe, and the calibration table if one was measured, beside it.

    Raises:
        UsageError, HspanError: as `audited_model`, `quantized_network` and `build_engine`.
    """
    spec = job.spec
    if job.export and job.quantization is None:
        opset_to_write(checked_precision(spec.precision or "fp32"), job.opset)
        if job.ranges.keep_fp32:  # may be every node: then the graph is float32, and the engine says so
            spec = replace(spec, precision=None)

    def show(state: BuildProgress) -> None:
        phase = f": {state.phase}" if state.phase else ""
        on_progress(f"building {spec.output.name}{phase}", state.fraction, 1.0)

    return build_engine(spec, prepare=lambda: _prepared(job, on_progress), on_progress=show)


def refit_from_network(
    plan: Path, network: str | Path, *, output: Path | None = None, plugin: Path | None = None
) -> EngineManifest:
    """Puts the weights of another network of the same architecture into an engine.

    The network is exported as the engine's own model was: its precision, its version of the operators, the same nodes
    in float32. An ONNX file is taken as it is.

    Args:
        network: a checkpoint file, a preset's name, or an ONNX file.
        plan, output, plugin: as in `refit_engine`.

    Raises:
        HspanError: as `refit_engine`; the network cannot be read.
        UsageError: an ONNX file of another precision.
    """
    manifest = verify_manifest(plan)
    require_refittable(plan, manifest)
    own = load_onnx(plan.parent / manifest.onnx_file)
    is_onnx = Path(network).suffix.lower() == ".onnx"
    variants = variants_from_path(network, res_scale=None if is_onnx else metadata_from_model(own).res_scale)
    precision = variants.precision(manifest.base_precision, option="--checkpoint")
    keep = () if variants.stored != "fp32" or precision == "fp32" else float32_nodes(own)
    model = variants.model(precision, keep_fp32=keep, opset=opset_of(own))
    return refit_engine(plan, model, output=output, plugin=plugin)


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


def _prepared(job: EngineJob, on_progress: OnProgress) -> PreparedModel:
    network = job.spec.onnx
    if job.quantization is not None:
        quantized = quantized_network(job.quantization, on_progress=on_progress)
        return PreparedModel(model=quantized.model, companions=companion_texts(quantized))
    on_progress(f"reading {network}", 0, 0)
    variants = variants_from_path(network, res_scale=job.res_scale)
    if job.export and variants.stored == "fp32" and quantized_type_from_model(variants.bare) is None:
        model, audit = audited_model(
            variants,
            job.ranges,
            checked_precision(job.spec.precision or "fp32"),
            opset=job.opset,
            on_progress=on_progress,
        )
        return PreparedModel(model=model, range_audit=audit)
    if job.ranges.keep_fp32 or job.opset is not None:
        option = "--keep-fp32" if job.ranges.keep_fp32 else "--opset"
        raise UsageError(option, f"is part of {network} already", "give an fp32 file or leave it out")
    audit = None
    if job.ranges.pictures is not None:
        audit = audit_variants(variants, job.ranges, on_progress=on_progress)
    return PreparedModel(model=with_metadata(load_onnx(network), variants.metadata), range_audit=audit)
