"""An ONNX graph on a CPU: its attention nodes in the native library, the parts between them in another one.

A custom operator would need that library's headers or an extension package (docs/cpu.md). Cutting the graph needs
neither: it is split at the attention nodes, and between two parts the native library reads query, key and value where
they lie. Who computes a part is the business of `onnxruntime_session` and `openvino_session`. Never imports torch.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from trt_hspan.errors import HspanError
from trt_hspan.graph import INPUT_NAME, OUTPUT_NAME, names_read
from trt_hspan.names import DOMAIN, OP_TYPE
from trt_hspan.native import cpu_attention
from trt_hspan.native.cpu_attention import NativeOptions, Operand
from trt_hspan.runtime.runner import Float32Array, is_for_one_thread

Array = npt.NDArray[Any]
#: Looks at tensors by name, of which these are new.
Observe = Callable[[dict[str, Array], Sequence[str]], None]
#: The values of a part's inputs by name -> those of its outputs, in order.
RunPart = Callable[[dict[str, Array]], list[Array]]
# Height and width.
_SMALL_PICTURE: Final = (8, 8)


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


#: A part's model, the names of its outputs, and the threads to run it on -> what runs it.
OpenPart = Callable[[onnx.ModelProto, tuple[str, ...], int], RunPart]


def cpu_threads(requested: int | None = None) -> int:
    """The requested number of threads, or as many as the process may use: its processors, or OMP_NUM_THREADS."""
    if requested:
        return requested
    limit = os.environ.get("OMP_NUM_THREADS", "")
    available = len(os.sched_getaffinity(0))
    return min(int(limit), available) if limit.isdigit() and int(limit) > 0 else available


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
        read = names_read(nodes)
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
            part = copy.deepcopy(model)
            part.graph.CopyFrom(graph)
            del part.functions[:]
            part.functions.extend(f for f in model.functions if f.domain != DOMAIN)
        parts.append(GraphPart(part, inputs, outputs, attention))
    return parts[::-1]


class CpuNetwork:
    """A network that is ready to run on this CPU; the attention in the native library where there is one.

    Any number of threads may run it at the same time.

    Args:
        model: float32 at its inputs, outputs and attention nodes.
        where: what errors name.
        open_part: loads a part into the library that computes it.
        threads: as `cpu_threads` takes it.

    Raises:
        HspanError: as `parts_from_model` and `open_part`.
    """

    def __init__(
        self, model: onnx.ModelProto, where: str, open_part: OpenPart, *, threads: int | None = None
    ) -> None:
        self._library: Any = cpu_attention.native_library()  # None where a graph is not cut
        outputs = tuple(value.name for value in model.graph.output)
        self._parts = [GraphPart(model, (INPUT_NAME,), outputs, None)]
        if self._library is not None:
            self._parts = parts_from_model(model, where)
        self._macs_per_pixel = sum(math.prod(t.dims) for t in model.graph.initializer if len(t.dims) == 4)
        self._open_part = open_part
        self._threads = cpu_threads(threads)
        self._opened = {self._threads: self._loaded(self._threads)}
        # Where no picture is small enough for a second copy of the weights, for one thread, it is never loaded.
        self._may_be_alone = is_for_one_thread((1, 0, *_SMALL_PICTURE), self._macs_per_pixel)

    def _loaded(self, threads: int) -> list[RunPart | None]:
        return [
            None if part.model is None else self._open_part(part.model, part.outputs, threads)
            for part in self._parts
        ]

    def run(self, batch: Float32Array, observe: Observe = lambda *_: None) -> Float32Array:
        """(N, 3, H, W) float32 to the network's output. Raises: HspanError as the functions of `open_part`.

        Args:
            observe: called with the tensors that are in memory and the names of those that are new, of which there are
                all outputs of the model.
        """
        alone = self._may_be_alone and is_for_one_thread(batch.shape, self._macs_per_pixel)
        threads = 1 if alone else self._threads
        if threads not in self._opened:
            self._opened[threads] = self._loaded(threads)
        values: dict[str, Array] = {INPUT_NAME: batch}
        for index, (part, run) in enumerate(zip(self._parts, self._opened[threads], strict=True)):
            if run is not None:
                values |= zip(part.outputs, run({key: values[key] for key in part.inputs}), strict=True)
                observe(values, part.outputs)
            if part.attention is not None:
                operands = [values[key] for key in part.attention.input]
                values[part.attention.output[0]] = self._attend(*operands, threads=threads)
                del operands
                observe(values, part.attention.output)
            # Tensors are dropped as soon as no later part reads them.
            later = {OUTPUT_NAME}
            for following in self._parts[index + 1 :]:
                later.update(following.inputs)
                later.update(following.attention.input if following.attention is not None else ())
            values = {key: value for key, value in values.items() if key in later}
        return values[OUTPUT_NAME]

    def _attend(self, query: Array, key: Array, value: Array, *, threads: int) -> Array:
        query, key, value = (np.ascontiguousarray(array, np.float32) for array in (query, key, value))
        output = np.empty_like(value)
        self._library.attend(
            *(_operand(array) for array in (query, key, value, output)),
            element_type="float32",
            options=NativeOptions(threads=threads),
        )
        return output


def _operand(array: Array) -> Operand:
    n, channels, height, width = array.shape
    positions = height * width
    return Operand(array.ctypes.data, (n, channels, positions), (channels * positions, positions, 1))


def _typed_values(model: onnx.ModelProto, attentions: list[onnx.NodeProto]) -> dict[str, onnx.ValueInfoProto]:
    """Every tensor whose type can be inferred, by name; the attention's output is (N, D, H, W) float32."""
    hints = copy.deepcopy(model)
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
    graph = onnx.shape_inference.infer_shapes(hints).graph
    return {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
