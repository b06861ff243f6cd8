"""Exported networks under ONNX Runtime against PyTorch, at sizes and contents that traced exports get wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from support.edsr_like import EdsrLike
from support.export_cache import ExportCache
from support.golden import GOLDEN, GoldenNetwork
from support.small_networks import attention_network

import trt_hspan
from trt_hspan import HSPAN, HspanConfig, HspanError, UsageError, export_onnx, onnx_from_model
from trt_hspan.export import to_onnx
from trt_hspan.files import sha256_from_file
from trt_hspan.graph import (
    Precision,
    attention_nodes,
    load_onnx,
    metadata_from_model,
    model_for_cpu,
    precision_from_model,
)
from trt_hspan.graph.taken_sizes import TakenSizes
from trt_hspan.names import DOMAIN, OP_TYPE
from trt_hspan.sizes import ImageSize

SIZES = [(1, 1, 1), (1, 7, 5), (3, 8, 8), (1, 33, 17), (2, 24, 31)]


def run(model: onnx.ModelProto, image: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(
        model_for_cpu(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    result: NDArray[np.float32] = session.run(["output"], {"input": image})[0]
    return result


def run_torch(model: torch.nn.Module, image: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        result: NDArray[np.float32] = model(torch.from_numpy(image)).numpy()
    return result


@pytest.fixture(scope="module")
def small_export() -> tuple[HSPAN, onnx.ModelProto]:
    """A checkpoint whose attention supports reach past any fixed k at these sizes, and its export."""
    model = trt_hspan.load_model(GOLDEN / "small_x2.pt", res_scale=1.0)
    return model, onnx_from_model(model)


def test_like_operators_of_one_module_are_numbered_from_the_second_on() -> None:
    class Three(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(torch.relu(torch.relu(x) - 0.5) - 0.25)

    model = onnx_from_model(torch.nn.Sequential(Three(), EdsrLike()).eval(), channels=1)
    names = [node.name for node in model.graph.node if node.name.startswith("0/Relu")]
    assert names == ["0/Relu", "0/Relu_2", "0/Relu_3"]


def test_export_agrees_with_the_official_network(
    exported: ExportCache, golden_network: GoldenNetwork
) -> None:
    out = run(load_onnx(exported(golden_network.name)), golden_network.input)
    assert np.abs(out - golden_network.output).max() <= 1e-5


@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_one_file_serves_every_size(
    small_export: tuple[HSPAN, onnx.ModelProto], batch: int, height: int, width: int
) -> None:
    image = np.random.default_rng(height).random((batch, 3, height, width), np.float32)
    model, exported = small_export
    np.testing.assert_allclose(run(exported, image), run_torch(model, image), atol=1e-4)


@pytest.mark.parametrize("content", ["black", "half flat", "two colors", "tiny noise"])
def test_flat_pictures_come_out_right(small_export: tuple[HSPAN, onnx.ModelProto], content: str) -> None:
    image = np.zeros((1, 3, 24, 20), np.float32)
    if content == "half flat":
        image[..., :10] = np.random.default_rng(0).random((1, 3, 24, 10), np.float32)
    elif content == "two colors":
        image[:, :, 12:] = 1
    elif content == "tiny noise":
        image[:] = 0.5 + 1e-4 * np.random.default_rng(0).random(image.shape, np.float32)
    model, exported = small_export
    np.testing.assert_allclose(run(exported, image), run_torch(model, image), atol=1e-4)


def test_each_attention_block_is_one_node_with_a_body(small_export: tuple[HSPAN, onnx.ModelProto]) -> None:
    model, exported = small_export
    assert [node.name for node in attention_nodes(exported)] == [
        "body.0.body.2/Attention",
        "body.1.body.2/Attention",
    ]
    assert [(f.domain, f.name) for f in exported.functions] == [("hspan", "HighSimilarityPassAttention")]
    assert sum(node.op_type == "Conv" for node in exported.graph.node) == sum(
        isinstance(module, torch.nn.Conv2d) for module in model.modules()
    )
    onnx.checker.check_model(exported, full_check=True)


def test_metadata_shows_where_the_model_came_from(tmp_path: Path, small_x4: GoldenNetwork) -> None:
    path = export_onnx(small_x4.checkpoint, tmp_path / "net.onnx", precision="fp16", res_scale=0.2)
    metadata = metadata_from_model(load_onnx(path))
    assert (metadata.scale, metadata.precision, metadata.res_scale) == (4, "fp16", 0.2)
    assert metadata.source_sha256 == sha256_from_file(small_x4.checkpoint)
    assert metadata.tool_version == trt_hspan.__version__
    assert metadata.architecture == "HSPAN x4, 32 features, 2 modules of 1 blocks"


def test_exporting_twice_gives_the_same_bytes_and_no_path_of_this_machine(
    tmp_path: Path, exported: ExportCache, small_x4: GoldenNetwork
) -> None:
    first = exported("small_x4").read_bytes()
    second = export_onnx(small_x4.checkpoint, tmp_path / "second.onnx", res_scale=small_x4.res_scale)
    assert second.read_bytes() == first
    for part in (Path(trt_hspan.__file__).parent, tmp_path, Path(torch.__file__).parent):
        assert str(part).encode() not in first


@pytest.mark.parametrize("opset", [20, 23])
def test_a_later_opset_computes_the_same(exported: ExportCache, small_x4: GoldenNetwork, opset: int) -> None:
    model = load_onnx(exported("small_x4", opset=opset))
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
    assert np.abs(run(model, small_x4.input) - small_x4.output).max() <= 1e-5


def test_static_export_has_fixed_shapes_and_computes_the_same(
    tmp_path: Path, small_x4: GoldenNetwork
) -> None:
    path = export_onnx(
        small_x4.checkpoint, tmp_path / "net.onnx", static=(12, 12), res_scale=small_x4.res_scale
    )
    model = load_onnx(path)
    shapes = [
        [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [[1, 3, 12, 12], [1, 3, 48, 48]]
    assert np.abs(run(model, small_x4.input) - small_x4.output).max() <= 1e-5


@pytest.mark.parametrize("size", [(1, 1), (5, 1)])
def test_static_export_of_a_single_row_or_pixel(
    tmp_path: Path, small_x4: GoldenNetwork, size: tuple[int, int]
) -> None:
    path = export_onnx(small_x4.checkpoint, tmp_path / "net.onnx", static=size)
    image = np.random.default_rng(0).random((1, 3, *size), np.float32)
    model = trt_hspan.load_model(small_x4.checkpoint)
    np.testing.assert_allclose(run(load_onnx(path), image), run_torch(model, image), atol=1e-4)


# Rounding to a type with p bits of precision gives an error of about 2^-p of a tensor's values, and the
# residual branches are scaled by res_scale twice: 2^-12 and 2^-9 against pictures of order 1 are 72 and
# 54 dB. A graph that rounds the skip connections or sums scores in the low type falls below.
@pytest.mark.parametrize(("precision", "psnr_db"), [("fp16", 72.0), ("bf16", 54.0)])
def test_low_precision_stays_near_the_official_network(
    exported: ExportCache, golden_network: GoldenNetwork, precision: Precision, psnr_db: float
) -> None:
    model = load_onnx(exported(golden_network.name, precision=precision))
    assert precision_from_model(model) == precision
    error = run(model, golden_network.input) - golden_network.output
    assert -10 * np.log10(np.mean(error.astype(np.float64) ** 2)) >= psnr_db


def test_half_precision_keeps_head_skip_and_mean_shift_in_float32() -> None:
    model = trt_hspan.load_model(GOLDEN / "small_x4.pt")
    exported = onnx_from_model(model, precision="fp16")
    inferred = onnx.shape_inference.infer_shapes(exported, strict_mode=True)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    computed = {node.name: types[node.output[0]] for node in exported.graph.node if node.op_type != "Cast"}
    float32 = {name for name, element_type in computed.items() if element_type == TensorProto.FLOAT}
    assert float32 == {"sub_mean/Conv", "head.0/Conv", "Add", "tail/Scale", "add_mean/Conv"}
    assert {computed[name] for name in computed.keys() - float32} == {TensorProto.FLOAT16}


def test_half_precision_survives_scores_and_sums_beyond_its_range(tmp_path: Path) -> None:
    """Query and key of about 300: scores of 12 * 90,000 need float32, though every tensor fits float16."""
    state = dict(torch.load(GOLDEN / "small_x2.pt", weights_only=True))
    for key in list(state):
        if "conv_match" in key and key.endswith("0.bias"):
            state[key] = torch.full_like(state[key], 300.0)
    torch.save(state, tmp_path / "large.pt")
    image = np.random.default_rng(0).random((1, 3, 9, 11), np.float32)
    expected = run_torch(trt_hspan.load_model(tmp_path / "large.pt"), image)
    out = run(load_onnx(export_onnx(tmp_path / "large.pt", tmp_path / "large.onnx", precision="fp16")), image)
    assert np.isfinite(out).all()
    # Rounding 300 to float16 moves a score by 0.1 * sqrt(12) * 300: the choice of keys changes, no more.
    assert np.abs(out - expected).max() < 0.1


def test_half_precision_survives_features_whose_sums_leave_its_range(tmp_path: Path) -> None:
    """Head and body both give features of 30,000 to 60,000: each fits float16, their sum and the tail's do not."""
    state = dict(torch.load(GOLDEN / "small_x4.pt", weights_only=True))
    image = np.random.default_rng(0).random((1, 3, 9, 11), np.float32)
    head = torch.nn.functional.conv2d(
        torch.from_numpy(image) - 0.43, state["head.0.weight"], state["head.0.bias"], padding=1
    )
    factor = 50_000 / float(head.abs().max())
    for key in ("head.0.weight", "head.0.bias"):
        state[key] = state[key] * factor
    # The body is an identity: no residuals, a last convolution that copies.
    for key, tensor in list(state.items()):
        if key.startswith("body."):
            state[key] = torch.zeros_like(tensor)
    state["body.2.weight"][:, :, 1, 1] = torch.eye(32)
    state["tail.1.weight"] = state["tail.1.weight"] / (2 * factor)
    for key in ("tail.0.0.bias", "tail.0.2.bias"):
        state[key] = state[key] * factor
    torch.save(state, tmp_path / "large.pt")
    expected = run_torch(trt_hspan.load_model(tmp_path / "large.pt"), image)
    out = run(load_onnx(export_onnx(tmp_path / "large.pt", tmp_path / "large.onnx", precision="fp16")), image)
    # Rounding in a handful of layers: eight units in the last place of a picture of order 1.
    np.testing.assert_allclose(out, expected, atol=8 * 2.0**-11)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_block_can_stand_in_another_network(precision: Precision) -> None:
    torch.manual_seed(0)
    model = EdsrLike().eval()
    exported = onnx_from_model(model, channels=1, precision=precision)
    assert [node.name for node in attention_nodes(exported)] == ["attention/Attention"]
    image = np.random.default_rng(0).random((2, 1, 11, 14), np.float32)
    # A few roundings of values of order 1 in sequence: eight units in the last place.
    tolerance = {"fp32": 1e-4, "fp16": 8 * 2.0**-11, "bf16": 8 * 2.0**-8}[precision]
    np.testing.assert_allclose(run(exported, image), run_torch(model, image), atol=tolerance)


