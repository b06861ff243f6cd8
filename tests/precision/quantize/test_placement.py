"""Where Q/DQ stands, read from the graph with code of the tests' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.export_cache import ExportCache

from trt_hspan import HspanError, UsageError
from trt_hspan.graph import Precision, attention_nodes, precision_from_model, quantization_from_model
from trt_hspan.precision.crops import TilePlan
from trt_hspan.precision.quantize.insertion import LayerScales, model_with_qdq
from trt_hspan.precision.quantize.layers import layers_to_quantize
from trt_hspan.precision.quantize.pipeline import QuantizationRequest, Quantized, quantize
from trt_hspan.precision.quantize.source import Source, source_from_path

IN_BASE = {"sub_mean/Conv", "head.0/Conv", "tail.1/Conv", "add_mean/Conv"}
ELEMENT = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Conv"]


def check_pair(model: onnx.ModelProto, name: str, *, kind: int, base: int) -> None:
    """`name` is a dequantized activation: scalar scale in the base type, zero point 0 of the quantized type."""
    stored, made = initializers(model), producers(model)
    dequantize = made[name]
    quantize_node = made[dequantize.input[0]]
    assert (dequantize.op_type, quantize_node.op_type) == ("DequantizeLinear", "QuantizeLinear")
    assert list(dequantize.input[1:]) == list(quantize_node.input[1:])
    scale, zero = (stored[n] for n in dequantize.input[1:])
    assert scale.data_type == base
    assert list(scale.dims) == []
    assert zero.data_type == kind
    assert list(zero.dims) == []
    assert not numpy_helper.to_array(zero).astype(np.float32).any()
    assert float(numpy_helper.to_array(scale)) > 0


def check_weight(model: onnx.ModelProto, name: str, *, kind: int, base: int) -> None:
    """`name` is a dequantized weight: stored in the quantized type, one scale for each output channel."""
    stored = initializers(model)
    node = producers(model)[name]
    assert node.op_type == "DequantizeLinear"
    weight, scale, zero = (stored[n] for n in node.input)
    assert [a.i for a in node.attribute if a.name == "axis"] == [0]
    assert weight.data_type == zero.data_type == kind
    assert scale.data_type == base
    assert list(scale.dims) == list(zero.dims) == [weight.dims[0]]
    assert not numpy_helper.to_array(zero).astype(np.float32).any()
    if kind == TensorProto.INT8:
        assert numpy_helper.to_array(weight).min() >= -127


@pytest.mark.parametrize(
    ("kind", "base"), [("int8", "fp16"), ("int8", "fp32"), ("int8", "bf16"), ("fp8", "fp16")]
)
def test_every_convolution_between_first_and_last_has_its_input_and_weights_quantized(
    exported: ExportCache, photographs: Path, kind: str, base: Precision
) -> None:
    network = source_from_path(exported("small_x2"), base=base)
    request = QuantizationRequest(
        precision=kind,  # type: ignore[arg-type]
        calibration=str(photographs),
        method="minmax",
        rounding=None if kind == "fp8" else "nearest",
        tiles=TilePlan(count=1, side=16),
    )
    model = quantize(network, request).model
    element = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}[kind]
    float_weights = {name for name, t in initializers(model).items() if t.data_type == ELEMENT[base]}
    quantized = [node for node in convolutions(model) if node.name not in IN_BASE]
    assert len(quantized) == len(convolutions(model)) - 4
    for node in quantized:
        check_pair(model, node.input[0], kind=element, base=ELEMENT[base])
        check_weight(model, node.input[1], kind=element, base=ELEMENT[base])
        assert node.input[2] in float_weights  # the bias is not quantized
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    assert opset == (22 if base == "bf16" else 19)
    onnx.checker.check_model(model, full_check=True)


def test_sums_shifts_first_last_and_attention_read_nothing_quantized(int8: Quantized) -> None:
    made = producers(int8.model)
    for node in int8.model.graph.node:
        if node.op_type in ("Conv", "DequantizeLinear") and node.name not in IN_BASE:
            continue
        for name in node.input:
            assert name not in made or made[name].op_type != "DequantizeLinear", node.name


def test_query_key_and_value_share_one_pair(int8: Quantized) -> None:
    for attention in attention_nodes(int8.model):
        made = producers(int8.model)
        convs = [made[made[name].input[0]] for name in attention.input]
        assert len({node.input[0] for node in convs}) == 1
    quantizers = [node.input[0] for node in int8.model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == len(set(quantizers))


def test_stored_integers_are_the_weights_rounded_up_or_down(int8: Quantized, source: Source) -> None:
    stored, original, made = initializers(int8.model), initializers(source.base), producers(int8.model)
    originals = {node.name: original[node.input[1]] for node in convolutions(source.base)}
    moved = 0
    for node in convolutions(int8.model):
        if node.name in IN_BASE:
            continue
        weight, scale, _ = (numpy_helper.to_array(stored[n]) for n in made[node.input[1]].input)
        exact = numpy_helper.to_array(originals[node.name]).astype(np.float64)
        steps = exact / scale.astype(np.float64).reshape(-1, 1, 1, 1)
        # The scale is rounded to float16, so the largest weight may lie 2^-11 beyond the last integer.
        assert np.abs(weight - steps).max() < 1 + 127 * 2.0**-11
        expected = np.abs(exact).reshape(len(exact), -1).max(axis=1) / 127
        np.testing.assert_allclose(scale, expected, rtol=2.0**-11)
        moved += int((np.abs(weight - steps) > 0.5).sum())
    assert moved > 0  # adaptive rounding did something


def test_the_graph_shows_what_is_quantized(int8: Quantized) -> None:
    facts = quantization_from_model(int8.model)
    assert facts is not None
    assert precision_from_model(int8.model) == facts.type == "int8"
    assert facts.convolutions - facts.quantized_convolutions == 4
    assert facts.quantized_convolutions == len(int8.recipe.quantized)


def test_sums_attention_and_the_last_convolution_are_quantized_when_asked(
    source: Source, photographs: Path
) -> None:
    request = QuantizationRequest(
        precision="int8",
        calibration=str(photographs),
        method="minmax",
        rounding="nearest",
        tiles=TilePlan(count=1, side=16),
        include=("tail.1/*", "body.0/Add", "body.0.*Attention"),
        exclude=("body.1.*",),
    )
    model = quantize(source, request).model
    made = producers(model)
    nodes = {node.name: node for node in model.graph.node}
    wanted = [nodes["tail.1/Conv"], nodes["body.0/Add"], attention_nodes(model)[0]]
    for node in wanted:
        inputs = [name for name in node.input if name in made]
        assert all(made[name].op_type == "DequantizeLinear" for name in inputs), node.name
    untouched = [node for node in convolutions(model) if node.name.startswith("body.1.")]
    assert untouched
    assert all(made[node.input[0]].op_type != "DequantizeLinear" for node in untouched)


def test_a_pattern_that_matches_nothing_is_wrong_usage(source: Source) -> None:
    with pytest.raises(UsageError, match=r"--exclude: 'body\.9\.\*' matches no"):
        layers_to_quantize(source.base, exclude=["body.9.*"])
    with pytest.raises(HspanError, match="no layer is left"):
        layers_to_quantize(source.base, exclude=["*"])


def of_every_kind() -> onnx.ModelProto:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 19]>
        net (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) <float[1, 1, 1, 1] w = {1}>
        {
            first = Conv (x, w)
            made = Relu (w)
            computed = Conv (first, made)
            stored = Conv (w, w)
            second = Conv (first, w)
            shifted = Add (second, w)
            sum = Add (shifted, first)
            third = Conv (sum, w)
            y = Conv (third, w)
        }""")
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def test_of_any_network_all_convolutions_but_the_first_and_last_are_taken() -> None:
    def names(**patterns: list[str]) -> list[str]:
        return [node.name for node in layers_to_quantize(of_every_kind(), **patterns)]

    assert names() == ["second", "third"]
    assert names(include=["sum", "first"], exclude=["sec*"]) == ["first", "sum", "third"]
    assert names(include=["sum"], exclude=["sum"]) == ["second", "third"]
    for no_layer in ("computed", "stored", "shifted", "made"):
        with pytest.raises(
            UsageError, match=f"--include: '{no_layer}' matches no convolution, sum or attention"
        ):
            names(include=[no_layer])


