"""A network and every typed variant of it: version of the operators, headroom, nodes kept in float32, body, metadata.

Export, audit, quantization and the command line all ask here, so that they mean the same graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import onnx

from trt_hspan.errors import UsageError
from trt_hspan.graph.attention_function import (
    LOWEST_OPSET,
    model_with_attention_function,
    model_with_plugin_nodes,
    opset_of,
)
from trt_hspan.graph.contract import (
    OnnxMetadata,
    check_model,
    metadata_from_model,
    require_attention,
    with_metadata,
)
from trt_hspan.graph.float32_twin import float32_twin
from trt_hspan.graph.headroom import HSPAN_KEEP_FP32, is_hspan, tail_with_headroom
from trt_hspan.graph.precision import (
    BF16_OPSET,
    Precision,
    base_precision_from_model,
    checked_precision,
    model_in_precision,
)
from trt_hspan.version import __version__

# QuantizeLinear takes float16 and FP8 since this version of the ONNX operators.
QDQ_OPSET: Final = 19
# Beyond this, builders lag behind: the newest version that TensorRT-RTX 1.7 and ONNX Runtime both take here.
HIGHEST_OPSET: Final = 23


@dataclass(frozen=True, kw_only=True)
class Variants:
    """A network from which variants are made. `variants_from_model` returns one.

    Attributes:
        bare: the model without function bodies, constants folded, with `metadata`.
        stored: the type that it computes in. A typed graph has one variant: itself.
        kept_fp32: names or patterns of nodes that stay in float32 in every variant.
        metadata: what the network says about itself; a variant adds its precision and the tool's version.
        where: file, preset or class, for errors.
    """

    bare: onnx.ModelProto
    stored: Precision
    kept_fp32: tuple[str, ...]
    metadata: OnnxMetadata
    where: str

    def precision(
        self, requested: Precision | None, *, option: str, default: Precision = "fp16"
    ) -> Precision:
        """The type of the variant that a request comes to: of a typed graph its own, else the requested one.

        Raises:
            UsageError: another type than that of a typed graph; the line names `option`.
        """
        if self.stored == "fp32":
            return requested or default
        if requested not in (None, self.stored):
            raise UsageError(
                option,
                f"{requested}, but {self.where} computes in {self.stored}",
                "give its checkpoint or an fp32 file, or leave the option out",
            )
        return self.stored

    def float32(self) -> onnx.ModelProto:
        """The reference: float32 arithmetic with the weights as they are stored, no function body."""
        return self.bare if self.stored == "fp32" else float32_twin(self.bare).model

    def template(self, precision: Precision, *, opset: int | None = None) -> onnx.ModelProto:
        """The graph that `precision` is written into; of a typed graph itself. No function body.

        Float16 needs headroom in the tail of an HSPAN (`tail_with_headroom`).

        Args:
            opset: at least this version of the ONNX operators; None takes the lowest that has the type.
        """
        graph = _with_opset(self.bare, opset_to_write(precision, opset))
        needs_headroom = self.stored == "fp32" and precision == "fp16" and is_hspan(graph)
        return tail_with_headroom(graph) if needs_headroom else graph

    def typed(
        self, precision: Precision, *, keep_fp32: Sequence[str] = (), opset: int | None = None
    ) -> onnx.ModelProto:
        """The network in a type, without function body.

        Args:
            precision: as `precision` gives it.
            keep_fp32: names or patterns (as in `fnmatch`) of nodes that stay in float32, on top of `kept_fp32`.
            opset: as in `template`.

        Raises:
            UsageError: the opset has no such type, or nodes of a typed graph are to be kept.
            HspanError: a weight does not fit the type.
        """
        template = self.template(precision, opset=opset)
        if self.stored == "fp32":
            return model_in_precision(template, precision, keep_fp32=(*self.kept_fp32, *keep_fp32))
        if keep_fp32:
            raise UsageError(
                "--keep-fp32", f"is part of {self.where} already", "give an fp32 file or leave it out"
            )
        return template

    def model(
        self, precision: Precision, *, keep_fp32: Sequence[str] = (), opset: int | None = None
    ) -> onnx.ModelProto:
        """The network in a type as a finished model: checked, with function body and metadata.

        Raises:
            UsageError, HspanError: as `typed`.
        """
        typed = self.typed(precision, keep_fp32=keep_fp32, opset=opset)
        return finished_model(typed, replace(self.metadata, precision=precision), self.where)


def variants_from_model(
    model: onnx.ModelProto,
    where: str,
    *,
    metadata: OnnxMetadata | None = None,
    keep_fp32: Sequence[str] | None = None,
) -> Variants:
    """The variants of a model of this project.

    Args:
        model: constants folded. A float32 one has variants in every type, a typed one has itself.
        where: what errors name.
        metadata: of the network; None takes the model's own.
        keep_fp32: nodes that stay in float32 in every variant; None takes what an HSPAN needs, and nothing in others.

    Raises:
        HspanError: the model contains no attention, or computes in no single type.
    """
    require_attention(model, where)
    metadata = metadata or metadata_from_model(model)
    if keep_fp32 is None:
        keep_fp32 = HSPAN_KEEP_FP32 if is_hspan(model) else ()
    return Variants(
        bare=with_metadata(model_with_plugin_nodes(model), metadata),
        stored=base_precision_from_model(model),
        kept_fp32=tuple(keep_fp32),
        metadata=metadata,
        where=where,
    )


def finished_model(graph: onnx.ModelProto, metadata: OnnxMetadata, where: object) -> onnx.ModelProto:
    """A graph with function body and metadata, checked. Raises: HspanError when it is not valid ONNX."""
    complete = model_with_attention_function(graph)
    described = with_metadata(complete, replace(metadata, tool_version=__version__))
    described.producer_name, described.producer_version = "trt-hspan", __version__
    check_model(described, where)
    return described


def lowest_opset(precision: Precision, *, quantized: bool = False) -> int:
    """The first version of the ONNX operators that has the type, and Q/DQ nodes for it."""
    lowest = BF16_OPSET if precision == "bf16" else LOWEST_OPSET
    return max(lowest, QDQ_OPSET) if quantized else lowest


def opset_to_write(precision: Precision, opset: int | None) -> int:
    """The version of the ONNX operators that a request comes to. Raises: UsageError when there is none."""
    lowest = lowest_opset(checked_precision(precision))
    if opset is None:
        return lowest
    if not lowest <= opset <= HIGHEST_OPSET:
        raise UsageError("--opset", f"{opset} has no {precision}", f"choose {lowest} to {HIGHEST_OPSET}")
    return opset


def _with_opset(model: onnx.ModelProto, lowest: int) -> onnx.ModelProto:
    if opset_of(model) >= lowest:
        return model
    converted = onnx.version_converter.convert_version(model, lowest)
    graph = converted.graph
    constants = [node for node in graph.node if node.op_type == "Constant"]  # attributes that became inputs
    for node in constants:
        graph.node.remove(node)
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        (tensor.name,) = node.output
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    converted.ir_version = max(model.ir_version, 9)  # the first that has FP8
    return converted