def test_network_without_the_attention_is_refused() -> None:
    with pytest.raises(HspanError, match="contains no hspan::HighSimilarityPassAttention node"):
        onnx_from_model(torch.nn.Conv2d(3, 3, 1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int4"}, "--precision"),
        ({"opset": 17}, "choose 18 to"),
        ({"opset": 99}, "choose 18 to"),
        ({"precision": "bf16", "opset": 20}, "choose 22 to"),
        ({"static": (0, 5)}, "height is 0"),
    ],
)
def test_impossible_requests_are_usage_errors(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        onnx_from_model(HSPAN(HspanConfig(n_feats=4, n_groups=1, n_blocks=0, scale=2)), **options)  # type: ignore[arg-type]


def test_failed_export_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(HspanError):
        export_onnx(tmp_path / "missing.pt", tmp_path / "out" / "net.onnx")
    with pytest.raises(UsageError, match=r"\.onnx"):
        export_onnx(GOLDEN / "small_x2.pt", tmp_path / "net.plan")
    assert list(tmp_path.iterdir()) == []


def test_other_width_and_depth(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = HSPAN(HspanConfig(n_feats=10, n_groups=3, n_blocks=0, scale=3, reduction=3, res_scale=0.7)).eval()
    image = np.random.default_rng(1).random((2, 3, 6, 9), np.float32)
    np.testing.assert_allclose(run(onnx_from_model(model), image), run_torch(model, image), atol=1e-4)


@pytest.mark.parametrize(
    ("static", "taken", "traced", "run_at", "cheap"),
    [
        (None, (1, 1), (23, 25), (12, 16), False),
        (None, (5, 5), (25, 35), (15, 20), False),
        (None, (6, 20), (30, 42), (24, 30), False),
        (None, (1, 61), (23, 25), (61, 65), False),
        (None, (1, 62), (23, 25), (62, 66), False),
        (None, (1, 63), (23, 25), (63, 67), True),
        ((64, 64), (1, 1), (64, 64), (64, 64), False),
        ((17, 241), (1, 1), (17, 241), (17, 241), True),
    ],
)
def test_a_graph_is_run_once_at_another_size_than_it_was_traced_at(
    monkeypatch: pytest.MonkeyPatch,
    static: tuple[int, int] | None,
    taken: tuple[int, int],
    traced: tuple[int, int],
    run_at: tuple[int, int],
    cheap: bool,
) -> None:
    runs: list[tuple[object, ...]] = []

    def require_agreement(
        graph: onnx.ModelProto, module: object, example: torch.Tensor, where: str, *, low: bool, cheap: bool
    ) -> None:
        runs.append((tuple(example.shape), where, low, cheap))

    graph = attention_network(precision="bf16")

    def translate(_: object, channels: int, size: ImageSize, *, is_static: bool) -> onnx.ModelProto:
        assert (channels, tuple(size), is_static) == (3, traced, static is not None)
        return graph

    monkeypatch.setattr(to_onnx, "require_agreement", require_agreement)
    monkeypatch.setattr(to_onnx, "_translate", translate)
    size = None if static is None else ImageSize(*static)
    sizes = TakenSizes(scale=1, size_multiple=taken[0], min_size=taken[1])
    to_onnx._agreeing_graph(torch.nn.Identity(), 3, size, sizes)
    assert runs == [((1, 3, *run_at), "Identity", True, cheap)]
    graph = attention_network()
    del graph.graph.node[1]
    graph.graph.node[1].input[0] = "conv0"
    to_onnx._agreeing_graph(torch.nn.Identity(), 3, size, sizes)
    assert len(runs) == 1  # what has no attention is refused later, by its name


def test_a_forward_that_looks_at_its_pixels_cannot_be_exported() -> None:
    class Looking(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * 2 if image.mean() > 0 else image

    with pytest.raises(
        HspanError, match=r"Looking: cannot be exported: .*; export a fixed size, static="
    ) as caught:
        onnx_from_model(Looking())
    assert 100 < len(caught.value.what) <= len("cannot be exported: ") + 300


def test_the_exporter_leaves_logging_and_translations_as_they_were() -> None:
    with to_onnx._quiet_exporter():
        assert logging.root.manager.disable == logging.CRITICAL
    assert logging.root.manager.disable == logging.NOTSET
    with to_onnx._attention_translation() as table:
        assert len(table) == 2
        assert onnx.defs.has(OP_TYPE, DOMAIN)
    assert not onnx.defs.has(OP_TYPE, DOMAIN)
