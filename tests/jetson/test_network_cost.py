from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest
from support.export_cache import ExportCache

from trt_hspan import export_onnx
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.graph import OnnxMetadata, load_onnx, with_metadata
from trt_hspan.jetson.network_cost import AttentionSizes, network_cost, published_cost

TEXT = """
<ir_version: 10, opset_import: ["" : 18, "hspan" : 1]>
agraph (float[N,3,H,W] input) => (float[N,4,H,W] output)
<float[N,4,H,W] c, float[4,3,1,1] w1 = {%s}, float[4,4,3,3] w2 = {%s}>
{
    [first] a = Conv <kernel_shape=[1,1]> (input, w1)
    r = Relu (a)
    [second] b = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (r, w2)
    c = hspan.HighSimilarityPassAttention (r, r, b)
    output = Add (r, c)
}
"""


def _model() -> onnx.ModelProto:
    text = TEXT % (", ".join(["0"] * 12), ", ".join(["0"] * 144))
    return with_metadata(onnx.parser.parse_model(text), OnnxMetadata(scale=1))


def test_a_small_graph_costs_what_can_be_counted_by_hand() -> None:
    cost = network_cost(_model())
    assert cost.weights_bytes == 4 * (12 + 144)
    assert cost.macs_per_pixel == 12 + 144
    # While each of the last two nodes runs, its inputs and its output are alive: 3 tensors of 4 channels of 4 bytes.
    assert cost.activation_bytes_per_pixel == 3 * 4 * 4
    assert cost.attention == (AttentionSizes(score_channels=4, value_channels=4),)


@pytest.mark.parametrize("scale", [None, 0, -2])
def test_a_model_without_a_scale_is_refused(scale: int | None) -> None:
    model = with_metadata(_model(), OnnxMetadata(scale=scale))
    with pytest.raises(HspanError, match="does not say its scale"):
        network_cost(model)


def test_an_exported_network_shows_its_attention_and_its_weights(exported: ExportCache) -> None:
    path = exported("small_x4", precision="fp32")
    model = load_onnx(path)
    cost = network_cost(model, where=path)
    assert cost.scale == 4
    assert cost.precision == "fp32"
    assert cost.element_bytes == 4
    # The golden network small_x4: one attention block per module.
    assert len(cost.attention) == sum(node.domain == "hspan" for node in model.graph.node)
    assert cost.attention[0].value_channels == 2 * cost.attention[0].score_channels
    assert isinstance(cost.attention[0], AttentionSizes)
    # The last feature maps are 16 times as large as the input: that alone is more than the low-resolution part.
    assert cost.activation_bytes_per_pixel >= 16 * 4 * 3


def test_half_precision_halves_activations_and_weights(exported: ExportCache) -> None:
    full = network_cost(load_onnx(exported("small_x4", precision="fp32")))
    half = network_cost(load_onnx(exported("small_x4", precision="fp16")))
    assert half.activation_bytes_per_pixel == pytest.approx(full.activation_bytes_per_pixel / 2, rel=0.05)
    assert full.weights_bytes / 2 <= half.weights_bytes <= 0.6 * full.weights_bytes


def test_a_fixed_size_costs_the_same_for_a_pixel() -> None:
    free, fixed = _model(), _model()
    for value, size in zip(fixed.graph.input[0].type.tensor_type.shape.dim, (1, 3, 8, 40), strict=True):
        value.dim_value = size
    one, other = network_cost(free), network_cost(fixed)
    assert other.fixed_size == (8, 40)
    assert one.fixed_size is None
    assert other.macs_per_pixel == one.macs_per_pixel
    assert other.activation_bytes_per_pixel == one.activation_bytes_per_pixel


def test_a_model_of_two_inputs_is_refused() -> None:
    model = _model()
    model.graph.input.append(onnx.helper.make_tensor_value_info("other", 1, (1, 3)))
    with pytest.raises(HspanError, match="expected one input"):
        network_cost(model)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_weights_and_arithmetic_of_the_published_networks_are_those_of_their_layers(scale: int) -> None:
    import torch

    from trt_hspan.model.hspan import HSPAN
    from trt_hspan.model.presets import PRESETS

    with torch.device("meta"):
        network = HSPAN(PRESETS[f"hspan-x{scale}"])
        macs = 0

        def count(layer: torch.nn.Module, _: object, output: torch.Tensor) -> None:
            nonlocal macs
            macs += output.numel() * layer.weight[0].numel()  # type: ignore[index, union-attr]

        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(count)
        with torch.no_grad():
            network(torch.empty(1, 3, 16, 16))
    parameters = sum(parameter.numel() for parameter in network.state_dict().values())
    assert published_cost(scale, "fp32").macs_per_pixel == macs / 256
    assert published_cost(scale, "fp32").weights_bytes == pytest.approx(4 * parameters, abs=16)
    # The two largest feature maps are alive while the last convolution but one runs.
    assert published_cost(scale, "fp32").activation_bytes_per_pixel == 2 * 192 * scale**2 * 4
    halves = [published_cost(scale, precision).weights_bytes for precision in ("fp16", "bf16")]
    assert halves == pytest.approx([2 * parameters] * 2, rel=0.001)


@pytest.mark.slow
def test_the_published_network_costs_what_its_export_costs(tmp_path: Path) -> None:
    path = export_onnx("hspan-x2", tmp_path / "published.onnx", precision="fp16")
    assert network_cost(load_onnx(path)) == published_cost(2, "fp16")


def test_costs_that_are_not_known_are_refused() -> None:
    with pytest.raises(UsageError, match="--scale: got 5, expected 2, 3 or 4"):
        published_cost(5, "fp16")
    with pytest.raises(UsageError, match="--precision: got 'int8', expected one of fp32, fp16, bf16"):
        published_cost(2, "int8")
