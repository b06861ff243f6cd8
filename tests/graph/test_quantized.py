"""Quantized graphs on a CPU: the emulation against exact integers, and OpenVINO against the emulation."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trt_hspan import HspanError
from trt_hspan.graph import OnnxMetadata, QuantizedType, quantization_from_model, with_metadata
from trt_hspan.graph.cpu import model_for_cpu, model_with_native_types
from trt_hspan.graph.float32_twin import float32_twin
from trt_hspan.graph.quantized import convolution_macs, quantized_type_from_model
from trt_hspan.machine.facts import sums_int8_exactly
from trt_hspan.precision.quantize.insertion import LayerScales, model_with_qdq
from trt_hspan.runtime.openvino_session import openvino_network

RANDOM = np.random.default_rng(0)
WEIGHTS = [RANDOM.normal(size=(8, 8, 3, 3)).astype(np.float16) for _ in range(2)]
BIASES = [RANDOM.normal(size=8).astype(np.float16) for _ in range(2)]
SCALES = LayerScales(
    activations={"x": 0.03125}, weight=tuple(np.linspace(0.01, 0.02, 8).astype(np.float16).tolist())
)
HIDDEN = LayerScales(activations={"r": 0.25}, weight=SCALES.weight)


def two_convolutions(base: int, *, cast: bool = True) -> onnx.ModelProto:
    """input -> Cast -> Conv -> Relu -> Conv -> Cast -> output, in the base type."""
    dtype = helper.tensor_dtype_to_np_dtype(base)
    nodes = [
        helper.make_node("Cast", ["input"], ["x"], to=base),
        helper.make_node("Conv", ["x", "w0", "b0"], ["c"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w1", "b1"], ["y"], name="second", pads=[1] * 4),
        helper.make_node("Cast", ["y"], ["output"], to=TensorProto.FLOAT),
    ]
    stored = {"w0": WEIGHTS[0], "w1": WEIGHTS[1], "b0": BIASES[0], "b1": BIASES[1]}
    initializers = [numpy_helper.from_array(v.astype(dtype), k) for k, v in stored.items()]
    infos = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8, "h", "w"]) for n in ("input", "output")
    ]
    graph = helper.make_graph(nodes, "two", infos[:1], infos[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"input": x})[0]
    return result


def picture() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(1, 8, 6, 7)).astype(np.float32)


def integer_convolution(x: NDArray[np.float64], layer: int, scales: LayerScales) -> NDArray[np.float64]:
    """Exact: INT8 times INT8 summed up in int64, one multiplication by both scales, the bias. Tests' own loops."""
    (scale,) = scales.activations.values()
    codes = np.clip(np.rint(x[0] / scale), -128, 127).astype(np.int64)
    per_channel = np.array(scales.weight)
    weight = np.clip(np.rint(WEIGHTS[layer].astype(np.float64) / per_channel[:, None, None, None]), -127, 127)
    padded = np.pad(codes, ((0, 0), (1, 1), (1, 1)))
    height, width = codes.shape[1:]
    total = np.zeros((8, height, width), np.int64)
    for dy in range(3):
        for dx in range(3):
            window = padded[:, dy : dy + height, dx : dx + width]
            total += np.einsum("oc,chw->ohw", weight[:, :, dy, dx].astype(np.int64), window)
    return (total * scale * per_channel[:, None, None] + BIASES[layer].astype(np.float64)[:, None, None])[
        None
    ]


def test_the_emulation_is_exact_integer_arithmetic_rounded_once_to_the_base_type() -> None:
    model = model_with_qdq(two_convolutions(TensorProto.FLOAT16), {"first": SCALES, "second": HIDDEN}, "int8")
    x = picture()
    hidden = np.maximum(integer_convolution(x.astype(np.float16).astype(np.float64), 0, SCALES), 0)
    expected = integer_convolution(hidden.astype(np.float16).astype(np.float64), 1, HIDDEN)
    found = run(model_for_cpu(model), x)
    # float32 sums round below a half-precision step: one such step, and no step of INT8, may differ.
    np.testing.assert_allclose(found, expected.astype(np.float16), rtol=2.0**-10, atol=2.0**-10)


