"""The function body under ONNX Runtime: exact for every support size, sound for what is no number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from support.export_cache import ExportCache
from support.reference import attention_reference, sparsemax_reference

from trt_hspan.errors import UsageError
from trt_hspan.graph import (
    attention_nodes,
    attention_schema,
    load_onnx,
    model_in_form,
    model_in_own_domain,
    model_with_attention_function,
    model_with_inlined_functions,
    model_with_plugin_nodes,
    model_with_stand_in_attention,
)
from trt_hspan.names import DOMAIN, OP_TYPE, OP_VERSION

NUMPY_TYPE = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


def attention_model(element_type: int = TensorProto.FLOAT, opset: int = 18) -> onnx.ModelProto:
    """A model of one attention node, sizes free."""
    inputs = [
        helper.make_tensor_value_info(name, element_type, ["n", channels, "h", "w"])
        for name, channels in (("query", "c"), ("key", "c"), ("value", "d"))
    ]
    output = helper.make_tensor_value_info("output", element_type, ["n", "d", "h", "w"])
    node = helper.make_node(OP_TYPE, ["query", "key", "value"], ["output"], domain=DOMAIN)
    graph = helper.make_graph([node], "attention", inputs, [output])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, OP_VERSION)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def attend(model: onnx.ModelProto, *arrays: NDArray[np.floating]) -> NDArray[np.floating]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.floating] = session.run(
        None, dict(zip(("query", "key", "value"), arrays, strict=True))
    )[0]
    return result


def test_a_body_imports_the_domain_once_and_keeps_what_the_node_says() -> None:
    model = attention_model()
    bare = attention_model()
    del bare.opset_import[1]
    model.graph.node[0].attribute.append(helper.make_attribute("io_format", "linear"))
    for each in (model, bare):
        written = model_with_attention_function(model_with_attention_function(each))
        assert [(entry.domain, entry.version) for entry in written.opset_import] == [("", 18), (DOMAIN, 1)]
        assert len(written.functions) == 1
    attributes = model_with_plugin_nodes(model).graph.node[0].attribute
    assert {each.name: each.s.decode() for each in attributes} == {
        "io_format": "linear",
        "configuration": "any",
    }


def test_functions_of_others_stay_with_and_without_the_body() -> None:
    model = attention_model()
    other = onnx.parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : 18]> Other (x) => (y) {{ y = Relu(x) }}'
    )
    model.functions.append(other)
    assert list(model_with_plugin_nodes(model_with_attention_function(model)).functions) == [other]


def test_the_stand_in_weighs_the_value_by_query_and_key() -> None:
    q, k, v = (
        np.random.default_rng(i).normal(size=(2, c, 3, 5)).astype(np.float32) for i, c in enumerate((4, 4, 3))
    )
    out = attend(model_with_stand_in_attention(attention_model()), q, k, v)
    weight = 1 / (1 + np.exp(-(2 * q + k).mean(1, keepdims=True)))
    np.testing.assert_allclose(out, weight * v, rtol=1e-5, atol=1e-6)


def test_within_the_block_alone_onnx_knows_the_operator() -> None:
    model = attention_model()
    assert not onnx.defs.has(OP_TYPE, DOMAIN)
    with attention_schema():
        onnx.checker.check_model(model, full_check=True)
        schema = onnx.defs.get_schema(OP_TYPE, OP_VERSION, DOMAIN)
        assert [each.name for each in schema.inputs] == ["query", "key", "value"]
        assert [each.required for each in schema.attributes.values()] == [False, False]
    assert not onnx.defs.has(OP_TYPE, DOMAIN)


def test_a_model_of_this_domain_is_itself() -> None:
    model = attention_model()
    assert model_in_own_domain(model) is model
    written = model_in_form(model, "ort-tensorrt")
    again = model_in_own_domain(written)
    assert (again.graph.node[0].domain, written.graph.node[0].domain) == (DOMAIN, "trt.plugins")


def test_constants_of_the_body_are_tensors() -> None:
    """GraphSurgeon, and Polygraphy, onnxslim and ModelOpt with it, read value_float as float64."""
    nodes = list(model_with_attention_function(attention_model()).functions[0].node)
    for node in nodes:
        nodes.extend(n for attribute in node.attribute for n in attribute.g.node)
    constants = [node for node in nodes if node.op_type == "Constant"]
    assert len(constants) == 7
    assert {attribute.name for node in constants for attribute in node.attribute} == {"value"}


def test_the_provider_finds_the_node_where_it_declares_plugins(exported: ExportCache) -> None:
    """The rules of ONNX Runtime's TensorRT provider, docs/interoperability.md."""
    model = onnx.load(exported("small_x4", precision="fp16", form="ort-tensorrt"))
    nodes = [node for node in model.graph.node if node.op_type == OP_TYPE]
    assert len(nodes) == 2
    assert {node.domain for node in nodes} == {"trt.plugins"}
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 18), ("trt.plugins", 1)}
    assert not model.functions
    stated = {value.name: value.type for value in (*model.graph.value_info, *model.graph.output)}
    for node in model.graph.node:
        for name in node.output:
            assert stated[name].tensor_type.elem_type in {TensorProto.FLOAT, TensorProto.FLOAT16}, name
            assert len(stated[name].tensor_type.shape.dim) == 4, name
    for node in nodes:
        assert stated[node.output[0]] == stated[node.input[2]]
        assert [attribute.name for attribute in node.attribute] == ["io_format", "configuration"]
    onnx.checker.check_model(model)


