"""The attention operator in chunks of queries, in standard ONNX operators, with statistics of its scores.

The Newton iteration is that of `graph.attention_function`. For measuring only: it takes
some rows at a time, so that memory is O(chunk * L) and not O(L * L), L = H * W.
"""

from __future__ import annotations

import copy
from typing import Final

import onnx
import onnx.inliner
import onnx.parser

from trt_hspan.engine.range_record import LowPrecision
from trt_hspan.graph import attention_nodes, opset_of
from trt_hspan.graph.attention_function import WEIGHTS_TEXT

_DOMAIN: Final = "hspan.audit"
_NAME: Final = "ChunkedAttention"
# Measured at 64x64 pixels with ONNX Runtime 1.32: 16 to 64 rows fit the cache, 256 take 1.6 times as long.
QUERIES_PER_CHUNK: Final = 32

_ELEMENT_TYPE: Final[dict[LowPrecision, int]] = {
    "fp16": onnx.TensorProto.FLOAT16,
    "bf16": onnx.TensorProto.BFLOAT16,
}

# Rows of zeros fill the last chunk up; their scores are 0 and change no maximum. Scores that can have a weight
# are those within 1 of their row's largest: the threshold lies in [-1, 0) below it.
_TEXT: Final = """
<domain: "{domain}", opset_import: ["" : {opset}]>
{name} (query, key, value) => (output, largest_score, score_error)
{{
    tokens_shape = Constant <value_ints = [0, 0, -1]> ()
    key_ncl = Reshape (key, tokens_shape)
    query_ncl = Reshape (query, tokens_shape)
    query_nlc = Transpose <perm = [0, 2, 1]> (query_ncl)
    value_ndl = Reshape (value, tokens_shape)
    value_nld = Transpose <perm = [0, 2, 1]> (value_ndl)
    key_low = Cast <to = {low}> (key_ncl)
    key_rounded = Cast <to = 1> (key_low)
    chunk = Constant <value_ints = [{chunk}]> ()
    zero = Constant <value_ints = [0]> ()
    one_1 = Constant <value_ints = [1]> ()
    length = Shape <start = 1, end = 2> (query_nlc)
    last_index = Sub (length, one_1)
    last_chunk = Div (last_index, chunk)
    chunks = Add (last_chunk, one_1)
    filled = Mul (chunks, chunk)
    missing = Sub (filled, length)
    zeros_2 = Constant <value_ints = [0, 0, 0, 0]> ()
    zero_1 = Constant <value_ints = [0]> ()
    pads = Concat <axis = 0> (zeros_2, missing, zero_1)
    query_filled = Pad (query_nlc, pads)
    trips = Squeeze (chunks)
    yes = Constant <value = bool {{1}}> ()
    nothing = Constant <value_float = 0.0> ()
    largest_score, score_error, attended_tncd = Loop
        <body = one_chunk (int64 step, bool go_on, float largest_in, float error_in) =>
                          (bool again, float largest_out, float error_out, float[n, q, d] attended_ncd) {{
        again = Identity (go_on)
        last_axis = Constant <value_ints = [-1]> ()
        lowest = Constant <value_float = -1.0> ()
        one = Constant <value_float = 1.0> ()
        step_1 = Unsqueeze (step, zero)
        first = Mul (step_1, chunk)
        end = Add (first, chunk)
        query_nqc = Slice (query_filled, first, end, one_1)
        scores_nqk = MatMul (query_nqc, key_ncl)
        sizes_nqk = Abs (scores_nqk)
        largest_here = ReduceMax <keepdims = 0> (sizes_nqk)
        largest_out = Max (largest_in, largest_here)
        largest_nq1 = ReduceMax <keepdims = 1> (scores_nqk, last_axis)
        shifted_nqk = Sub (scores_nqk, largest_nq1)
        query_low = Cast <to = {low}> (query_nqc)
        query_rounded = Cast <to = 1> (query_low)
        rounded_nqk = MatMul (query_rounded, key_rounded)
        moved_nqk = Sub (rounded_nqk, scores_nqk)
        moved_size_nqk = Abs (moved_nqk)
        broken_nqk = IsNaN (moved_size_nqk)
        infinite = Constant <value_float = inf> ()
        told_nqk = Where (broken_nqk, infinite, moved_size_nqk)
        deciding_nqk = Greater (shifted_nqk, lowest)
        error_nqk = Where (deciding_nqk, told_nqk, nothing)
        error_here = ReduceMax <keepdims = 0> (error_nqk)
        error_out = Max (error_in, error_here)
{weights}
        attended_ncd = MatMul (weights_nqk, value_nld)
    }}> (trips, yes, nothing, nothing)
    attended_ntcd = Transpose <perm = [1, 0, 2, 3]> (attended_tncd)
    flat_shape_start = Shape <start = 0, end = 1> (value_nld)
    depth = Shape <start = 2, end = 3> (value_nld)
    flat_shape = Concat <axis = 0> (flat_shape_start, filled, depth)
    attended_nfd = Reshape (attended_ntcd, flat_shape)
    attended_nld = Slice (attended_nfd, zero, length, one_1)
    attended_ndl = Transpose <perm = [0, 2, 1]> (attended_nld)
    value_shape = Shape (value)
    output = Reshape (attended_ndl, value_shape)
}}
"""


def with_chunked_attention(model: onnx.ModelProto, precision: LowPrecision) -> onnx.ModelProto:
    """A copy of a float32 model that ONNX Runtime executes without an L x L tensor.

    Every attention node gets two more results: `<tensor>/largest_score`, the largest |q . k|, and
    `<tensor>/score_error`, the most that rounding query and key to `precision` moves a score that can have a
    weight (infinite when that overflows); both float32 scalars.

    Args:
        model: float32 throughout, function body removed.
        precision: the type whose rounding is measured.
    """
    result = copy.deepcopy(model)
    for node in attention_nodes(result):
        node.domain, node.op_type = _DOMAIN, _NAME
        node.output.extend(score_outputs(node.output[0]))
    text = _TEXT.format(
        domain=_DOMAIN,
        name=_NAME,
        opset=opset_of(result),
        low=_ELEMENT_TYPE[precision],
        chunk=QUERIES_PER_CHUNK,
        weights=WEIGHTS_TEXT,
    )
    result.functions.append(onnx.parser.parse_function(text))
    result.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    return onnx.inliner.inline_local_functions(result)


def score_outputs(tensor: str) -> tuple[str, str]:
    """Names of the largest score and of the score error of the attention node that makes `tensor`."""
    return f"{tensor}/largest_score", f"{tensor}/score_error"