def test_fp8_runs_with_its_own_rounding() -> None:
    scales = LayerScales(activations={"x": 0.0078125}, weight=(0.0078125,) * 8)
    model = model_with_qdq(two_convolutions(TensorProto.FLOAT), {"first": scales}, "fp8")
    assert quantized_type_from_model(model) == "fp8"
    plain = two_convolutions(TensorProto.FLOAT)
    x = picture()
    e4m3 = np.clip(x / 0.0078125, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(
        0.0078125
    )
    weight = next(tensor for tensor in plain.graph.initializer if tensor.name == "w0")
    values = (
        np.clip(WEIGHTS[0].astype(np.float64) / 0.0078125, -448, 448)
        .astype(ml_dtypes.float8_e4m3fn)
        .astype(np.float32)
    )
    weight.CopyFrom(numpy_helper.from_array(values * np.float32(0.0078125), "w0"))
    np.testing.assert_allclose(run(model_for_cpu(model), x), run(plain, e4m3), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not sums_int8_exactly(), reason="the processor saturates sums of INT8 products")
@pytest.mark.parametrize("base", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_openvino_computes_what_the_emulation_does(base: int) -> None:
    model = model_with_qdq(two_convolutions(base), {"first": SCALES, "second": HIDDEN}, "int8")
    x = picture()
    found = openvino_network(model, "two", arithmetic="f32").run(x)
    expected = run(model_for_cpu(model), x)
    # A value on the edge of two steps may take the other one: that changes an output by 0.25 times a weight.
    assert (
        np.median(np.abs(found - expected))
        < 2.0 ** (-8 if base == TensorProto.BFLOAT16 else -9) * np.abs(expected).max()
    )
    assert np.abs(found - expected).max() <= 6 * 0.25 * np.abs(WEIGHTS[1]).max()
    assert np.abs(expected).max() > 10


@pytest.mark.skipif(not sums_int8_exactly(), reason="the processor saturates sums of INT8 products")
def test_openvino_does_not_saturate_in_between() -> None:
    """Pairs of the largest products, 2 * 127 * 127, do not fit 15 bits, nor those of unsigned bytes 16."""
    model = two_convolutions(TensorProto.FLOAT)
    largest = {"w0": np.full((8, 8, 3, 3), 1.27, np.float32), "b0": np.zeros(8, np.float32)}
    for tensor in model.graph.initializer:
        if tensor.name in largest:
            tensor.CopyFrom(numpy_helper.from_array(largest[tensor.name], tensor.name))
    first = LayerScales(activations={"x": 0.03125}, weight=(0.01,) * 8)
    hidden = LayerScales(activations={"r": 4.0}, weight=SCALES.weight)
    quantized = model_with_qdq(model, {"first": first, "second": hidden}, "int8")
    x = np.full((1, 8, 6, 7), 127 * 0.03125, np.float32)
    expected = run(model_for_cpu(quantized), x)
    assert np.abs(expected).max() > 100
    found = openvino_network(quantized, "two", arithmetic="f32").run(x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_a_graph_with_two_quantized_types_is_refused() -> None:
    model = model_with_qdq(two_convolutions(TensorProto.FLOAT), {"first": SCALES}, "int8")
    fp8 = model_with_qdq(two_convolutions(TensorProto.FLOAT), {"second": HIDDEN}, "fp8")
    second = [
        node for node in fp8.graph.node if node.name == "second" or node.output[0].startswith(("r_", "w1_"))
    ]
    kept = [node for node in model.graph.node if node.name != "second"]
    mixed = onnx.ModelProto()
    mixed.CopyFrom(model)
    del mixed.graph.node[:]
    mixed.graph.node.extend([*kept[:-1], *second, kept[-1]])
    renamed = {"zero_point": "zero_fp8", "zero_point_8": "zero_fp8_8"}
    for node in second:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    del mixed.graph.node[:]
    mixed.graph.node.extend([*kept[:-1], *second, kept[-1]])
    names = {tensor.name for tensor in mixed.graph.initializer}
    for tensor in fp8.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
        if tensor.name not in names:
            mixed.graph.initializer.append(tensor)
    with pytest.raises(HspanError, match="mixes int8 and fp8 convolutions"):
        quantized_type_from_model(mixed)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_facts_count_convolutions_and_their_work(kind: QuantizedType) -> None:
    plain = two_convolutions(TensorProto.FLOAT16)
    assert quantization_from_model(plain) is None
    # 8 x 8 channels x 9 taps on 16 x 16 pixels
    assert convolution_macs(plain) == dict.fromkeys(("first", "second"), 8 * 8 * 9 * 16 * 16)
    facts = quantization_from_model(model_with_qdq(plain, {"second": HIDDEN}, kind))
    assert facts is not None
    assert (facts.type, facts.convolutions, facts.quantized_convolutions) == (kind, 2, 1)
    assert facts.mac_share == 0.5


def test_a_convolution_with_a_quantized_input_but_float_weights_does_not_count() -> None:
    half = LayerScales(activations={"x": 0.5}, weight=None)
    assert (
        quantization_from_model(model_with_qdq(two_convolutions(TensorProto.FLOAT), {"first": half}, "int8"))
        is None
    )


def test_float32_arithmetic_leaves_no_rounding() -> None:
    model = two_convolutions(TensorProto.FLOAT16)
    x = picture()
    exact = run(float32_twin(model).model, x)
    np.testing.assert_allclose(exact, run(two_convolutions(TensorProto.FLOAT), x), rtol=1e-6, atol=1e-6)
    assert np.abs(exact - run(model_for_cpu(model), x)).max() > 1e-3


def test_work_is_counted_where_sizes_are_computed_from_the_input() -> None:
    text = """
        <ir_version: 9, opset_import: ["" : 18]>
        agraph (float[n, 4, h, w] input) => (float[n, 4, h, w] output)
        <float[4, 4, 3, 3] weight, int64[1] two = {2}, int64[1] four = {4}, int64[1] minus = {-1}>
        {
            height = Shape <start = 2, end = 3> (input)
            half = Div (height, two)
            shape = Concat <axis = 0> (four, half, minus)
            flat = Reshape (input, shape)
            whole = Shape (input)
            picture = Reshape (flat, whole)
            output = Conv <pads = [1, 1, 1, 1]> (picture, weight)
        }
    """
    model = onnx.parser.parse_model(text)
    model.graph.node[-1].name = "conv"
    weight = numpy_helper.from_array(np.zeros((4, 4, 3, 3), np.float32), "weight")
    model.graph.initializer.append(weight)
    assert convolution_macs(model) == {"conv": 4 * 4 * 9 * 16 * 16}


def convolved(picture: str, text: str = "", inputs: str = "") -> onnx.ModelProto:
    """A 3x3 convolution, 4 to 5 channels, of what the text computes from the input."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 18, "own" : 1]>
        agraph (float[n, 4, h, w] input {inputs}) => (float[n, 5, h, w] output)
        <float[5, 4, 3, 3] weight, int64[1] minus = {{-1}}>
        {{ {text} output = Conv <pads = [1, 1, 1, 1]> ({picture}, weight) }}""")
    model.graph.node[-1].name = "conv"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((5, 4, 3, 3), np.float32), "weight"))
    return model


