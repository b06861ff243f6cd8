"""A graph on a CPU: where it is cut, what passes from part to part, and on how many threads."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.reference import attention_reference
from support.small_networks import attention_network

from trt_hspan.errors import HspanError
from trt_hspan.names import DOMAIN, OP_TYPE, OP_VERSION
from trt_hspan.native import cpu_attention
from trt_hspan.runtime import runner
from trt_hspan.runtime.cpu_network import Array, CpuNetwork, GraphPart, RunPart, cpu_threads, parts_from_model
from trt_hspan.runtime.onnxruntime_session import open_session

BATCH = np.random.default_rng(0).random((2, 3, 7, 5), dtype=np.float32)


def opened(part: onnx.ModelProto, outputs: tuple[str, ...], threads: int) -> RunPart:
    session = open_session(part, "part", threads=1)
    return lambda feed: session.run(list(outputs), feed)


def network_of(*nodes: tuple[str, list[str], str]) -> onnx.ModelProto:
    """Of (operator, inputs, output); "attention" is ours. Pictures of three channels all through, no types given."""
    made = [
        helper.make_node(OP_TYPE, [reads[0]] * 3, [output], domain=DOMAIN)
        if kind == "attention"
        else helper.make_node(kind, reads, [output])
        for kind, reads, output in nodes
    ]
    shape = ("N", 3, "H", "W")
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in ("input", "output")
    )
    graph = helper.make_graph(made, "small", inputs, outputs)
    versions = [helper.make_opsetid("", 22), helper.make_opsetid(DOMAIN, OP_VERSION)]
    return helper.make_model(graph, opset_imports=versions, ir_version=10)


def places(parts: list[GraphPart]) -> list[tuple[tuple[str, ...], tuple[str, ...], str]]:
    return [
        (part.inputs, part.outputs, "" if part.attention is None else part.attention.output[0])
        for part in parts
    ]


@pytest.mark.parametrize("are_typed", [True, False])
def test_a_graph_is_cut_at_its_attention_nodes(are_typed: bool) -> None:
    model = attention_network(blocks=2)
    twice = helper.make_node("Add", ["x", "x"], ["y"])
    model.functions.append(
        helper.make_function("others", "Twice", ["x"], ["y"], [twice], [helper.make_opsetid("", 22)])
    )
    if not are_typed:
        del model.graph.value_info[:]
    parts = parts_from_model(model, "a.onnx")
    assert places(parts) == [
        (("input",), ("conv0",), "attention0"),
        (("attention0",), ("conv1",), "attention1"),
        (("attention1",), ("output",), ""),
    ]
    for part, weights in zip(parts, (["conv0"], ["conv1"], ["conv2", "conv3"]), strict=True):
        assert part.model is not None
        names = [tensor.name.partition(".")[0] for tensor in part.model.graph.initializer]
        assert names == weights
        assert [function.domain for function in part.model.functions] == ["others"]
        (value,) = part.model.graph.input
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
        assert len(value.type.tensor_type.shape.dim) == 4


SKIPPING = network_of(
    ("Relu", ["input"], "a"),
    ("attention", ["a"], "b"),
    ("Add", ["b", "a"], "c"),
    ("attention", ["c"], "d"),
    ("Add", ["d", "b"], "output"),
)


def test_what_later_parts_read_is_kept_and_nothing_else() -> None:
    seen: list[tuple[list[str], set[str]]] = []

    def observe(values: dict[str, Array], new: Sequence[str]) -> None:
        seen.append((list(new), set(values)))

    CpuNetwork(SKIPPING, "a.onnx", opened, threads=1).run(BATCH, observe)
    assert seen == [
        (["a"], {"input", "a"}),
        (["b"], {"input", "a", "b"}),
        (["c"], {"a", "b", "c"}),
        (["d"], {"a", "b", "c", "d"}),
        (["output"], {"b", "d", "output"}),
    ]


def test_the_result_is_that_of_the_nodes_one_after_the_other() -> None:
    a = np.maximum(BATCH, 0)
    b = attention_reference(a, a, a)
    expected = attention_reference(b + a, b + a, b + a) + b
    # Float32 sums in another order.
    np.testing.assert_allclose(CpuNetwork(SKIPPING, "a", opened).run(BATCH), expected, rtol=0, atol=1e-5)


def test_attention_takes_what_parts_give_in_any_layout() -> None:
    def scattered(part: onnx.ModelProto, outputs: tuple[str, ...], threads: int) -> RunPart:
        run = opened(part, outputs, threads)
        return lambda feed: [np.asfortranarray(values).astype(np.float64) for values in run(feed)]

    model = network_of(("Relu", ["input"], "a"), ("attention", ["a"], "output"))
    np.testing.assert_array_equal(
        CpuNetwork(model, "a", scattered).run(BATCH), CpuNetwork(model, "a", opened).run(BATCH)
    )


def test_a_part_without_nodes_is_not_opened() -> None:
    model = network_of(("attention", ["input"], "a"), ("Relu", ["a"], "output"))
    parts = parts_from_model(model, "a.onnx")
    assert places(parts) == [((), (), "a"), (("a",), ("output",), "")]
    assert parts[0].model is None
    expected = np.maximum(attention_reference(BATCH, BATCH, BATCH), 0)
    np.testing.assert_allclose(CpuNetwork(model, "a", opened).run(BATCH), expected, rtol=0, atol=1e-5)


def test_a_tensor_of_unknown_type_at_a_cut_is_one_line() -> None:
    model = network_of(("Relu", ["input"], "a"), ("attention", ["a"], "output"))
    model.graph.node[0].domain = "others"
    model.opset_import.append(helper.make_opsetid("others", 1))
    with pytest.raises(HspanError, match=r"^a\.onnx: the type of 'a' is unknown; export it again$"):
        parts_from_model(model, "a.onnx")


def test_without_the_native_library_a_graph_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "native_library", lambda: None)
    model, seen = attention_network(), []

    def open_whole(part: onnx.ModelProto, outputs: tuple[str, ...], threads: int) -> RunPart:
        seen.append((part is model, outputs, threads))
        return opened(part, outputs, threads)

    assert CpuNetwork(model, "a", open_whole, threads=3).run(BATCH).shape == BATCH.shape
    assert (True, ("output",), 3) in seen


@pytest.mark.parametrize(
    ("more", "side", "threads"), [(0, (8, 8), {3}), (0, (2, 2), {3}), (1, (8, 8), {3, 1}), (1, (8, 9), {3})]
)
def test_weights_are_loaded_for_one_thread_where_a_small_picture_needs_them(
    monkeypatch: pytest.MonkeyPatch, more: int, side: tuple[int, int], threads: set[int]
) -> None:
    """Of three convolutions: 8 x 3, 8 x 8 and 3 x 8 channels of 3x3; 8x8 pixels are the smallest that count."""
    used: set[int] = set()

    def noted(part: onnx.ModelProto, outputs: tuple[str, ...], threads: int) -> RunPart:
        used.add(threads)
        return opened(part, outputs, threads)

    model = attention_network()
    model.graph.initializer.append(helper.make_tensor("unused", TensorProto.FLOAT, [9], [0.0] * 9))
    monkeypatch.setattr(runner, "_LEAST_SHARED_MACS", 64 * 9 * (24 + 64 + 24) + more)
    network = CpuNetwork(model, "a", noted, threads=3)
    network.run(np.zeros((1, 3, *side), np.float32))
    assert used == threads


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, 4), ("", 4), ("two", 4), ("0", 4), ("1", 1), ("2", 2), ("4", 4), ("5", 4), ("-1", 4)],
)
def test_threads_are_those_that_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, limit: str | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6, 7} if process == 0 else {1})
    if limit is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert cpu_threads() == expected
    assert cpu_threads(7) == 7


def test_nodes_of_other_names_or_domains_are_no_cuts() -> None:
    model = network_of(("Relu", ["input"], "a"), ("Relu", ["a"], "b"), ("Relu", ["b"], "output"))
    model.graph.node[0].domain, model.graph.node[0].op_type = DOMAIN, "Other"
    model.graph.node[1].domain, model.graph.node[1].op_type = "others", OP_TYPE
    model.opset_import.append(helper.make_opsetid("others", 1))
    assert places(parts_from_model(model, "a.onnx")) == [(("input",), ("output",), "")]
