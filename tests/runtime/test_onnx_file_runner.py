"""ONNX files that any library on a CPU may run: what they say of themselves, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from support.export_cache import ExportCache
from support.golden import GoldenNetwork
from support.small_networks import attention_network, write_attention_network

from trt_hspan.errors import HspanError
from trt_hspan.graph import OnnxMetadata, metadata_from_model, save_onnx, with_metadata
from trt_hspan.model.checkpoint import load_model
from trt_hspan.native import cpu_attention
from trt_hspan.runtime.onnx_file_runner import OnnxFileRunner
from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner


def opened(model: onnx.ModelProto, folder: Path) -> OnnxFileRunner:
    save_onnx(model, folder / "a.onnx")
    return OnnxRuntimeRunner(folder / "a.onnx")


def test_a_file_says_what_its_network_takes(tmp_path: Path) -> None:
    model = attention_network(shape=(2, 3, "H", 8))
    said = OnnxMetadata(scale=1, size_multiple=4, min_size=8, res_scale=0.2, source_sha256="d" * 64)
    runner = opened(with_metadata(model, said), tmp_path)
    assert (runner.size_multiple, runner.min_size, runner.res_scale) == (4, 8, 0.2)
    assert (runner.scale, runner.source_sha256, runner.fixed_shape) == (1, "d" * 64, (2, 3, None, 8))
    assert runner.precision == "fp32"
    plain = opened(attention_network(), tmp_path)
    assert metadata_from_model(attention_network()).size_multiple is None
    assert (plain.size_multiple, plain.min_size, plain.on_gpu) == (1, 1, False)


def test_fixed_size_is_known_and_another_picture_is_reported(tmp_path: Path) -> None:
    path = write_attention_network(tmp_path / "a.onnx", shape=(1, 3, 8, 12))
    with OnnxRuntimeRunner(path) as runner:
        assert runner.fixed_shape == (1, 3, 8, 12)
        assert runner.run(np.zeros((1, 3, 8, 12), np.float32)).shape == (1, 3, 8, 12)
        with pytest.raises(HspanError, match=r"is 1x3x12x8, but .*a\.onnx takes 1x3x8x12"):
            runner.run(np.zeros((1, 3, 12, 8), np.float32))


def renamed_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "picture"


def half_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def second_output(model: onnx.ModelProto) -> None:
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output[1].name = model.graph.node[0].output[0]


def no_attention(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.domain:
            node.domain, node.op_type = "", "Sum"


def four_channels(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4


def flat_input(model: onnx.ModelProto) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[3]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (renamed_input, r"its inputs are \['picture'\]"),
        (half_input, "its input is not float32"),
        (second_output, r"its outputs \['output', 'conv0'\]"),
        (no_attention, "contains no hspan::HighSimilarityPassAttention node"),
        (four_channels, r"expected \(N, 3, H, W\)"),
        (flat_input, r"expected one input \(N, C, H, W\)"),
    ],
)
def test_file_with_another_interface_is_reported_before_the_block(
    tmp_path: Path, spoil: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = attention_network()
    spoil(model)
    save_onnx(model, tmp_path / "a.onnx")
    with pytest.raises(HspanError, match=message) as caught:
        OnnxRuntimeRunner(tmp_path / "a.onnx")
    assert str(caught.value).startswith(str(tmp_path / "a.onnx"))
    assert "\n" not in str(caught.value)


def test_missing_truncated_and_foreign_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match="no such file"):
        OnnxRuntimeRunner(tmp_path / "none.onnx")
    whole = write_attention_network(tmp_path / "a.onnx").read_bytes()
    for content in (whole[: len(whole) // 2], b"\x89PNG\r\n", b""):
        (tmp_path / "b.onnx").write_bytes(content)
        with pytest.raises(HspanError, match="not an ONNX"):
            OnnxRuntimeRunner(tmp_path / "b.onnx")


def test_running_outside_the_block_is_a_mistake_of_the_program(tmp_path: Path) -> None:
    runner = OnnxRuntimeRunner(write_attention_network(tmp_path / "a.onnx"))
    with pytest.raises(RuntimeError, match="not active"):
        runner.run(np.zeros((1, 3, 8, 8), np.float32))


def test_memory_with_native_attention_grows_with_the_picture_only(tmp_path: Path) -> None:
    runner = OnnxRuntimeRunner(write_attention_network(tmp_path / "a.onnx"))
    assert runner.memory_bytes((1, 3, 64, 64)) * 4 == runner.memory_bytes((1, 3, 128, 128))
    with runner:
        # 16,384 positions: the score matrix alone would take a gigabyte.
        assert runner.memory_bytes((1, 3, 128, 128)) < 50e6
        assert runner.run(np.zeros((1, 3, 128, 128), np.float32)).shape == (1, 3, 128, 128)


def test_memory_with_native_attention_is_three_tensors_of_the_upscaled_features(
    exported: ExportCache, small_x4: GoldenNetwork
) -> None:
    features = load_model(small_x4.checkpoint).config.n_feats
    runner = OnnxRuntimeRunner(exported("small_x4"))
    assert runner.memory_bytes((2, 3, 10, 20)) == 3 * 4 * 2 * features * 40 * 80  # float32


def test_memory_is_that_of_the_last_convolution_of_neighborhoods(tmp_path: Path) -> None:
    """Three tensors of float32, of as many features as it reads; convolutions of single pixels do not count."""
    model = attention_network()
    for shape, features in (((3, 8, 3, 3), 8), ((3, 8, 1, 3), 8), ((8, 8, 1, 1), 8), ((3, 8, 1, 1), 3)):
        name = "conv1.weight" if shape[0] == 8 else "conv2.weight"
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        weight.CopyFrom(numpy_helper.from_array(np.zeros(shape, np.float32), name))
        assert opened(model, tmp_path).memory_bytes((2, 3, 5, 7)) == 3 * 4 * 2 * features * 5 * 7
    del model.graph.initializer[:]
    assert opened(model, tmp_path).memory_bytes((2, 3, 5, 7)) == 0


def test_memory_without_native_attention_is_that_of_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "native_library", lambda: None)
    runner = opened(attention_network(), tmp_path)
    # Three and a half tensors of 35 x 35 float32 for each of two pictures.
    assert runner.memory_bytes((2, 3, 5, 7)) == 3.5 * 4 * 2 * 35**2