def test_work_is_counted_on_the_smallest_size_that_is_taken_from_16_pixels_on() -> None:
    for metadata, side in (
        (OnnxMetadata(), 16),
        (OnnxMetadata(min_size=17), 17),
        (OnnxMetadata(size_multiple=5), 20),
        (OnnxMetadata(size_multiple=6, min_size=20), 24),
    ):
        model = with_metadata(convolved("input"), metadata)
        assert convolution_macs(model) == {"conv": 5 * 4 * 9 * side * side}
    fixed = convolved("input")
    for dim, size in zip(fixed.graph.input[0].type.tensor_type.shape.dim, (2, 4, 7, 9), strict=True):
        dim.dim_value = size
    assert convolution_macs(fixed) == {"conv": 2 * 5 * 4 * 9 * 7 * 9}


def test_an_operator_of_another_domain_gives_what_its_third_or_only_input_has() -> None:
    three = convolved("mixed", "mixed = own.Mix(other, other, input)", ", float[n, 2, h, w] other")
    one = convolved("mixed", "mixed = own.Mix <alpha = 2.0> (input)")
    assert convolution_macs(three) == convolution_macs(one) == {"conv": 5 * 4 * 9 * 16 * 16}


@pytest.mark.parametrize(
    "shape",
    ["shape = Reshape(positions, minus)", "shape = Slice(positions, minus, minus) whole = Shape(input)"],
)
def test_a_convolution_of_unknown_size_is_named(shape: str) -> None:
    text = f"positions = NonZero(input) {shape} picture = Reshape(input, shape)"
    with pytest.raises(HspanError, match="conv: the sizes of this convolution are unknown; export it again"):
        convolution_macs(convolved("picture", text))
    computed = convolved("input")
    computed.graph.node[0].input[1] = "made"
    computed.graph.node.insert(0, helper.make_node("Relu", ["weight"], ["made"]))
    with pytest.raises(HspanError, match="conv: the sizes of this convolution are unknown"):
        convolution_macs(computed)


def test_weights_that_pass_a_quantizer_have_the_shape_of_what_is_stored() -> None:
    model = convolved("input")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "scale"))
    for index, kind in enumerate(("QuantizeLinear", "DequantizeLinear")):
        source = ("weight", "stored")[index]
        model.graph.node.insert(index, helper.make_node(kind, [source, "scale"], [("stored", "made")[index]]))
    model.graph.node[-1].input[1] = "made"
    assert convolution_macs(model) == {"conv": 5 * 4 * 9 * 16 * 16}


