"""The attention operator in standard ONNX operators, as a function body."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal, get_args

import onnx
import onnx.defs
import onnx.inliner
import onnx.parser

from trt_hspan.errors import UsageError
from trt_hspan.names import DOMAIN, OP_TYPE, OP_VERSION, ORT_TENSORRT_DOMAIN, ORT_TENSORRT_VERSION

# The lowest opset that the body is written for: reductions take their axes as an input since 18.
LOWEST_OPSET: Final = 18

#: The attributes that the plugin reads of a node; without effect elsewhere.
PLUGIN_ATTRIBUTES: Final = ("io_format", "configuration")

#: How a file holds the attention: nodes with a function body, for any ONNX runtime; nodes alone, which TensorRT
#: takes as the plugin or not at all; nodes where ONNX Runtime's TensorRT provider looks plugins up.
AttentionForm = Literal["function", "node", "ort-tensorrt"]
ATTENTION_FORMS: Final[tuple[AttentionForm, ...]] = get_args(AttentionForm)

# Newton's method on the simplex threshold (Michelot 1986; Condat 2016, section 2), for all rows at once.
#
# Scores are shifted by their row's maximum, so the root lies in [-1, 0) and -1 is a start below it. A
# step adds (sum of the excess - 1) / (size of the active set) to a row's threshold; the loop ends when
# no row rises any more. Comparisons with NaN are false, so rows with NaN never keep it going. Their sum
# is NaN whatever a backend's Relu and ReduceMax make of NaN, and it replaces their result.
# Constants are tensors: GraphSurgeon, and what is built on it, reads value_float as float64.
# No TopK: its k would have to exceed every support, and a support can be the whole picture.
#: Rows of scores minus their maximum -> their weights. Reads shifted_nqk, largest_nq1 and the constants last_axis,
#: lowest (-1), one (1) and yes; gives weights_nqk. Text for the body of a function, or of a loop in one.
WEIGHTS_TEXT: Final = """\
    rows_shape = Shape (largest_nq1)
    start_nq1 = Expand (lowest, rows_shape)
    no_limit = Constant <value = int64 {9223372036854775807}> ()
    tau_nq1 = Loop <body = newton (int64 iteration, bool running, float[n, q, k] tau_in) =>
                                 (bool any_rising, float[n, q, k] tau_out) {
        distance_nqk = Sub (shifted_nqk, tau_in)
        excess_nqk = Relu (distance_nqk)
        excess_sum = ReduceSum <keepdims = 1> (excess_nqk, last_axis)
        active_nqk = Greater (shifted_nqk, tau_in)
        active_32 = Cast <to = 1> (active_nqk)
        active_count = ReduceSum <keepdims = 1> (active_32, last_axis)
        surplus = Sub (excess_sum, one)
        rise = Div (surplus, active_count)
        risen = Add (tau_in, rise)
        rising = Greater (risen, tau_in)
        tau_out = Where (rising, risen, tau_in)
        rising_32 = Cast <to = 1> (rising)
        most_rising = ReduceMax <keepdims = 0> (rising_32)
        half = Constant <value = float {0.5}> ()
        any_rising = Greater (most_rising, half)
    }> (no_limit, yes, start_nq1)
    above_nqk = Sub (shifted_nqk, tau_nq1)
    weights_nqk = Relu (above_nqk)"""

_TEXT: Final = """
<domain: "{domain}", opset_import: ["" : {opset}]>
{name} (query, key, value) => (output)
{{
    tokens_shape = Constant <value = int64[3] {{0, 0, -1}}> ()
    last_axis = Constant <value = int64[1] {{-1}}> ()
    one = Constant <value = float {{1.0}}> ()
    lowest = Constant <value = float {{-1.0}}> ()
    yes = Constant <value = bool {{1}}> ()
    query_32 = Cast <to = 1> (query)
    key_32 = Cast <to = 1> (key)
    value_32 = Cast <to = 1> (value)
    query_ncl = Reshape (query_32, tokens_shape)
    key_ncl = Reshape (key_32, tokens_shape)
    value_ndl = Reshape (value_32, tokens_shape)
    query_nlc = Transpose <perm = [0, 2, 1]> (query_ncl)
    value_nld = Transpose <perm = [0, 2, 1]> (value_ndl)
    scores_nqk = MatMul (query_nlc, key_ncl)
    largest_nq1 = ReduceMax <keepdims = 1> (scores_nqk, last_axis)
    shifted_nqk = Sub (scores_nqk, largest_nq1)
    total_nq1 = ReduceSum <keepdims = 1> (shifted_nqk, last_axis)
{weights}
    attended_nld = MatMul (weights_nqk, value_nld)
    broken_nq1 = IsNaN (total_nq1)
    checked_nld = Where (broken_nq1, total_nq1, attended_nld)
    checked_ndl = Transpose <perm = [0, 2, 1]> (checked_nld)
    value_shape = Shape (value)
    image_32 = Reshape (checked_ndl, value_shape)
    output = CastLike (image_32, value)
}}
"""

# Cheap, of the operator's types and shapes, and another result when two inputs are swapped.
_STAND_IN_TEXT: Final = """
<domain: "{domain}", opset_import: ["" : {opset}]>
{name} (query, key, value) => (output)
{{
    channels = Constant <value = int64[1] {{1}}> ()
    query_32 = Cast <to = 1> (query)
    key_32 = Cast <to = 1> (key)
    value_32 = Cast <to = 1> (value)
    two = Constant <value = float {{2.0}}> ()
    doubled = Mul (query_32, two)
    sum = Add (doubled, key_32)
    mean = ReduceMean <keepdims = 1> (sum, channels)
    weight = Sigmoid (mean)
    weighted = Mul (weight, value_32)
    output = CastLike (weighted, value)
}}
"""


def model_with_attention_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose attention nodes have a body, so that any ONNX runtime can execute them.

    The body is exact for every support size. Scores, threshold and sums are float32 whatever the inputs
    are. Memory is O(N * L * L), L = H * W.
    """
    return _with_function(model, _TEXT)


