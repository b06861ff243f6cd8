"""What is quantized: a network in its base type, and its float32 reference."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from trt_hspan.errors import HspanError
from trt_hspan.graph import OnnxMetadata, Precision, Variants, tensor_types
from trt_hspan.graph.variants import lowest_opset
from trt_hspan.precision.network import input_sizes, variants_from_path
from trt_hspan.runtime.onnxruntime_session import scale_of
from trt_hspan.upscaling.tile_size import SizeRange


@dataclass(frozen=True, kw_only=True)
class Source:
    """A network that is to be quantized.

    Attributes:
        where: the file or preset, for errors.
        base: the graph in its base type, without function bodies, of an opset that has Q/DQ in that type.
        types: of its tensors, by name.
        reference: the same network with float32 arithmetic.
        precision: the base type.
        metadata: what the model says about itself.
        scale, sizes: of the network and its inputs.
        keep_fp32: nodes that stay in float32 on request.
        sha256: hash of `base`: what recipes and calibration tables are for.
    """

    where: str
    base: onnx.ModelProto
    types: Mapping[str, int]
    reference: onnx.ModelProto
    precision: Precision
    metadata: OnnxMetadata
    scale: int
    sizes: SizeRange
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
        base: type of what is not quantized; None takes what an ONNX file contains, and fp16 for float32 files and
            checkpoints.
        res_scale: for checkpoints, which do not store it; None is 0.1.
        keep_fp32: names or patterns of nodes that stay in float32, for float32 files and checkpoints.

    Raises:
        UsageError: an option contradicts the file.
        HspanError: the file cannot be read, contains no attention, or is quantized already.
    """
    return source_from_variants(
        variants_from_path(model, res_scale=res_scale), base=base, keep_fp32=keep_fp32
    )


def source_from_variants(
    network: Variants, *, base: Precision | None = None, keep_fp32: Sequence[str] = ()
) -> Source:
    """A network to be quantized with this base type. Raises: as `source_from_path`."""
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in network.bare.graph.node):
        raise HspanError(network.where, "is quantized already", "give the model that it comes from")
    scale = scale_of(network.metadata, network.where)
    precision = network.precision(base, option="--base")
    typed = network.typed(precision, keep_fp32=keep_fp32, opset=lowest_opset(precision, quantized=True))
    return Source(
        where=network.where,
        base=typed,
        types=tensor_types(typed),
        reference=network.float32(),
        precision=precision,
        metadata=replace(network.metadata, precision=precision),
        scale=scale,
        sizes=input_sizes(typed),
        keep_fp32=tuple(keep_fp32),
        sha256=graph_sha256(typed),
    )


def graph_sha256(model: onnx.ModelProto) -> str:
    """Hash of a graph's nodes, weights and opset; not of its metadata."""
    bare = onnx.ModelProto()
    bare.graph.CopyFrom(model.graph)
    bare.opset_import.extend(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    bare.graph.ClearField("name")
    del bare.graph.value_info[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()
