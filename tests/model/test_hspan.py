"""The network's modules: the official network's numbers, its keys, and what each block does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.golden import GoldenNetwork

import trt_hspan
from trt_hspan.model.config import HspanConfig
from trt_hspan.model.hspan import (
    DIV2K_MEAN,
    HSPAN,
    AttentionModule,
    HighSimilarityPassAttention,
    MeanShift,
    ResidualBlock,
)
from trt_hspan.ops import high_similarity_pass_attention


def test_agrees_with_the_official_network(golden_network: GoldenNetwork) -> None:
    model = trt_hspan.load_model(golden_network.checkpoint, res_scale=golden_network.res_scale)
    with torch.no_grad():
        out = model(torch.from_numpy(golden_network.input))
    assert not model.training
    assert np.abs(out.numpy() - golden_network.output).max() <= 1e-5


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_mean_shift_adds_the_mean_color_of_div2k_and_learns_nothing(sign: int) -> None:
    shift = MeanShift(sign)
    image = torch.rand(2, 3, 4, 5)
    # EDSR's and the official code's rgb_mean, to four digits.
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
    torch.testing.assert_close(shift(image), image + sign * mean, rtol=0, atol=2**-23)
    assert not any(parameter.requires_grad for parameter in shift.parameters())


def test_the_attention_block_adds_its_scaled_attention_to_its_input() -> None:
    torch.manual_seed(0)
    features = torch.rand(2, 6, 4, 5)
    block = HighSimilarityPassAttention(6)
    attended = high_similarity_pass_attention(
        block.conv_match1(features), block.conv_match2(features), block.conv_assembly(features)
    )
    assert attended.abs().max() > 0
    torch.testing.assert_close(block(features), features + attended)
    for res_scale in (0.0, 0.5):
        block.res_scale = res_scale
        torch.testing.assert_close(block(features), features + res_scale * attended)


@pytest.mark.parametrize(("channels", "reduction", "queries"), [(6, 1, 6), (6, 4, 1), (6, 6, 1), (7, 3, 2)])
def test_query_and_key_have_a_fraction_of_the_channels(channels: int, reduction: int, queries: int) -> None:
    block = HighSimilarityPassAttention(channels, reduction=reduction, res_scale=1.0)
    shapes = {name: tuple(weight.shape) for name, weight in block.named_parameters() if weight.ndim == 4}
    assert shapes == {
        "conv_match1.0.weight": (queries, channels, 1, 1),
        "conv_match2.0.weight": (queries, channels, 1, 1),
        "conv_assembly.0.weight": (channels, channels, 1, 1),
    }


def test_a_block_has_two_channels_to_a_query_and_its_attention_whole() -> None:
    block = HighSimilarityPassAttention(8)
    assert (tuple(block.conv_match1[0].weight.shape), block.res_scale) == ((4, 8, 1, 1), 1.0)


@pytest.mark.parametrize(("channels", "reduction"), [(2, 3), (6, 0), (6, -1)])
def test_a_block_without_query_channels_is_refused(channels: int, reduction: int) -> None:
    with pytest.raises(ValueError, match=f"^{channels} channels with reduction {reduction} leave no query"):
        HighSimilarityPassAttention(channels, reduction=reduction)


def test_residual_blocks_and_modules_add_to_their_input() -> None:
    torch.manual_seed(0)
    features = torch.rand(1, 4, 5, 6)
    block = ResidualBlock(4)
    torch.testing.assert_close(block(features), features + block.body(features))
    config = HspanConfig(n_feats=4, n_groups=1, n_blocks=2, scale=2, reduction=4, res_scale=0.3)
    module = AttentionModule(config)
    torch.testing.assert_close(module(features), features + 0.3 * module.body(features))
    assert [type(part) for part in module.body] == [
        ResidualBlock,
        ResidualBlock,
        HighSimilarityPassAttention,
        torch.nn.Conv2d,
    ]
    assert module.body[2].res_scale == 0.3
    assert module.body[2].conv_match1[0].out_channels == 1


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_a_network_has_the_official_keys_in_their_order_and_enlarges_by_its_scale(scale: int) -> None:
    config = HspanConfig(n_feats=6, n_groups=2, n_blocks=1, scale=scale, reduction=3)
    model = HSPAN(config)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert list(shapes.items()) == list(config.state_shapes().items())
    assert torch.equal(model.a, torch.zeros(1))
    torch.testing.assert_close(model.sub_mean.bias, -torch.tensor(DIV2K_MEAN))
    torch.testing.assert_close(model.add_mean.bias, torch.tensor(DIV2K_MEAN))
    with torch.no_grad():
        assert model(torch.rand(2, 3, 5, 6)).shape == (2, 3, 5 * scale, 6 * scale)
