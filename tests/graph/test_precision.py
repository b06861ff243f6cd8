"""Precision in the graph: which tensor has which type, and nothing turned into infinity on the way."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from support.small_networks import attention_network

from trt_hspan import HspanError, UsageError
from trt_hspan.graph import (
    NETWORK_PRECISIONS,
    PRECISIONS,
    Precision,
    base_precision_from_model,
    checked_precision,
    model_in_precision,
    model_with_attention_function,
    precision_from_model,
)
from trt_hspan.graph.cpu import model_for_cpu
from trt_hspan.graph.precision import float32_nodes


def two_layer_model(weight: float = 2.0, opset: int = 18) -> onnx.ModelProto:
    """first/Mul and last/Mul by one shared weight, with a residual over the first."""
    nodes = [
        helper.make_node("Mul", ["input", "weight"], ["a"], name="first/Mul"),
        helper.make_node("Add", ["a", "input"], ["b"], name="skip/Add"),
        helper.make_node("Mul", ["b", "weight"], ["output"], name="last/Mul"),
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "n"]) for name in ("input", "output")]
    weights = [numpy_helper.from_array(np.full((1,), weight, np.float32), "weight")]
    graph = helper.make_graph(nodes, "two", infos[:1], infos[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def types_of_tensors(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"input": x})[0]
    return result


def test_everything_computes_low_and_the_outside_stays_float32() -> None:
    types = types_of_tensors(model_in_precision(two_layer_model(), "fp16"))
    assert types["input"] == types["output"] == TensorProto.FLOAT
    assert types["a"] == types["b"] == TensorProto.FLOAT16


def test_kept_nodes_stay_float32_and_share_one_cast_each() -> None:
    model = model_in_precision(two_layer_model(), "fp16", keep_fp32=["skip/*"])
    types = types_of_tensors(model)
    assert types["a"] == TensorProto.FLOAT16
    assert types["b"] == TensorProto.FLOAT
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert sorted(cast.input[0] for cast in casts) == ["a", "b", "input", "output_fp16"]


def test_weight_used_in_both_types_exists_in_both() -> None:
    model = model_in_precision(two_layer_model(), "fp16", keep_fp32=["first/*"])
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types == {"weight": TensorProto.FLOAT, "weight_fp16": TensorProto.FLOAT16}
    onnx.checker.check_model(model, full_check=True)


def test_float32_is_left_as_it_is() -> None:
    assert model_in_precision(two_layer_model(), "fp32") == two_layer_model()


def test_weight_that_would_become_infinite_is_refused() -> None:
    with pytest.raises(HspanError, match="weight: its value 70000 does not fit fp16"):
        model_in_precision(two_layer_model(70000.0), "fp16")
    model_in_precision(two_layer_model(70000.0, opset=22), "bf16")


@pytest.mark.parametrize(("precision", "largest"), [("fp16", 65504.0), ("bf16", float.fromhex("0x1.fep127"))])
def test_the_lowest_float32_of_a_mask_becomes_the_lowest_of_the_type(
    precision: Precision, largest: float
) -> None:
    typed = model_in_precision(two_layer_model(float(np.finfo(np.float32).min), opset=22), precision)
    weight = next(tensor for tensor in typed.graph.initializer if tensor.name == "weight")
    assert np.unique(numpy_helper.to_array(weight).astype(np.float32)) == [-largest]


def test_bfloat16_needs_an_opset_that_knows_it() -> None:
    with pytest.raises(UsageError, match="22 or later"):
        model_in_precision(two_layer_model(), "bf16")


def test_emulated_bfloat16_rounds_after_every_node() -> None:
    model = model_in_precision(two_layer_model(1.7, opset=22), "bf16")
    x = np.random.default_rng(0).normal(size=(1, 4096)).astype(np.float32)

    def low(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)

    weight = low(np.float32([1.7]))
    a = low(low(x) * weight)
    expected = low(low(a + low(x)) * weight)
    assert types_of_tensors(model)["a"] == TensorProto.BFLOAT16
    np.testing.assert_array_equal(run(model_for_cpu(model), x), expected)


def test_emulated_half_precision_rounds_after_every_node() -> None:
    model = model_in_precision(two_layer_model(1.7), "fp16")
    x = np.random.default_rng(0).normal(size=(1, 4096)).astype(np.float32)
    weight = np.float16([1.7])
    a = x.astype(np.float16) * weight
    expected = ((a + x.astype(np.float16)) * weight).astype(np.float32)
    np.testing.assert_array_equal(run(model_for_cpu(model), x), expected)


def test_float32_models_pass_to_the_cpu_unchanged() -> None:
    model = two_layer_model()
    assert model_for_cpu(model) is model


def test_what_an_operator_takes_in_float32_alone_stays_float32() -> None:
    nodes = [
        helper.make_node("Shape", ["input"], ["shape"], name="Shape"),
        helper.make_node("Cast", ["shape"], ["sizes"], name="Cast", to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["sizes"], ["least"], name="ReduceMin", keepdims=0),
        helper.make_node("Resize", ["input", "", "scales"], ["large"], name="Resize", mode="linear"),
        helper.make_node("Mul", ["large", "least"], ["output"], name="Mul"),
    ]
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("input", [1, 1, 2, 3]), ("output", [1, 1, 4, 6]))
    ]
    weights = [numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")]
    graph = helper.make_graph(nodes, "resize", infos[:1], infos[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    low = model_in_precision(model, "fp16")
    onnx.checker.check_model(low, full_check=True)
    types = types_of_tensors(low)
    assert (types["sizes"], types["large"]) == (TensorProto.FLOAT16, TensorProto.FLOAT16)
    x = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    np.testing.assert_allclose(run(low, x), run(model, x), rtol=2**-9)


def test_a_type_is_read_by_its_name() -> None:
    assert [checked_precision(name) for name in PRECISIONS] == ["fp32", "fp16", "bf16"]
    for quantized in set(NETWORK_PRECISIONS) - set(PRECISIONS):
        with pytest.raises(UsageError, match=f"{quantized} needs pictures .*; use trt-hspan quantize"):
            checked_precision(quantized)
    with pytest.raises(UsageError, match="'half' is unknown; choose fp32, fp16, bf16"):
        checked_precision("half")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_type_of_a_network_is_that_of_its_convolutions_and_attention(precision: Precision) -> None:
    model = attention_network(precision=precision)
    assert base_precision_from_model(model) == precision_from_model(model) == precision
    is_float32 = precision == "fp32"
    assert float32_nodes(model) == (("conv0", "attention0", "conv1", "conv2") if is_float32 else ())


@pytest.mark.parametrize("kept", [("conv0", "conv1", "conv2"), ("attention0",)])
def test_nodes_kept_in_float32_do_not_make_a_network_another_one(kept: tuple[str, ...]) -> None:
    model = model_in_precision(attention_network(), "fp16", keep_fp32=kept)
    assert base_precision_from_model(model) == "fp16"
    assert float32_nodes(model) == kept


@pytest.mark.parametrize("types", ["float16 bfloat16", "bfloat16 float16", "float16 double"])
def test_a_network_of_two_low_types_or_another_one_is_refused(types: str) -> None:
    first, second = types.split()
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 22, "hspan" : 1]>
        net ({first}[1, 2, 4, 4] x, {first}[2, 2, 1, 1] w, {second}[1, 2, 4, 4] z)
            => ({first}[1, 2, 4, 4] y, {second}[1, 2, 4, 4] a)
        {{ y = Conv(x, w) a = hspan.HighSimilarityPassAttention(z, z, z) }}""")
    with pytest.raises(HspanError, match="net: its convolutions and attention have no common float type"):
        base_precision_from_model(model)


