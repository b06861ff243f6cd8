"""Makes an exported graph readable: nodes named after modules, constants folded, traces of the exporter gone."""

from __future__ import annotations

import copy

import onnx

from trt_hspan.graph import names_read
from trt_hspan.names import OP_TYPE


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with named nodes and folded constants."""
    return _fold_constants(_name_nodes(model))


def _name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with nodes named `<module path>/<operator>`, as `body.0.body.0.body.0/Conv`.

    The exporter's metadata, which contains the paths, is dropped: it contains the exporting machine's stack traces too.
    """
    named = copy.deepcopy(model)
    taken: set[str] = set()
    for node in named.graph.node:
        node.name = _free_name(_module_path(node), node.op_type, taken)
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*named.graph.input, *named.graph.output, *named.graph.value_info):
        del value.metadata_props[:]
        value.doc_string = ""
    del named.graph.metadata_props[:]
    del named.metadata_props[:]
    named.graph.name = "hspan"
    return named


def _fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every constant is an initializer, computed ones included.

    By onnxscript's folder, the one of torch.onnx: it evaluates nodes with ONNX's own reference implementation.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnxscript import optimizer

    graph = ir.from_proto(model)
    optimizer.fold_constants(graph, onnx_shape_inference=False)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.ClearMetadataAndDocStringPass(),
    )(graph)
    folded = ir.to_proto(graph)
    # A weight's type stands in the weight alone: what is written beside it too would have to be changed with it.
    weights = {tensor.name for tensor in folded.graph.initializer}
    values = [value for value in folded.graph.value_info if value.name not in weights]
    _sort_by_depth(folded.graph)
    used = [name for node in folded.graph.node for name in (*node.input, *node.output)]
    order = {name: position for position, name in reversed(list(enumerate(used)))}
    tensors = sorted(folded.graph.initializer, key=lambda tensor: order.get(tensor.name, len(used)))
    values.sort(key=lambda value: order.get(value.name, len(used)))
    del folded.graph.value_info[:], folded.graph.initializer[:]
    folded.graph.value_info.extend(values)
    folded.graph.initializer.extend(tensors)
    return folded


def _sort_by_depth(graph: onnx.GraphProto) -> None:
    """Branches of one depth stand together, such as the convolutions to query, key and value."""
    depths: dict[str, int] = {}
    ordered: list[tuple[int, onnx.NodeProto]] = []
    for node in graph.node:
        depth = 1 + max((depths.get(name, 0) for name in names_read([node])), default=0)
        depths |= dict.fromkeys(node.output, depth)
        ordered.append((depth, node))
    nodes = [node for _, node in sorted(ordered, key=lambda each: each[0])]
    del graph.node[:]
    graph.node.extend(nodes)


def _module_path(node: onnx.NodeProto) -> str:
    """The dotted path of the module that the node comes from, out of the exporter's namespace."""
    namespace = next((entry.value for entry in node.metadata_props if entry.key == "namespace"), "")
    scopes = [scope.split(":")[0].strip() for scope in namespace.split("/")[:-1]]
    return scopes[-1] if scopes else ""


def _free_name(path: str, op_type: str, taken: set[str]) -> str:
    operator = "Attention" if op_type == OP_TYPE else op_type
    base = f"{path}/{operator}" if path else operator
    name = base
    number = 2
    while name in taken:
        name = f"{base}_{number}"
        number += 1
    taken.add(name)
    return name
