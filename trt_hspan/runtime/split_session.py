"""An ONNX graph under ONNX Runtime with its attention nodes computed by the native CPU library.

A custom operator would need ONNX Runtime's C header or an extension package (docs/cpu.md). Cutting the graph needs
neither: it is split at the attention nodes, each part is a session of its own, and between two of them the library
reads query, key and value where they lie. What a part computes is ONNX
Runtime's business. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from trt_hspan.errors import HspanError
from trt_hspan.names import DOMAIN, OP_TYPE
from trt_hspan.native.cpu_attention import NativeLibrary, NativeOptions, Operand

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class GraphPart:
    """A run of nodes without attention, and the attention node that follows it; None after the last part.

    Attributes:
        model: takes `inputs`, which come from earlier parts or attention nodes, and gives `outputs`, which later
            ones need; None when there is nothing to compute.
    """

    model: onnx.ModelProto | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attention: onnx.NodeProto | None


def parts_from_model(model: onnx.ModelProto, where: object) -> list[GraphPart]:
    """Cuts a model at its attention nodes.

    Args:
        model: float32 at the attention nodes, as `graph.model_for_cpu` makes it.

    Raises:
        HspanError: the type of a tensor that crosses a cut is unknown.
    """
    runs: list[list[onnx.NodeProto]] = [[]]
    attentions: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type == OP_TYPE:
            attentions.append(node)
            runs.append([])
        else:
            runs[-1].append(node)
    values = _typed_values(model, attentions)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    needed = {value.name for value in model.graph.output}
    needed |= {name for node in attentions for name in node.input}
    parts: list[GraphPart] = []
    # From the end: what a part must give is what comes after it reads.
    for nodes, attention in reversed(list(zip(runs, [*attentions, None], strict=True))):
        computed = [name for node in nodes for name in node.output if name]
        read = _free_names(nodes)
        outputs = tuple(name for name in computed if name in needed)
        inputs = tuple(sorted(read - set(computed) - set(weights)))
        needed |= read
        part = None
        if outputs:
            missing = [name for name in (*inputs, *outputs) if name not in values]
            if missing:
                raise HspanError(where, f"the type of {missing[0]!r} is unknown", "export it again")
            graph = helper.make_graph(
                nodes,
                model.graph.name,
                [values[name] for name in inputs],
                [values[name] for name in outputs],
                [weights[name] for name in sorted(read & set(weights))],
            )
            part = onnx.ModelProto()
            part.CopyFrom(model)
            part.graph.CopyFrom(graph)
            del part.functions[:]
            part.functions.extend(f for f in model.functions if f.domain != DOMAIN)
        parts.append(GraphPart(part, inputs, outputs, attention))
    return parts[::-1]


class SplitSession:
    """Runs the parts of a model in turn.

    Args:
        parts: of `parts_from_model`.
        open_session: makes an `onnxruntime.InferenceSession` of a part.
        library: computes the attention.
        threads: for the attention.
    """

    def __init__(
        self,
        parts: list[GraphPart],
        open_session: Callable[[onnx.ModelProto], Any],
        library: NativeLibrary,
        *,
        threads: int,
    ) -> None:
        self._parts = [(part, None if part.model is None else open_session(part.model)) for part in parts]
        self._library = library
        self._options = NativeOptions(threads=threads)

    def run(self, output: str, name: str, batch: Array, run_options: Any) -> Array:
        """The graph's output for its input `name`. Tensors are dropped as soon as no later part reads them."""
        values: dict[str, Array] = {name: batch}
        for index, (part, session) in enumerate(self._parts):
            if session is not None:
                feed = {key: values[key] for key in part.inputs}
                values |= zip(part.outputs, session.run(list(part.outputs), feed, run_options), strict=True)
                del feed
            if part.attention is not None:
                operands = [values[key] for key in part.attention.input]
                values[part.attention.output[0]] = self._attend(*operands)
                del operands
            later = {output}
            for following, _ in self._parts[index + 1 :]:
                later.update(following.inputs)
                later.update(following.attention.input if following.attention is not None else ())
            values = {key: value for key, value in values.items() if key in later}
        return values[output]

    def _attend(self, query: Array, key: Array, value: Array) -> Array:
        query, key, value = (np.ascontiguousarray(array, np.float32) for array in (query, key, value))
        output = np.empty_like(value)
        self._library.attend(
            *(_operand(array) for array in (query, key, value, output)),
            element_type="float32",
            options=self._options,
        )
        return output


def _operand(array: Array) -> Operand:
    n, channels, height, width = array.shape
    positions = height * width
    return Operand(array.ctypes.data, (n, channels, positions), (channels * positions, positions, 1))


def _free_names(nodes: list[onnx.NodeProto]) -> set[str]:
    """What the nodes read, their subgraphs included."""
    names = {name for node in nodes for name in node.input if name}
    for node in nodes:
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                own = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
                own |= {name for inner in graph.node for name in inner.output}
                read = _free_names(list(graph.node)) | {value.name for value in graph.output}
                names |= read - own
    return names


def _typed_values(model: onnx.ModelProto, attentions: list[onnx.NodeProto]) -> dict[str, onnx.ValueInfoProto]:
    """Every tensor whose type can be inferred, by name; the attention's output is (N, D, H, W) float32."""
    hints = onnx.ModelProto()
    hints.CopyFrom(model)
    del hints.functions[:]
    declared = {value.name for value in hints.graph.value_info}
    for node in attentions:
        if node.output[0] not in declared:
            free = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [None] * 4)
            hints.graph.value_info.append(free)
    # Without the attention nodes, whose shapes do not matter here.
    kept = [node for node in hints.graph.node if node not in attentions]
    del hints.graph.node[:]
    hints.graph.node.extend(kept)
    for node in attentions:
        value = next(v for v in hints.graph.value_info if v.name == node.output[0])
        hints.graph.input.append(value)
    inferred = onnx.shape_inference.infer_shapes(hints)
    graph = inferred.graph
    return {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
