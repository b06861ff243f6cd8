"""Which layers are quantized by default, and by names and patterns."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Final

import onnx

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.graph import attention_nodes
from trt_hspan.graph.headroom import is_hspan

# The picture itself passes these: mean shifts, first and last convolution.
_HSPAN_BASE: Final = ("sub_mean/*", "head.0/*", "tail.1/*", "add_mean/*")


def layers_to_quantize(
    model: onnx.ModelProto, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[onnx.NodeProto]:
    """The nodes that are to be quantized, in graph order.

    By default every convolution but the first and the last, and but an HSPAN's mean shifts. The 1x1 convolutions that
    make query, key and value belong to them; the attention itself, residual sums and all else do not.

    Args:
        include: names or patterns (as in `fnmatch`) of further convolutions, sums and attention nodes.
        exclude: names or patterns of nodes to leave out; stronger than `include`.

    Raises:
        UsageError: a pattern matches no node that can be quantized.
        HspanError: no layer is left.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    possible = [node for node in model.graph.node if _can_be_quantized(node, weights)]
    possible += list(attention_nodes(model))
    included = _matched("--include", include, possible)
    excluded = _matched("--exclude", exclude, possible)
    chosen = (included | {node.name for node in _default(model, possible)}) - excluded
    if not chosen:
        raise HspanError(model.graph.name, "no layer is left to quantize", "exclude fewer")
    return [node for node in model.graph.node if node.name in chosen]


def _can_be_quantized(node: onnx.NodeProto, weights: set[str]) -> bool:
    if node.op_type == "Conv":
        return node.input[1] in weights and node.input[0] not in weights
    return node.op_type == "Add" and not weights.intersection(node.input)


def _default(model: onnx.ModelProto, possible: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    convolutions = [node for node in possible if node.op_type == "Conv"]
    if is_hspan(model):
        return [
            node
            for node in convolutions
            if not any(fnmatch.fnmatchcase(node.name, pattern) for pattern in _HSPAN_BASE)
        ]
    return convolutions[1:-1]


def _matched(option: str, patterns: Sequence[str], possible: Sequence[onnx.NodeProto]) -> set[str]:
    names = set()
    for pattern in patterns:
        matched = {node.name for node in possible if fnmatch.fnmatchcase(node.name, pattern)}
        if not matched:
            raise UsageError(
                option,
                f"{pattern!r} matches no convolution, sum or attention node",
                "see `trt-hspan sensitivity` for names",
            )
        names |= matched
    return names
