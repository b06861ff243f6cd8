"""Reading ONNX files: what is not one is refused in one line."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from support.export_cache import ExportCache

from trt_hspan import HspanError
from trt_hspan.graph import (
    OnnxMetadata,
    load_onnx,
    metadata_from_model,
    precision_from_model,
    require_attention,
    save_onnx,
    with_metadata,
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