def two_convolutions() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Conv", ["x", "w"], ["y"], name="second"),
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 4, 4]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "two", infos[:1], infos[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def test_scales_that_do_not_fit_are_refused() -> None:
    scales = LayerScales(activations={"x": 0.5}, weight=(1.0, 1.0))
    with pytest.raises(HspanError, match="third: the model has no layer of this name"):
        model_with_qdq(two_convolutions(), {"third": scales}, "int8")
    with pytest.raises(HspanError, match="first: reads x, but its scales are for y"):
        model_with_qdq(
            two_convolutions(), {"first": LayerScales(activations={"y": 1.0}, weight=(1.0, 1.0))}, "int8"
        )
    other = LayerScales(activations={"x": 0.25}, weight=(1.0, 1.0))
    with pytest.raises(HspanError, match="x: has two scales"):
        model_with_qdq(two_convolutions(), {"first": scales, "second": other}, "int8")
    with pytest.raises(HspanError, match="first: has 2 output channels, but 3 scales"):
        model_with_qdq(
            two_convolutions(), {"first": LayerScales(activations={"x": 1.0}, weight=(1.0,) * 3)}, "int8"
        )


def test_a_pair_serves_every_layer_that_reads_a_tensor_and_weights_nobody_reads_are_left_out() -> None:
    model = two_convolutions()
    scales = LayerScales(activations={"x": 0.5}, weight=(1.0, 1.0))
    sparing = LayerScales(activations={"x": 0.5}, weight=None)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1.0), "given"))
    model.graph.output.append(helper.make_tensor_value_info("given", TensorProto.FLOAT, []))
    result = model_with_qdq(model, {"first": scales, "second": sparing}, "int8")
    kinds = [node.op_type for node in result.graph.node]
    assert kinds == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv", "Conv"]
    assert list(result.graph.node[-2].input) == ["x_dequantized", "w_dequantized"]
    assert list(result.graph.node[-1].input) == ["x_dequantized", "w"]
    assert initializers(result).keys() == {
        *("w", "given", "x_scale", "zero_point", "w_quantized", "w_scale", "zero_point_2")
    }
    del model.graph.node[1]
    assert "w" not in initializers(model_with_qdq(model, {"first": scales}, "int8"))
