"""Reading ONNX files: what is not one is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.export_cache import ExportCache
from support.small_networks import attention_network

from trt_hspan import HspanError
from trt_hspan.graph import (
    OnnxMetadata,
    attention_nodes,
    check_model,
    load_onnx,
    metadata_from_model,
    precision_from_model,
    require_attention,
    save_onnx,
    with_metadata,
)
from trt_hspan.graph.contract import (
    ImageInput,
    image_input,
    model_inputs,
    names_read,
    tensor_types,
    with_fixed_input,
)


def plain_model() -> onnx.ModelProto:
    """A valid model without attention."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "plain", [value], [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(200)])
def test_file_that_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(HspanError, match="not an ONNX"):
        load_onnx(path)


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path: Path, exported: ExportCache, fraction: float) -> None:
    data = exported("small_x4").read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(HspanError, match="truncated"):
        load_onnx(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match="no such file"):
        load_onnx(tmp_path / "missing.onnx")
    with pytest.raises(HspanError, match="is a folder"):
        load_onnx(tmp_path)


def test_model_without_the_operator_is_refused() -> None:
    with pytest.raises(HspanError, match="contains no hspan::HighSimilarityPassAttention node"):
        require_attention(plain_model(), "plain.onnx")
    with pytest.raises(HspanError, match="no attention node"):
        precision_from_model(plain_model())


def test_a_model_that_is_not_valid_is_refused_with_its_name() -> None:
    check_model(plain_model(), "net.onnx")
    unknown, mistyped = plain_model(), plain_model()
    unknown.graph.node[0].op_type = "Nothing"
    mistyped.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    for model in (unknown, mistyped):
        with pytest.raises(HspanError, match=r"net\.onnx: not a valid ONNX model: .*; export it again"):
            check_model(model, "net.onnx")


def test_attention_is_the_node_of_its_name_in_its_domain() -> None:
    model = attention_network(blocks=2)
    assert [node.name for node in attention_nodes(model)] == ["attention0", "attention1"]
    model.graph.node[1].op_type = "Other"
    model.graph.node[3].domain = "other"
    assert not attention_nodes(model)


def test_metadata_survives_a_file_and_keeps_what_others_wrote(tmp_path: Path) -> None:
    metadata = OnnxMetadata(
        scale=3, architecture="a", precision="fp16", res_scale=0.1, source_sha256="0", tool_version="1"
    )
    model = plain_model()
    onnx.helper.set_model_props(model, {"author": "somebody"})
    save_onnx(with_metadata(with_metadata(model, OnnxMetadata(scale=2)), metadata), tmp_path / "m.onnx")
    loaded = load_onnx(tmp_path / "m.onnx")
    assert metadata_from_model(loaded) == metadata
    assert ("author", "somebody") in [(entry.key, entry.value) for entry in loaded.metadata_props]


def test_foreign_and_malformed_metadata_count_as_absent() -> None:
    model = plain_model()
    assert metadata_from_model(model) == OnnxMetadata()
    onnx.helper.set_model_props(model, {"trt_hspan.scale": "four"})
    assert metadata_from_model(model).scale is None


def parsed(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')


def test_weights_that_are_listed_as_inputs_are_none() -> None:
    model = parsed(
        "net (float[N, 3, H, 8] x, float[1] w) => (float[N, 3, H, 8] y) <float[1] w = {2}> {y = Mul(x, w)}"
    )
    assert [value.name for value in model_inputs(model)] == ["x"]
    assert image_input(model, "net.onnx") == ImageInput(name="x", shape=(None, 3, None, 8))


@pytest.mark.parametrize(
    "inputs", ["float[1, 3, 4, 4] x, float[1] z", "float[3, 4, 4] x", "float[1, 1, 3, 4, 4] x", "float x"]
)
def test_a_network_has_one_input_of_four_dimensions(inputs: str) -> None:
    model = parsed(f"net ({inputs}) => (float[N] y) {{y = Relu(x)}}")
    with pytest.raises(HspanError, match=r"net\.onnx: expected one input \(N, C, H, W\)"):
        image_input(model, "net.onnx")


def test_a_fixed_input_fixes_the_output_and_leaves_the_source() -> None:
    model = parsed(
        "net (float[N, 3, H, W] x) => (float[N, 3, A, B] y) <float[N, 3, H, W] v> {v = Relu(x) y = Relu(v)}"
    )
    fixed = with_fixed_input(model, (2, 3, 5, 7), scale=4)

    def shape(value: onnx.ValueInfoProto) -> list[int]:
        return [dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert (shape(fixed.graph.input[0]), shape(fixed.graph.output[0])) == ([2, 3, 5, 7], [2, 3, 20, 28])
    assert not any(value.type.tensor_type.HasField("shape") for value in fixed.graph.value_info)
    assert list(fixed.graph.node) == list(model.graph.node)
    assert shape(model.graph.input[0]) == [0, 3, 0, 0]


def test_types_are_those_of_inputs_weights_and_what_is_computed() -> None:
    model = parsed(
        "net (float[N] x) => (float16[N] y) <float16[1] w = {2}, float[1] z> {v = Cast <to = 10> (x) y = Mul(v, w)}"
    )
    types = tensor_types(model)
    assert {name: types[name] for name in "xvwy"} == {"x": 1, "v": 10, "w": 10, "y": 10}


def test_what_branches_take_from_around_them_is_read() -> None:
    def branch(text: str) -> onnx.GraphProto:
        return onnx.parser.parse_graph(text)

    then = branch("t () => (float[1] r) <float[1] own = {1}> { q = Add(outer, own) r = Mul(q, q) }")
    otherwise = branch("e () => (float[1] passed) { unused = Relu(other) }")
    node = helper.make_node("If", ["condition"], ["y"], then_branch=then, else_branch=otherwise)
    assert names_read([node]) == {"condition", "outer", "passed", "other"}
    assert names_read([helper.make_node("Clip", ["x", "", "high"], ["y"])]) == {"x", "high"}


def test_weights_in_another_file_are_read_from_beside_it(tmp_path: Path) -> None:
    model = plain_model()
    weight = np.arange(2000, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="weights")
    loaded = load_onnx(tmp_path / "m.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(loaded.graph.initializer[0]), weight)
    (tmp_path / "weights").unlink()
    with pytest.raises(HspanError, match=r"m\.onnx: its external weights cannot be read .*beside it"):
        load_onnx(tmp_path / "m.onnx")


def test_a_file_without_a_graph_or_operators_is_refused(tmp_path: Path) -> None:
    for emptied in ("node", "opset_import"):
        model = plain_model()
        del (model.graph.node if emptied == "node" else model.opset_import)[:]
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(HspanError, match="not an ONNX model: it contains no graph"):
            load_onnx(tmp_path / "m.onnx")
