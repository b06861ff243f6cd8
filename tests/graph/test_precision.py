"""Precision in the graph: which tensor has which type, and nothing turned into infinity on the way."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trt_hspan import HspanError, UsageError
from trt_hspan.graph import Precision, model_for_cpu, model_in_precision


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
