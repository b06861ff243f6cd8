"""How far each module's output is from FP32, on networks of a few nodes."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from trt_hspan.evaluation.layers import _psnr_db, layer_errors

BATCH = np.random.default_rng(0).random((1, 3, 4, 5), np.float32)


def network(first: float, second: float, *, name: str = "b") -> onnx.ModelProto:
    """Three modules: `a` multiplies by the first number, `b` by the second, `c` adds the input."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        net (float[1, 3, H, W] input) => (float[1, 3, H, W] output)
        <float f = {{{first}}}, float s = {{{second}}}>
        {{ x = Mul(input, f) y = Mul(x, s) z = Abs(y) output = Add(z, input) }}"""
    )
    for node, module in zip(model.graph.node, ("a/Mul", f"{name}/Mul", f"{name}/Abs", "c/Add"), strict=True):
        node.name = module
    return model


def errors(candidate: onnx.ModelProto, reference: onnx.ModelProto) -> dict[str, float]:
    found = layer_errors(candidate, reference, BATCH, threads=1)
    return {layer.module: layer.psnr_db for layer in found}


def test_equal_modules_have_no_error() -> None:
    assert errors(network(0.5, 2), network(0.5, 2)) == dict.fromkeys("abc", math.inf)


def test_an_error_begins_where_the_networks_differ() -> None:
    found = errors(network(0.5, 3), network(0.5, 2))
    assert found["a"] == math.inf
    x = np.abs(BATCH.astype(np.float64))
    # `b` is 1.5 x instead of x; the power of two nearest to their ratio is 1/2, by which it is divided.
    scaled = 1.5 * x * 2.0 ** round(math.log2(1 / 1.5**2) / 2)
    assert found["b"] == pytest.approx(10 * math.log10(x.max() ** 2 / np.mean((scaled - x) ** 2)), abs=1e-3)
    assert found["c"] == pytest.approx(
        10 * math.log10((2 * x).max() ** 2 / np.mean((2.5 * x - 2 * x) ** 2)), abs=1e-3
    )


def test_a_module_of_other_range_alone_is_equal() -> None:
    """As behind a long skip that is divided by a power of two."""
    assert errors(network(2.0, 0.5), network(0.5, 2.0)) == dict.fromkeys("abc", math.inf)


def test_an_output_where_float32_has_none_is_infinitely_wrong() -> None:
    assert errors(network(1, 1), network(1, 0))["b"] == -math.inf
    assert errors(network(1, 0), network(1, 0))["b"] == math.inf


def test_an_output_that_is_zero_all_over_is_off_by_all_of_it() -> None:
    x = BATCH.astype(np.float64)
    assert errors(network(1, 0), network(1, 1))["b"] == pytest.approx(
        10 * math.log10(x.max() ** 2 / np.mean(x**2)), abs=1e-3
    )


def test_what_is_not_finite_has_no_error() -> None:
    assert math.isnan(errors(network(3e38, 3e38), network(1, 1))["b"])
    assert math.isnan(errors(network(1, 1), network(3e38, 3e38))["b"])


def test_outputs_of_different_shapes_have_no_error() -> None:
    assert math.isnan(_psnr_db(np.ones((1, 2, 3), np.float32), np.ones((1, 3, 2), np.float32)))


def test_a_module_that_one_of_them_lacks_is_left_out() -> None:
    assert list(errors(network(1, 1, name="other"), network(1, 1))) == ["a", "c"]
    unnamed = network(1, 1)
    for node in unnamed.graph.node:
        node.name = ""
    assert errors(unnamed, network(1, 1)) == {}
