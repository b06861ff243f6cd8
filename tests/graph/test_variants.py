"""Which variants a network has, and what is written into each: opset, headroom, float32 nodes, body, metadata."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.small_networks import attention_network

import trt_hspan
from trt_hspan import HspanError, UsageError
from trt_hspan.graph import OnnxMetadata, Precision, metadata_from_model, opset_of, tensor_types
from trt_hspan.graph.headroom import SCALING_NODE
from trt_hspan.graph.precision import float32_nodes
from trt_hspan.graph.variants import (
    Variants,
    finished_model,
    lowest_opset,
    opset_to_write,
    variants_from_model,
)
from trt_hspan.names import DOMAIN, OP_TYPE, OP_VERSION

HSPAN_FLOAT32 = ("sub_mean/Conv", "head.0/Conv", "Add", SCALING_NODE, "add_mean/Conv")


def hspan() -> onnx.ModelProto:
    """The names of an HSPAN's ends around one attention node, at 1x1 convolutions that change nothing."""
    nodes, weights, value = [], [], "input"
    for layer in ("sub_mean", "head.0", "tail.0.0", "tail.1", "add_mean"):
        weight = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
        weights += [
            numpy_helper.from_array(weight, f"{layer}.weight"),
            numpy_helper.from_array(np.zeros(3, np.float32), f"{layer}.bias"),
        ]
        result = "output" if layer == "add_mean" else layer
        inputs = [value, f"{layer}.weight", f"{layer}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [result], name=f"{layer}/Conv"))
        value = result
        if layer == "head.0":
            nodes.append(
                helper.make_node(OP_TYPE, [value] * 3, ["attended"], name="attention", domain=DOMAIN)
            )
            nodes.append(helper.make_node("Add", ["attended", value], ["skip"], name="Add"))
            value = "skip"
    shape = ["N", 3, "H", "W"]
    picture, result, attended = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name in ("input", "output", "attended")
    )
    graph = helper.make_graph(nodes, "hspan", [picture], [result], weights, value_info=[attended])
    versions = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, OP_VERSION)]
    return helper.make_model(graph, opset_imports=versions, ir_version=10)