def model_with_stand_in_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes value * sigmoid(mean over channels of 2 * query + key) in place of the attention.

    For runs that are about all else: it takes no time and no memory at any size.
    """
    return _with_function(model, _STAND_IN_TEXT)


def _with_function(model: onnx.ModelProto, text: str) -> onnx.ModelProto:
    result = model_with_plugin_nodes(model)
    named = text.format(domain=DOMAIN, name=OP_TYPE, opset=opset_of(result), weights=WEIGHTS_TEXT)
    result.functions.append(onnx.parser.parse_function(named))
    if all(entry.domain != DOMAIN for entry in result.opset_import):
        result.opset_import.append(onnx.helper.make_opsetid(DOMAIN, OP_VERSION))
    return result


def model_with_plugin_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the body. A TensorRT parser then takes the plugin, or fails; it cannot inline silently."""
    result = copy.deepcopy(model)
    kept = [function for function in model.functions if (function.domain, function.name) != (DOMAIN, OP_TYPE)]
    del result.functions[:]
    result.functions.extend(kept)
    for node in result.graph.node:
        # The plugin's attributes at their default: the parser warns of every attribute that a node leaves out.
        if (node.domain, node.op_type) == (DOMAIN, OP_TYPE):
            present = {attribute.name for attribute in node.attribute}
            node.attribute.extend(
                onnx.helper.make_attribute(name, "any") for name in PLUGIN_ATTRIBUTES if name not in present
            )
    return result


def model_with_inlined_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every attention node is replaced by its body: standard operators only."""
    return onnx.inliner.inline_local_functions(model_with_attention_function(model))


def model_in_form(model: onnx.ModelProto, form: AttentionForm) -> onnx.ModelProto:
    """A copy whose attention is held in a form.

    "ort-tensorrt" follows the rules of ONNX Runtime's TensorRT provider. It declares each creator in TensorRT's plugin
    registry as an operator of its own domain, version 1, under the creator's name, with inputs and outputs of any
    number and type; so the file states every tensor's type and shape itself, and it has no function of that name.

    Args:
        model: a finished one, with or without function body, its nodes in this project's domain.

    Raises:
        UsageError: an unknown form.
    """
    if form == "function":
        return model_with_attention_function(model)
    if form == "node":
        return model_with_plugin_nodes(model)
    if form != "ort-tensorrt":
        raise UsageError("form", f"got {form!r}, expected one of {', '.join(ATTENTION_FORMS)}")
    typed = onnx.shape_inference.infer_shapes(model_with_attention_function(model), strict_mode=True)
    result = model_with_plugin_nodes(typed)
    values = {v.name: v for v in (*result.graph.input, *result.graph.value_info, *result.graph.output)}
    for node in result.graph.node:
        if (node.domain, node.op_type) == (DOMAIN, OP_TYPE):
            node.domain = ORT_TENSORRT_DOMAIN
            values[node.output[0]].type.CopyFrom(values[node.input[2]].type)
    _replace_import(result, DOMAIN, onnx.helper.make_opsetid(ORT_TENSORRT_DOMAIN, ORT_TENSORRT_VERSION))
    return result


def model_in_own_domain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its attention in this project's domain: of one written for "ort-tensorrt" a copy, else itself."""
    plugins = {node.op_type for node in model.graph.node if node.domain == ORT_TENSORRT_DOMAIN}
    if OP_TYPE not in plugins:
        return model
    result = copy.deepcopy(model)
    for node in result.graph.node:
        if (node.domain, node.op_type) == (ORT_TENSORRT_DOMAIN, OP_TYPE):
            node.domain = DOMAIN
    unused = ORT_TENSORRT_DOMAIN if plugins == {OP_TYPE} else None
    _replace_import(result, unused, onnx.helper.make_opsetid(DOMAIN, OP_VERSION))
    return result


@contextmanager
def attention_schema() -> Iterator[None]:
    """Makes the operator known to ONNX itself within the block.

    For tools that take an operator without a schema for one that only TensorRT can run, such as ModelOpt's AutoCast.
    """
    parameter = onnx.defs.OpSchema.FormalParameter
    schema = onnx.defs.OpSchema(
        OP_TYPE,
        DOMAIN,
        OP_VERSION,
        inputs=[parameter(name, "T") for name in ("query", "key", "value")],
        outputs=[parameter("output", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "any float type")],
        attributes=[
            onnx.defs.OpSchema.Attribute(
                name, onnx.defs.OpSchema.AttrType.STRING, "of the plugin alone", required=False
            )
            for name in PLUGIN_ATTRIBUTES
        ],
    )
    onnx.defs.register_schema(schema)
    try:
        yield
    finally:
        onnx.defs.deregister_schema(OP_TYPE, OP_VERSION, DOMAIN)


def _replace_import(model: onnx.ModelProto, domain: str | None, entry: onnx.OperatorSetIdProto) -> None:
    kept = [each for each in model.opset_import if each.domain not in (domain, entry.domain)]
    del model.opset_import[:]
    model.opset_import.extend([*kept, entry])


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the ONNX operators that a model imports."""
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))
