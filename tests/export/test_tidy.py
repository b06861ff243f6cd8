"""Names, constants and order of an exported graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from trt_hspan.export.tidy import tidy
from trt_hspan.names import DOMAIN, OP_TYPE


def exported(text: str, scopes: dict[str, str] | None = None) -> onnx.ModelProto:
    """A graph as torch.onnx leaves it: each node says the modules that it comes from, and more."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18, "{DOMAIN}" : 1]>
        main (float[1, 2, h, w] input) => (float[1, 2, h, w] output) {text}""")
    for index, node in enumerate(model.graph.node):
        namespace = (scopes or {}).get(node.output[0], "")
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/somebody/net.py")
        node.metadata_props.add(key="namespace", value=namespace)
        node.name, node.doc_string = f"node_{index}", "from torch"
    for value in (*model.graph.input, *model.graph.output):
        value.metadata_props.add(key="pkg.torch", value="secret")
        value.doc_string = "secret"
    model.graph.metadata_props.add(key="pkg.torch", value="secret")
    model.metadata_props.add(key="pkg.torch", value="secret")
    return model


def names(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


def test_nodes_are_named_after_the_innermost_module_and_numbered_from_the_second_on() -> None:
    inner = ": Net/body.0: nn.Sequential/body.0.act : ReLU/relu_1: aten.relu.default"
    scopes = dict.fromkeys("abc", inner) | {
        "d": ": Net/attention: Block/op: hspan",
        "e": ": Net/add: aten.add",
    }
    text = f"""
    {{
        a = Relu(input) b = Relu(a) c = Relu(b)
        d = {DOMAIN}.{OP_TYPE}(c, c, c)
        e = Neg(d)
        output = Neg(e)
    }}"""
    tidied = tidy(exported(text, scopes))
    assert names(tidied) == [
        *("body.0.act/Relu", "body.0.act/Relu_2", "body.0.act/Relu_3"),
        *("attention/Attention", "Neg", "Neg_2"),
    ]
    assert tidied.graph.name == "hspan"
    for secret in (b"secret", b"somebody", b"from torch"):
        assert secret not in tidied.SerializeToString()


def test_what_is_computed_from_constants_alone_is_a_weight() -> None:
    text = """
        <float[2] first = {1, 2}>
    {
        one = Constant <value = float {1}> ()
        small = Constant <value = float[1] {3}> ()
        sum = Add(first, one)
        unused = Mul(first, sum)
        scaled = Mul(small, input)
        shape = Constant <value_ints = [1, 2, 1, 1]> ()
        factor = Reshape(sum, shape)
        output = Mul(scaled, factor)
    }"""
    tidied = tidy(exported(text))
    assert names(tidied) == ["Mul_2", "Mul_3"]
    weights = [numpy_helper.to_array(tensor) for tensor in tidied.graph.initializer]
    assert [weight.shape for weight in weights] == [(1,), (1, 2, 1, 1)]  # in the order of their use
    np.testing.assert_array_equal(weights[1].ravel(), [2.0, 3.0])


def test_nodes_of_one_depth_stand_together_and_values_follow_them() -> None:
    text = """
        <float[2, 2, 1, 1] w = {1, 2, 3, 4}, float[1] z = {5},
         float[1, 2, h, w_] a, float[1, 2, h, w_] b, float[1, 2, h, w_] c>
    {
        a = Relu(input)
        b = Conv(a, w)
        c = Neg(input)
        d = Mul(b, z)
        e = Conv(c, w)
        output = Sum(d, e)
    }"""
    tidied = tidy(exported(text))
    assert [node.output[0] for node in tidied.graph.node] == ["a", "c", "b", "e", "d", "output"]
    assert [tensor.name for tensor in tidied.graph.initializer] == ["w", "z"]
    values = [value.name for value in tidied.graph.value_info]
    assert [name for name in values if name in "abc"] == ["a", "c", "b"]
    assert not {"w", "z"} & set(values)


@pytest.mark.parametrize("branch_reads", ["input", "deep"])
def test_the_depth_of_a_branch_is_that_of_what_it_reads_from_around_it(branch_reads: str) -> None:
    model = exported("{ deep = Relu(input) deeper = Relu(deep) output = Add(deeper, input) }")
    branch = onnx.parser.parse_graph(f"b () => (float[1, 2, h, w] r) {{ r = Neg({branch_reads}) }}")
    model.graph.input.append(helper.make_tensor_value_info("choice", onnx.TensorProto.BOOL, []))
    model.graph.node.insert(
        2, helper.make_node("If", ["choice"], ["chosen"], then_branch=branch, else_branch=branch)
    )
    model.graph.node[3].input[1] = "chosen"
    order = [node.output[0] for node in tidy(model).graph.node]
    expected = {
        "input": ["deep", "chosen", "deeper", "output"],
        "deep": ["deep", "deeper", "chosen", "output"],
    }
    assert order == expected[branch_reads]
