"""The float32 network behind a typed or quantized one: the same nodes and weights, and nothing rounded between."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from support.small_networks import attention_network

from trt_hspan.graph import Precision, model_in_precision, model_with_attention_function
from trt_hspan.graph.float32_twin import float32_twin, float_outputs


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_twin_of_a_typed_network_is_the_float32_network(precision: Precision) -> None:
    plain = attention_network()
    typed = model_with_attention_function(model_in_precision(plain, precision))
    twin = float32_twin(typed)
    assert {node.name for node in plain.graph.node} == {
        node.name for node in twin.model.graph.node if node.op_type != "Identity"
    }
    assert twin.low_nodes == {node.name for node in plain.graph.node}
    assert all(tensor.data_type == TensorProto.FLOAT for tensor in twin.model.graph.initializer)
    assert not twin.model.functions
    assert not float32_twin(plain).low_nodes


def test_nodes_that_were_kept_in_float32_are_not_low() -> None:
    kept = model_in_precision(attention_network(), "fp16", keep_fp32=["conv*"])
    assert float32_twin(kept).low_nodes == {"attention0"}


WEIGHT = np.array([0.1, 0.2, 0.3, 0.4], np.float16)
TYPED = """
    <ir_version: 10, opset_import: ["" : 21]>
    net (float[1, 4] input) => (float[1, 4] output, int64[2] shape)
    <float scale = {0.5}, int8 zero = {0}, int8[4] stored = {1, 2, 3, 4},
     float16[1, 4] low, float16[1, 4] sum, float16[1, 4] whole_again>
    {
        low = Cast <to = 10> (input)
        quantized = QuantizeLinear (low, scale, zero)
        restored = DequantizeLinear (quantized, scale, zero)
        weights = DequantizeLinear (stored, scale, zero)
        wide = Cast <to = 1> (restored)
        product = Mul(wide, weights)
        whole = Cast <to = 7> (product)
        whole_again = Cast <to = 10> (whole)
        sum = Add(whole_again, weight)
        output = Cast <to = 1> (sum)
        shape = Shape(input)
    }
"""


def typed() -> onnx.ModelProto:
    model = onnx.parser.parse_model(TYPED)
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT, "weight"))
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def test_casts_between_floats_and_quantizers_of_activations_are_left_out_and_others_stay() -> None:
    twin = float32_twin(typed())
    kept = ["weights", "product", "whole", "whole_again", "sum", "shape", "output"]
    assert [node.name for node in twin.model.graph.node] == kept
    assert twin.model.graph.node[-1].op_type == "Identity"
    assert twin.low_nodes == {"whole_again", "sum"}
    assert not twin.model.graph.value_info
    onnx.checker.check_model(twin.model, full_check=True)
    session = onnxruntime.InferenceSession(twin.model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.float32([[0.3, 1.1, 1.7, 2.9]])
    output, shape = session.run(None, {"input": x})
    expected = np.trunc(x * np.float32([0.5, 1, 1.5, 2])) + WEIGHT.astype(np.float32)
    np.testing.assert_array_equal(output, expected)
    assert shape.tolist() == [1, 4]


def test_float_outputs_are_those_of_nodes_that_compute_with_the_picture() -> None:
    outputs = float_outputs(float32_twin(typed()).model)
    assert [(node.name, tensor) for node, tensor in outputs] == [
        (name, name) for name in ("product", "whole_again", "sum", "output")
    ]


def test_a_node_without_inputs_stays() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        net (float[1] input) => (float[1] output)
        { one = Constant <value = float[1] {1}> () output = Add(input, one) }""")
    twin = float32_twin(model)
    assert list(twin.model.graph.node) == list(model.graph.node)
    assert numpy_helper.to_array(twin.model.graph.node[0].attribute[0].t).tolist() == [1.0]
