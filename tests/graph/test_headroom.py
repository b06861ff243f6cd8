"""Range for float16 behind the long skip: the same numbers, divided and multiplied by powers of two."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from trt_hspan.graph.headroom import HEADROOM, LEAST_LARGEST_WEIGHT, is_hspan, tail_with_headroom

LARGEST = {"tail.0.0": 2.0**-9, "tail.1": 0.75, "tail.2": 0.0}


def network(largest: dict[str, float] = LARGEST) -> onnx.ModelProto:
    """Mean shift, head and long skip, and behind it convolutions of 1x1 whose largest weights are these."""
    random = np.random.default_rng(0)
    layers = ["sub_mean", "head.0", *largest, "add_mean"]
    weights, nodes, value = {}, [], "input"
    for layer in layers:
        weight = random.uniform(-1, 1, (3, 3, 1, 1))
        weight *= largest.get(layer, 1.0) / np.abs(weight).max()
        weights |= {f"{layer}.weight": weight, f"{layer}.bias": random.uniform(-1, 1, 3)}
        result = "output" if layer == "add_mean" else f"{layer}_output"
        name = "tail.0.0/Conv" if layer == "tail.0.0" else f"{layer}/Conv"
        nodes.append(
            helper.make_node("Conv", [value, f"{layer}.weight", f"{layer}.bias"], [result], name=name)
        )
        value = result
        if layer == "head.0":
            nodes.append(helper.make_node("Add", [value, "sub_mean_output"], ["skip"], name="Add"))
            value = "skip"
    pictures = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 4, 5])
        for name in ("input", "output")
    ]
    initializers = [
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()
    ]
    graph = helper.make_graph(nodes, "net", pictures[:1], pictures[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def outputs(model: onnx.ModelProto, *names: str) -> list[np.ndarray]:
    model = onnx.ModelProto.FromString(model.SerializeToString())
    have = {value.name for value in model.graph.output}
    for name in names:
        if name not in have:
            model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    picture = np.random.default_rng(1).random((1, 3, 4, 5), np.float32)
    found: list[np.ndarray] = session.run(list(names), {"input": picture})
    return found


def largest_weights(model: onnx.ModelProto) -> dict[str, float]:
    return {
        tensor.name.removesuffix(".weight"): float(np.abs(numpy_helper.to_array(tensor)).max())
        for tensor in model.graph.initializer
        if tensor.name.endswith(".weight")
    }


def test_the_tail_sees_features_divided_and_the_picture_is_the_same() -> None:
    model = network({"tail.0.0": 2.0**-9, "tail.1": 0.75})
    changed = tail_with_headroom(model)
    onnx.checker.check_model(changed)
    skip, picture = outputs(model, "skip", "output")
    skip_after, scaled, picture_after = outputs(changed, "skip", "skip_scaled", "output")
    np.testing.assert_array_equal(skip_after, skip)
    np.testing.assert_array_equal(scaled * np.float32(HEADROOM), skip)
    # Powers of two are exact but for numbers below the smallest normal one, of which there are none.
    np.testing.assert_array_equal(picture_after, picture)
    assert [node.name for node in changed.graph.node].index("tail/Scale") == 3
    assert onnx.checker.check_model(model) is None  # the source is left as it was
    assert "tail_scale" not in {tensor.name for tensor in model.graph.initializer}


def test_small_weights_are_lifted_to_what_float16_has_digits_for() -> None:
    before, after = largest_weights(network()), largest_weights(tail_with_headroom(network()))
    assert before["tail.0.0"] == 2.0**-9
    assert after["tail.0.0"] == LEAST_LARGEST_WEIGHT == 2.0**-6
    assert (after["tail.1"], after["tail.2"]) == (before["tail.1"], 0.0)
    assert after["head.0"] == before["head.0"]
    # What was divided by 16 and multiplied by 8 comes back behind the tail.
    assert after["add_mean"] == 2 * before["add_mean"]


@pytest.mark.parametrize(
    ("largest", "lifted"),
    [(2.0**-6, 2.0**-6), (2.0**-7, 2.0**-6), (1.5 * 2.0**-8, 1.5 * 2.0**-6), (0.9 * 2.0**-6, 1.8 * 2.0**-6)],
)
def test_the_lift_is_the_least_power_of_two_that_suffices(largest: float, lifted: float) -> None:
    changed = tail_with_headroom(network({"tail.0.0": largest, "tail.1": 1.0}))
    assert largest_weights(changed)["tail.0.0"] == pytest.approx(lifted, rel=1e-6)


@pytest.mark.parametrize(
    "missing", [None, "sub_mean/Conv", "head.0/Conv", "Add", "tail.0.0/Conv", "tail.1/Conv", "add_mean/Conv"]
)
def test_an_hspan_has_all_parts_under_their_names(missing: str | None) -> None:
    model = network()
    for node in model.graph.node:
        node.name = "other" if node.name == missing else node.name
    assert is_hspan(model) is (missing is None)
