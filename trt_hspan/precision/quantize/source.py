"""What is quantized: a checkpoint or ONNX file, as a graph in its base type and as the float32 reference."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import onnx

import trt_hspan
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.graph import (
    OnnxMetadata,
    Precision,
    base_precision_from_model,
    load_onnx,
    metadata_from_model,
    model_in_precision,
    model_with_plugin_nodes,
    require_attention,
)
from trt_hspan.graph.cpu import model_in_float32
from trt_hspan.graph.headroom import HSPAN_KEEP_FP32, is_hspan, tail_with_headroom
from trt_hspan.graph.precision import BF16_OPSET

if TYPE_CHECKING:
    from collections.abc import Sequence

# QuantizeLinear takes float16 and FP8 since this version of the ONNX operators.
QDQ_OPSET: Final = 19
DEFAULT_BASE: Final = "fp16"
_SUFFIXES: Final = (".onnx",)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A network that is to be quantized.

    Attributes:
        where: the file or preset, for errors.
        base: the graph in its base type, without function bodies, of an opset that has Q/DQ in that type.
        reference: the same network with float32 arithmetic.
        precision: the base type.
        metadata: what the model says about itself.
        keep_fp32: nodes that were asked to stay in float32.
        sha256: hash of `base`: what recipes and calibration tables are for.
    """

    where: str
    base: onnx.ModelProto
    reference: onnx.ModelProto
    precision: Precision
    metadata: OnnxMetadata
    keep_fp32: tuple[str, ...]
    sha256: str


def source_from_path(
    model: str | os.PathLike[str],
    *,
    base: Precision | None = None,
    res_scale: float | None = None,
    keep_fp32: Sequence[str] = (),
) -> Source:
    """Reads an ONNX file, checkpoint or preset.

    Args:
        model: what to read. Checkpoints need torch, ONNX files do not.
        base: type of what is not quantized; None takes what an ONNX file holds, and fp16 for float32 files and
            checkpoints.
        res_scale: for checkpoints, which do not store it; None is 0.1.
        keep_fp32: names or patterns of nodes that stay in float32, for float32 files and checkpoints.

    Raises:
        UsageError: an option contradicts the file.
        HspanError: the file cannot be read, holds no attention, or is quantized already.
    """
    if Path(model).suffix.lower() in _SUFFIXES:
        if res_scale is not None:
            raise UsageError("--res-scale", "is part of an ONNX file already", "leave it out")
        return _source_from_onnx(Path(model), base, keep_fp32)
    return source_from_float32(
        _exported(model, 0.1 if res_scale is None else res_scale),
        base=base or DEFAULT_BASE,
        where=os.fspath(model),
        keep_fp32=keep_fp32,
    )


def source_from_float32(
    model: onnx.ModelProto, *, base: Precision, where: str, keep_fp32: Sequence[str] = ()
) -> Source:
    """A float32 model of this project, to be quantized with this base type. Raises: HspanError, UsageError."""
    bare = _with_opset(model_with_plugin_nodes(model), BF16_OPSET if base == "bf16" else QDQ_OPSET)
    kept = (*(HSPAN_KEEP_FP32 if is_hspan(bare) else ()), *keep_fp32)
    roomy = tail_with_headroom(bare) if base == "fp16" and is_hspan(bare) else bare
    typed = model_in_precision(roomy, base, keep_fp32=kept)
    return _source(
        typed,
        bare,
        precision=base,
        metadata=metadata_from_model(model),
        where=where,
        keep_fp32=tuple(keep_fp32),
    )


def graph_sha256(model: onnx.ModelProto) -> str:
    """Hash of a graph's nodes, weights and opset; not of its metadata."""
    bare = onnx.ModelProto()
    bare.graph.CopyFrom(model.graph)
    bare.opset_import.extend(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    bare.graph.ClearField("name")
    del bare.graph.value_info[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def _source_from_onnx(path: Path, base: Precision | None, keep_fp32: Sequence[str]) -> Source:
    model = load_onnx(path)
    require_attention(model, path)
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise HspanError(path, "is quantized already", "give the model that it was made from")
    held = base_precision_from_model(model)
    if held == "fp32":
        return source_from_float32(model, base=base or DEFAULT_BASE, where=str(path), keep_fp32=keep_fp32)
    if base not in (None, held):
        raise UsageError(
            "--base", f"{base}, but {path} computes in {held}", "give an fp32 file or leave it out"
        )
    if keep_fp32:
        raise UsageError("--keep-fp32", f"is part of {path} already", "give an fp32 file or leave it out")
    bare = _with_opset(model_with_plugin_nodes(model), BF16_OPSET if held == "bf16" else QDQ_OPSET)
    return _source(
        bare, model_in_float32(bare), precision=held, metadata=metadata_from_model(model), where=str(path)
    )


def _source(
    base: onnx.ModelProto,
    reference: onnx.ModelProto,
    *,
    precision: Precision,
    metadata: OnnxMetadata,
    where: str,
    keep_fp32: tuple[str, ...] = (),
) -> Source:
    if metadata.scale is None:
        raise HspanError(where, "does not say its scale", "export it with trt-hspan export")
    return Source(
        where=where,
        base=base,
        reference=reference,
        precision=precision,
        metadata=replace(metadata, precision=precision, tool_version=trt_hspan.__version__),
        keep_fp32=keep_fp32,
        sha256=graph_sha256(base),
    )


def _exported(checkpoint: str | os.PathLike[str], res_scale: float) -> onnx.ModelProto:
    from trt_hspan.export import onnx_from_model
    from trt_hspan.export.to_onnx import checkpoint_metadata
    from trt_hspan.model.checkpoint import load_model

    model = load_model(checkpoint, res_scale=res_scale)
    return onnx_from_model(model, metadata=checkpoint_metadata(checkpoint, model, "fp32"))


def _with_opset(model: onnx.ModelProto, lowest: int) -> onnx.ModelProto:
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if version >= lowest:
        return model
    converted = onnx.version_converter.convert_version(model, lowest)
    converted.ir_version = max(model.ir_version, 9)  # the first that knows FP8
    return converted