def test_onnx_runtime_without_the_provider_misses_that_operator_alone(exported: ExportCache) -> None:
    path = exported("small_x4", precision="fp16", form="ort-tensorrt")
    with pytest.raises(Exception, match=f"trt.plugins:{OP_TYPE}.* is not a registered function/op"):
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_a_file_for_the_provider_is_read_as_any_other(exported: ExportCache) -> None:
    written = load_onnx(exported("small_x4", precision="fp16", form="ort-tensorrt"))
    assert [(entry.domain, entry.version) for entry in written.opset_import] == [
        ("", 18),
        (DOMAIN, OP_VERSION),
    ]
    assert [node.name for node in attention_nodes(written)] == [
        node.name for node in attention_nodes(load_onnx(exported("small_x4", precision="fp16")))
    ]
    onnx.checker.check_model(model_with_attention_function(written), full_check=True)


def test_plugins_of_others_keep_their_domain(tmp_path: Path) -> None:
    model = model_in_form(attention_model(), "ort-tensorrt")
    node = helper.make_node("Other", ["output"], ["more"], domain="trt.plugins")
    model.graph.node.append(node)
    onnx.save(model, tmp_path / "net.onnx")
    read = load_onnx(tmp_path / "net.onnx")
    assert [node.domain for node in read.graph.node] == [DOMAIN, "trt.plugins"]
    assert {entry.domain for entry in read.opset_import} == {"", DOMAIN, "trt.plugins"}


def test_an_unknown_form_is_an_error() -> None:
    with pytest.raises(UsageError, match="form: got 'dense', expected one of function, node, ort-tensorrt"):
        model_in_form(attention_model(), "dense")  # type: ignore[arg-type]


def test_agrees_with_the_official_network(golden_attention: dict[str, NDArray[np.float32]]) -> None:
    out = attend(
        model_with_attention_function(attention_model()), *(golden_attention[name] for name in "qkv")
    )
    assert np.abs(out - golden_attention["output"]).max() <= 1e-4 * np.abs(golden_attention["output"]).max()