@pytest.mark.parametrize(
    ("declared", "zero_point", "expected"),
    [
        ("", "", None),
        ("<output_dtype = 3>", "", "int8"),
        ("<output_dtype = 17>", "", "fp8"),
        ("", ", zero", "int8"),
        ("", ", bytes", None),
    ],
)
def test_the_type_of_a_quantizer_is_declared_or_that_of_its_zero_point_or_bytes(
    declared: str, zero_point: str, expected: QuantizedType | None
) -> None:
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 21]>
        net (float[1, 1, 4, 4] input) => (float[1, 1, 4, 4] output)
        <float[1, 1, 1, 1] w = {{1}}, float scale = {{1}}, int8 zero = {{0}}, uint8 bytes = {{0}}>
        {{
            x = QuantizeLinear {declared} (input, scale {zero_point})
            y = DequantizeLinear (x, scale)
            q = QuantizeLinear {declared} (w, scale {zero_point})
            d = DequantizeLinear (q, scale)
            output = Conv(y, d)
        }}""")
    assert quantized_type_from_model(model) == expected


@pytest.mark.parametrize("base", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_native_types_are_those_of_the_float32_network_with_the_same_integers(base: int) -> None:
    def quantized(of: int) -> onnx.ModelProto:
        return model_with_qdq(two_convolutions(of), {"first": SCALES, "second": HIDDEN}, "int8")

    typed = quantized(base)
    native = model_with_native_types(typed)
    expected = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in quantized(TensorProto.FLOAT).graph.initializer
    }
    assert {tensor.name for tensor in native.graph.initializer} == set(expected)
    for tensor in native.graph.initializer:
        values = numpy_helper.to_array(tensor)
        assert values.dtype == expected[tensor.name].dtype
        # Float weights keep the values that they had in the low type.
        original = next(each for each in typed.graph.initializer if each.name == tensor.name)
        np.testing.assert_array_equal(values, numpy_helper.to_array(original).astype(values.dtype))
    assert list(native.graph.node) == list(quantized(TensorProto.FLOAT).graph.node)


def test_native_types_leave_other_casts_and_attributes() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[1, n] input) => (float[1, n] output) <float16[1, n] low>
        {
            whole = Cast <to = 7> (input)
            low = Cast <to = 10> (whole)
            other = Softmax <axis = 10> (low)
            output = Cast <to = 1> (other)
        }""")
    native = model_with_native_types(model)
    assert [node.attribute[0].i for node in native.graph.node] == [
        7,
        TensorProto.FLOAT,
        10,
        TensorProto.FLOAT,
    ]
    assert not native.graph.value_info


def test_a_network_whose_casts_or_weights_alone_are_low_is_emulated() -> None:
    casts = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[1, n] input) => (float[1, n] output)
        { low = Cast <to = 10> (input) output = Cast <to = 1> (low) }""")
    weights = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[1, n] input) => (float[1, n] output) <float[1] one = {1}>
        { wide = Cast <to = 1> (third) more = Mul(input, wide) output = Mul(more, one) }""")
    weights.graph.initializer.append(numpy_helper.from_array(np.float16([0.333]), "third"))
    x = np.float32([[0.1, 1 / 3]])
    third = np.float32(np.float16(0.333))
    for model, expected in ((casts, x.astype(np.float16).astype(np.float32)), (weights, x * third)):
        emulated = model_for_cpu(model)
        assert not any(t.data_type == TensorProto.FLOAT16 for t in emulated.graph.initializer)
        np.testing.assert_array_equal(run(emulated, x), expected)
    no_casts = onnx.ModelProto()
    no_casts.CopyFrom(casts)
    for node in no_casts.graph.node:
        node.attribute[0].i = TensorProto.INT64 if node.output[0] == "low" else TensorProto.FLOAT
    assert model_for_cpu(no_casts) is no_casts


def test_a_dequantized_value_is_rounded_where_anything_but_a_convolution_reads_it() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 19]>
        net (float[1, 1, 1, 3] input) => (float[1, 1, 1, 3] output)
        <int8 zero = {0}>
        {
            x = Cast <to = 10> (input)
            q = QuantizeLinear (x, scale, zero)
            d = DequantizeLinear (q, scale, zero)
            y = Conv (d, w)
            s = Add (d, y)
            output = Cast <to = 1> (s)
        }""")
    for name, weight in (("scale", np.float16(0.1)), ("w", np.full((1, 1, 1, 1), 3, np.float16))):
        model.graph.initializer.append(numpy_helper.from_array(np.array(weight), name))
    x = np.float32([[[[0.3, 0.7, 1.1]]]])
    scale = np.float32(np.float16(0.1))

    def half(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values.astype(np.float16).astype(np.float32)

    exact = np.rint(half(x) / scale) * scale
    np.testing.assert_array_equal(run(model_for_cpu(model), x), half(half(exact) + half(3 * half(exact))))
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    alone.graph.node[4].input[0] = (
        "y"  # now the convolution alone reads it: its exact value is what is convolved
    )
    found = run(model_for_cpu(alone), x)
    np.testing.assert_array_equal(found, half(2 * half(3 * exact)))
    assert (half(3 * exact) != half(3 * half(exact))).any()
