from __future__ import annotations

import onnx
import onnx.parser
import pytest
from support.export_cache import ExportCache

from trt_hspan.edge.network_cost import AttentionSizes, network_cost
from trt_hspan.errors import HspanError
from trt_hspan.graph import OnnxMetadata, load_onnx, with_metadata

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


def test_a_model_without_a_scale_is_refused() -> None:
    model = _model()
    del model.metadata_props[:]
    with pytest.raises(HspanError, match="does not say its scale"):
        network_cost(model)


def test_an_exported_network_tells_its_attention_and_its_weights(exported: ExportCache) -> None:
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