@pytest.mark.parametrize("opset", [18, 20, 22, 23])
def test_every_opset_passes_the_full_check_and_computes_the_same(opset: int) -> None:
    model = model_with_attention_function(attention_model(opset=opset))
    onnx.checker.check_model(model, full_check=True)
    q, k, v = (
        np.random.default_rng(i).normal(size=(2, c, 5, 7)).astype(np.float32) for i, c in enumerate((4, 4, 3))
    )
    np.testing.assert_allclose(attend(model, q, k, v), attention_reference(q, k, v), atol=1e-5)


# The official code solves rows again when the support reaches 128; TensorRT's TopK ends at 3840.
@pytest.mark.parametrize("support", [1, 2, 127, 128, 129, 3841])
def test_support_of_any_size_is_exact(support: int) -> None:
    tokens = 4096
    k = np.full((1, 1, 1, tokens), -2, np.float32)
    chosen = np.random.default_rng(support).permutation(tokens)[:support]
    k[..., chosen] = np.linspace(0, 0.5 / support, support, dtype=np.float32)
    q, v = np.ones_like(k), np.random.default_rng(0).normal(size=(1, 2, 1, tokens)).astype(np.float32)
    out = attend(model_with_attention_function(attention_model()), q, k, v)
    expected = np.einsum("k,dk->d", sparsemax_reference(k[0, 0, 0]), v[0, :, 0].astype(np.float64))
    # Sums of up to 3841 float32 terms near the size of the threshold, 1 / support each.
    np.testing.assert_allclose(out[0, :, 0], np.repeat(expected[:, None], tokens, 1), atol=2e-5)


def test_equal_scores_weigh_one_over_l() -> None:
    zeros = np.zeros((1, 3, 12, 11), np.float32)
    v = np.random.default_rng(0).normal(size=(1, 2, 12, 11)).astype(np.float32)
    out = attend(model_with_attention_function(attention_model()), zeros, zeros, v)
    np.testing.assert_allclose(out, np.broadcast_to(v.mean((2, 3), keepdims=True), v.shape), atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_row_that_is_no_number_comes_out_as_nan_and_spoils_no_other(bad: float) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, c, 5, 7)).astype(np.float32) for c in (4, 4, 3))
    q[0, 1, 2, 3] = bad
    out = attend(model_with_attention_function(attention_model()), q, k, v)
    assert np.isnan(out[0, :, 2, 3]).all()
    assert np.isnan(out).sum() == 3


def test_score_of_minus_infinity_weighs_nothing() -> None:
    k = np.array([0.5, -np.inf, 0.25], np.float32).reshape(1, 1, 1, 3)
    v = np.array([1, 100, 3], np.float32).reshape(1, 1, 1, 3)
    out = attend(model_with_attention_function(attention_model()), np.ones_like(k), k, v)
    np.testing.assert_allclose(out, 0.625 * 1 + 0.375 * 3, rtol=1e-6)


def test_scores_beyond_half_precision_do_not_overflow() -> None:
    q = np.full((1, 16, 2, 3), 100, np.float16)  # scores of 160,000, float16 ends at 65,504
    v = np.arange(6, dtype=np.float16).reshape(1, 1, 2, 3)
    out = attend(model_with_attention_function(attention_model(TensorProto.FLOAT16)), q, q, v)
    np.testing.assert_array_equal(out, np.full_like(out, 2.5))


def test_body_is_taken_out_for_the_plugin_and_inlined_for_builders_without_plugins() -> None:
    model = model_with_attention_function(attention_model())
    assert len(model.functions) == 1
    bare = model_with_plugin_nodes(model)
    assert len(bare.functions) == 0
    assert [node.op_type for node in bare.graph.node] == [OP_TYPE]
    inlined = model_with_inlined_functions(bare)
    assert {node.domain for node in inlined.graph.node} <= {"", "ai.onnx"}
    assert len(inlined.functions) == 0
    arrays = [np.random.default_rng(1).normal(size=(1, 4, 3, 3)).astype(np.float32) for _ in range(3)]
    np.testing.assert_array_equal(attend(model, *arrays), attend(inlined, *arrays))