def names(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


def test_a_float32_network_has_a_variant_in_every_type() -> None:
    network = variants_from_model(attention_network(), "net.onnx")
    requests: tuple[Precision | None, ...] = (None, "fp32", "fp16", "bf16")
    assert [network.precision(each, option="--base") for each in requests] == ["fp16", "fp32", "fp16", "bf16"]
    assert network.precision(None, option="--base", default="fp32") == "fp32"
    assert network.float32() is network.bare
    assert not network.bare.functions


def test_a_typed_network_has_itself_alone() -> None:
    network = variants_from_model(attention_network(precision="fp16"), "net.onnx")
    assert network.precision(None, option="--base") == network.precision("fp16", option="--base") == "fp16"
    for other in ("fp32", "bf16"):
        with pytest.raises(UsageError, match=f"--base: {other}, but net.onnx computes in fp16; give its"):
            network.precision(other, option="--base")
    assert network.typed("fp16") is network.bare
    with pytest.raises(UsageError, match=r"--keep-fp32: is part of net\.onnx already"):
        network.typed("fp16", keep_fp32=["conv0"])
    assert set(tensor_types(network.float32()).values()) == {TensorProto.FLOAT}


def test_only_fp16_of_a_float32_hspan_gets_headroom() -> None:
    network = variants_from_model(hspan(), "net")
    assert {each: SCALING_NODE in names(network.template(each)) for each in ("fp32", "fp16", "bf16")} == {
        "fp32": False,
        "fp16": True,
        "bf16": False,
    }
    assert SCALING_NODE not in names(variants_from_model(attention_network(), "net").template("fp16"))
    typed = variants_from_model(network.model("fp16"), "net")
    assert names(typed.template("fp16")).count(SCALING_NODE) == 1


def test_an_hspan_keeps_its_ends_in_float32_and_other_networks_what_is_named() -> None:
    network = variants_from_model(hspan(), "net")
    assert float32_nodes(network.typed("fp16")) == HSPAN_FLOAT32
    assert set(float32_nodes(network.typed("fp16", keep_fp32=["att*"]))) == {*HSPAN_FLOAT32, "attention"}
    nothing = variants_from_model(hspan(), "net", keep_fp32=())
    assert float32_nodes(nothing.typed("fp16")) == ()
    other = variants_from_model(attention_network(), "net")
    assert float32_nodes(other.typed("fp16")) == ()
    named = variants_from_model(attention_network(), "net", keep_fp32=["conv1"])
    assert float32_nodes(named.typed("fp16", keep_fp32=["conv2"])) == ("conv1", "conv2")


def test_a_finished_model_has_a_body_and_says_what_it_is() -> None:
    metadata = OnnxMetadata(scale=1, architecture="own")
    network = variants_from_model(attention_network(), "net", metadata=metadata)
    model = network.model("bf16", keep_fp32=["conv1"])
    assert len(model.functions) == 1
    assert float32_nodes(model) == ("conv1",)
    assert (model.producer_name, model.producer_version) == ("trt-hspan", trt_hspan.__version__)
    assert metadata_from_model(model) == OnnxMetadata(
        scale=1, architecture="own", precision="bf16", tool_version=trt_hspan.__version__
    )
    own = variants_from_model(attention_network(), "net")
    assert own.metadata.source_sha256 == metadata_from_model(own.bare).source_sha256 == "c" * 64


def test_a_graph_that_is_not_valid_is_refused_with_its_name() -> None:
    model = attention_network()
    model.graph.node[1].input[0] = "missing"
    with pytest.raises(HspanError, match=r"net\.onnx: not a valid ONNX model: .*missing.*; export it again"):
        finished_model(model, OnnxMetadata(), "net.onnx")


def test_a_network_without_the_attention_is_refused() -> None:
    model = attention_network()
    del model.graph.node[1]
    with pytest.raises(HspanError, match=r"net\.onnx: contains no hspan::"):
        variants_from_model(model, "net.onnx")


def test_the_lowest_opset_is_the_first_that_has_the_type_and_its_quantization() -> None:
    assert [lowest_opset(each) for each in ("fp32", "fp16", "bf16")] == [18, 18, 22]
    assert [lowest_opset(each, quantized=True) for each in ("fp32", "fp16", "bf16")] == [19, 19, 22]


@pytest.mark.parametrize(("precision", "lowest"), [("fp32", 18), ("fp16", 18), ("bf16", 22)])
def test_an_opset_is_taken_from_the_lowest_to_23(precision: Precision, lowest: int) -> None:
    assert opset_to_write(precision, None) == opset_to_write(precision, lowest) == lowest
    assert opset_to_write(precision, 23) == 23
    for outside in (lowest - 1, 24):
        with pytest.raises(UsageError, match=f"--opset: {outside} has no {precision}; choose {lowest} to 23"):
            opset_to_write(precision, outside)


@pytest.mark.parametrize(("ir_version", "expected"), [(8, 9), (10, 10)])
def test_a_graph_is_raised_to_the_opset_and_never_lowered(ir_version: int, expected: int) -> None:
    model = attention_network(opset=18)
    model.ir_version = ir_version
    network = variants_from_model(model, "net")
    assert network.template("fp16") is network.bare
    raised = network.template("fp16", opset=20)
    assert (opset_of(raised), raised.ir_version) == (20, expected)
    assert metadata_from_model(raised) == network.metadata
    assert names(raised) == names(network.bare)
    newer = variants_from_model(attention_network(opset=22), "net")
    assert newer.template("fp16", opset=20) is newer.bare


def reducing() -> Variants:
    """Opset 17, where a reduction names its axes in an attribute."""
    model = attention_network(opset=18)
    model.graph.node.append(helper.make_node("ReduceMean", ["output"], ["mean"], name="mean", axes=[1]))
    model.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, None))
    next(entry for entry in model.opset_import if not entry.domain).version = 17
    return variants_from_model(model, "net")


def test_what_becomes_an_input_in_a_later_opset_is_a_weight_and_no_node() -> None:
    raised = reducing().template("fp32")
    assert opset_of(raised) == 18
    assert "Constant" not in {node.op_type for node in raised.graph.node}
    mean = next(node for node in raised.graph.node if node.name == "mean")
    axes = next(tensor for tensor in raised.graph.initializer if tensor.name == mean.input[1])
    assert numpy_helper.to_array(axes).tolist() == [1]
