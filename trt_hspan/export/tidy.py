"""Makes an exported graph readable: nodes named after modules, constants folded, traces of the exporter gone."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from trt_hspan.names import OP_TYPE


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with named nodes and folded constants."""
    return _fold_constants(_name_nodes(model))


def _name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with nodes named `<module path>/<operator>`, as `body.0.body.0.body.0/Conv`.

    The exporter's metadata, which contains the paths, is dropped: it contains the exporting machine's stack traces too.
    """
    named = onnx.ModelProto()
    named.CopyFrom(model)
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
    """A copy in which every constant is an initializer, computed ones included."""
    graph = gs.import_onnx(model)
    graph.fold_constants().cleanup().toposort()
    folded = gs.export_onnx(graph, do_type_check=False)
    folded.ir_version = model.ir_version
    return _without_constants(folded)


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


def _without_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constant nodes become initializers, so that every number is in one place."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    kept = [node for node in model.graph.node if node.op_type != "Constant"]
    del result.graph.node[:]
    result.graph.node.extend(kept)
    for node in constants:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(next(attribute.t for attribute in node.attribute if attribute.name == "value"))
        tensor.name = node.output[0]
        result.graph.initializer.append(tensor)
    return result