def named(text: str) -> onnx.ModelProto:
    """A parsed graph whose nodes are called after their first outputs."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> {text}')
    for node in model.graph.node:
        node.name = node.output[0]
    return model


MIXED = """
    mixed (float[1, n] input) => (float[1, n] output, float[1, n] more)
    <float[1] two = {2}, int64[2] flat = {1, -1}, float[1, n] whole_again>
    {
        shape = Shape(input)
        ones = ConstantOfShape <value = float[1] {1}> (shape)
        whole = Cast <to = 7> (input)
        whole_again = Cast <to = 1> (whole)
        joined = Concat <axis = 0> (ones, whole_again, input)
        sum = ReduceSum <keepdims = 0> (joined)
        added = Add(input, sum)
        output = Reshape(added, flat)
        more = Mul(output, two)
    }
"""


@pytest.mark.parametrize("kept", [(), ("whole_again",), ("more",), ("output", "joined")])
def test_every_kind_of_node_gets_the_types_that_it_takes(kept: tuple[str, ...]) -> None:
    model = named(MIXED)
    low = model_in_precision(model, "fp16", keep_fp32=kept)
    onnx.checker.check_model(low, full_check=True)
    types = types_of_tensors(low)
    assert (types["output"], types["more"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    assert types["ones"] == TensorProto.FLOAT  # the type of its value
    assert types["whole"] == TensorProto.INT64
    own = {node.name for node in model.graph.node}
    float32 = {n.name for n in low.graph.node if n.name in own and types[n.output[0]] == TensorProto.FLOAT}
    assert float32 == {"ones", *kept}
    x = np.arange(6, dtype=np.float32)[None] / 4
    for found, expected in zip(run_all(low, x), run_all(model, x), strict=True):
        np.testing.assert_array_equal(found, expected)  # all of them exact in FP16


def run_all(model: onnx.ModelProto, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: list[NDArray[np.float32]] = session.run(None, {"input": x})
    return result


def test_declared_types_of_values_follow_their_nodes() -> None:
    model = attention_network()
    low = model_in_precision(model, "fp16", keep_fp32=["conv1"])
    types = {value.name: value.type.tensor_type.elem_type for value in low.graph.value_info}
    low_types = dict.fromkeys(("conv0", "attention0"), TensorProto.FLOAT16)
    assert types == {**low_types, "conv1": TensorProto.FLOAT}
    onnx.checker.check_model(model_with_attention_function(low), full_check=True)


def test_an_infinite_weight_stays_and_the_largest_that_does_not_fit_is_named() -> None:
    infinite = model_in_precision(two_layer_model(float("inf")), "fp16")
    assert np.isinf(numpy_helper.to_array(infinite.graph.initializer[0])).all()
    model = two_layer_model()
    values = np.array([70000.0, -80000.0, 3.0], np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "weight"))
    with pytest.raises(HspanError, match="weight: its value 80000 does not fit fp16; use bf16 or fp32"):
        model_in_precision(model, "fp16")


def test_what_must_be_folded_first_is_named() -> None:
    constant = named(
        "net (float[1] input) => (float[1] output) { c = Constant <value = float {1}> () output = Add(input, c) }"
    )
    branch = onnx.parser.parse_graph("b () => (float[1] r) { r = Identity(input) }")
    both = named("net (float[1] input, bool yes) => (float[1] output) { output = Identity(input) }")
    both.graph.node[0].CopyFrom(
        helper.make_node("If", ["yes"], ["output"], name="choice", then_branch=branch, else_branch=branch)
    )
    for model, what in ((constant, "c: Constant"), (both, "choice: If")):
        with pytest.raises(HspanError, match=f"{what} nodes must be folded before precision is chosen"):
            model_in_precision(model, "fp16")
