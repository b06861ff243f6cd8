"""Range for float16 where an HSPAN needs most of it: the long skip's sum and the tail behind it.

Everything behind the long skip is linear: convolutions with biases and pixel shuffles. So its input may be divided
by a power of two, its weights multiplied by others, its biases by the product so far, and its output divided by the
whole product: nothing changes but the range.
"""

from __future__ import annotations

import copy
import math
import re
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Sums up to 16 * 65504 fit. Features below 16 * 6e-5 lose digits; their error in the picture is below 1e-6.
HEADROOM: Final = 16.0
# Weights whose largest is below this are lifted up to it: float16 loses digits below 2^-14.
LEAST_LARGEST_WEIGHT: Final = 2.0**-6

SCALING_NODE: Final = "tail/Scale"
_LONG_SKIP: Final = "Add"

# What stays in float32 in an HSPAN of any precision: the mean shifts, the head, and the long skip. They
# are a thousandth of the work and carry the picture itself.
HSPAN_KEEP_FP32: Final = ("sub_mean/*", "head.0/*", _LONG_SKIP, SCALING_NODE, "add_mean/*")


def is_hspan(model: onnx.ModelProto) -> bool:
    """Whether an exported graph is a whole HSPAN: mean shifts, head, long skip and tail under their usual names."""
    nodes = {node.name for node in model.graph.node}
    return {
        "sub_mean/Conv",
        "head.0/Conv",
        _LONG_SKIP,
        "tail.0.0/Conv",
        "tail.1/Conv",
        "add_mean/Conv",
    } <= nodes


def tail_with_headroom(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an exported float32 HSPAN whose tail sees features divided by `HEADROOM`.

    The division is one node in float32, the inverse factor is folded into `add_mean`; all factors are powers of
    two, so both are exact.

    Args:
        model: constants folded, nodes named after modules.
    """
    result = copy.deepcopy(model)
    graph = result.graph
    position = next(index for index, node in enumerate(graph.node) if node.name == _LONG_SKIP)
    features = graph.node[position].output[0]
    scaled = f"{features}_scaled"
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == features:
                node.input[index] = scaled
    graph.node.insert(
        position + 1, helper.make_node("Mul", [features, "tail_scale"], [scaled], name=SCALING_NODE)
    )
    graph.initializer.append(numpy_helper.from_array(np.array(1 / HEADROOM, np.float32), "tail_scale"))

    weights = {tensor.name: tensor for tensor in graph.initializer}
    factor = 1 / HEADROOM
    for layer in sorted(
        match[1] for match in map(re.compile(r"(tail\..*)\.weight").fullmatch, weights) if match
    ):
        lift = _lift(weights[f"{layer}.weight"])
        factor *= lift
        _multiply(weights[f"{layer}.weight"], lift)
        _multiply(weights[f"{layer}.bias"], factor)
    _multiply(weights["add_mean.weight"], 1 / factor)
    return result


def _lift(weight: onnx.TensorProto) -> float:
    """The least power of two, 1 or more, that makes the largest weight large enough for float16."""
    largest = float(np.abs(numpy_helper.to_array(weight)).max())
    if largest == 0 or largest >= LEAST_LARGEST_WEIGHT:
        return 1.0
    return 2.0 ** math.ceil(math.log2(LEAST_LARGEST_WEIGHT / largest))


def _multiply(tensor: onnx.TensorProto, factor: float) -> None:
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
