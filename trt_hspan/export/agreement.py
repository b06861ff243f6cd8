"""Runs an exported graph once beside its module: a difference is an error that names the node."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from trt_hspan.errors import HspanError
from trt_hspan.export.module_runs import StandInAttention
from trt_hspan.graph import (
    model_for_cpu,
    model_with_attention_function,
    model_with_stand_in_attention,
    names_read,
)
from trt_hspan.machine.onnx_runtime import imported_onnxruntime

# Of the largest value. Float32 in another order of summation differs by about 1e-5 in the deepest networks here; an
# attribute that was lost, such as bicubic's coefficient, by 1e-2. Graphs in FP16 or BF16 round at every node.
_TOLERANCE, _LOW_TOLERANCE = 1e-3, 5e-2
_NEXT_STEP = (
    "write that part of forward() with other operations, or export a fixed size, static=(height, width)"
)


def require_agreement(
    graph: onnx.ModelProto, module: nn.Module, example: Tensor, where: str, *, low: bool, cheap: bool = False
) -> None:
    """Raises: HspanError naming the node when ONNX Runtime does not run the graph, or comes to another result.

    Args:
        graph: nodes named `<module path>/<operator>`, without function body.
        module: what it was exported from, in eval mode.
        example: (N, C, H, W) float32.
        low: whether the graph computes in FP16 or BF16.
        cheap: run both with `StandInAttention`: the operator is the same node in every graph.
    """
    results = _result_nodes(graph.graph)
    expected: dict[str, Tensor] = {}

    def remember(path: str, result: object) -> None:
        if isinstance(result, Tensor):
            expected[path] = result.clone()

    hooks = [
        each.register_forward_hook(lambda _module, _inputs, result, path=path: remember(path, result))
        for path, each in module.named_modules()
        if path in results
    ]
    try:
        with torch.no_grad(), StandInAttention() if cheap else contextlib.nullcontext():  # type: ignore[no-untyped-call]
            final = module(example)
    finally:
        for hook in hooks:
            hook.remove()
    paths = [path for path in results if path in expected]
    output = next(node for node in graph.graph.node if graph.graph.output[0].name in node.output)
    nodes = [*(results[path] for path in paths), output]
    runnable = model_with_stand_in_attention(graph) if cheap else model_with_attention_function(graph)
    tolerance = _LOW_TOLERANCE if low else _TOLERANCE
    for node, want, got in zip(
        nodes,
        [*(expected[path] for path in paths), final],
        _run(runnable, nodes, example, where),
        strict=True,
    ):
        wanted = want.float().cpu().numpy()
        difference = float(np.abs(wanted - got).max()) if wanted.shape == got.shape else np.inf
        if not difference <= tolerance * max(1.0, float(np.abs(wanted).max())):
            raise HspanError(
                where,
                f"exported wrongly: node {node.name} differs from the module by {difference:.2g}",
                _NEXT_STEP,
            )


def _result_nodes(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Paths of modules, with the one node in each whose floating-point result is read outside of the module.

    Modules without such a node, or with several, are left out: nodes of a path also compute sizes for others.
    """
    values = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type
        in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    }
    producers = {name: node for node in graph.node for name in node.output if name in values}
    read_outside: dict[str, dict[str, onnx.NodeProto]] = {}
    readers = [(_paths_above(node), names_read([node])) for node in graph.node]
    for inside, names in [*readers, ([], [output.name for output in graph.output])]:
        for name in names:
            for path in _paths_above(producers[name]) if name in producers else ():
                if path not in inside:
                    read_outside.setdefault(path, {})[name] = producers[name]
    results = {path: next(iter(nodes.items())) for path, nodes in read_outside.items() if len(nodes) == 1}
    return {path: node for path, (name, node) in results.items() if name == node.output[0]}


def _paths_above(node: onnx.NodeProto) -> list[str]:
    """The module of a node and those that contain it, except the network: "a.b" and "a" of "a.b/Conv"."""
    parts = node.name.rpartition("/")[0].split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts)) if parts[0]]


def _run(
    runnable: onnx.ModelProto, nodes: list[onnx.NodeProto], example: Tensor, where: str
) -> list[np.ndarray]:
    onnxruntime = imported_onnxruntime()
    model = model_for_cpu(runnable)
    output = model.graph.output[0].name
    names = [node.output[0] for node in nodes]
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name != output
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return list(session.run(names, {model.graph.input[0].name: example.cpu().numpy()}))
    except Exception as error:  # ONNX Runtime's errors have no common class; their text names the node
        reason = " ".join(str(error).split())[:300]
        raise HspanError(where, f"exported wrongly: {reason}", _NEXT_STEP) from error
