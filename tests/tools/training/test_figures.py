from __future__ import annotations

import numpy as np
import pytest
import torch
from support.synthetic_pictures import pairs, picture

from tools.training.attention_kinds import with_softmax_attention, without_attention
from tools.training.data import upscaled_pixels
from tools.training.figures import attention_samples, attention_weights, bicubic_pixels, qualities
from trt_hspan import HSPAN, HighSimilarityPassAttention, HspanConfig
from trt_hspan.evaluation.metrics import psnr_y

CONFIG = HspanConfig(n_feats=8, n_groups=2, n_blocks=1, scale=2, res_scale=1.0)


def _model() -> HSPAN:
    torch.manual_seed(0)
    return HSPAN(CONFIG).eval()


def test_without_attention_is_the_network_whose_values_are_zero() -> None:
    model = _model()
    plain = without_attention(model)
    zeroed = _model()
    with torch.no_grad():
        for group in range(2):
            convolution = zeroed.get_submodule(f"body.{group}.body.1.conv_assembly.0")
            for parameter in convolution.parameters():
                parameter.zero_()
        image = torch.rand(1, 3, 8, 9)
        assert torch.equal(plain(image), zeroed(image))
        assert not torch.equal(plain(image), model(image))


def test_softmax_attention_is_softmax_of_the_unscaled_scores() -> None:
    model = _model()
    block = with_softmax_attention(model).get_submodule("body.0.body.1")
    stock = model.get_submodule("body.0.body.1")
    assert isinstance(stock, HighSimilarityPassAttention)
    with torch.no_grad():
        features = torch.randn(2, 8, 5, 7)
        parts = (stock.conv_match1, stock.conv_match2, stock.conv_assembly)
        query, key, value = (part(features).flatten(2).double() for part in parts)
        weights = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        expected = (value @ weights.transpose(1, 2)).reshape(features.shape) * stock.res_scale + features
        # 35 positions, 4 channels: about 40 float32 roundings, each relative to numbers of order 10.
        torch.testing.assert_close(block(features).double(), expected, rtol=0, atol=40 * 10 * 2.0**-24)
        assert not torch.equal(block(features), stock(features))


def test_qualities_compare_four_results_with_the_same_truth() -> None:
    model, (pair, *_) = _model(), pairs(2)
    (quality,) = qualities(model, [pair])
    assert quality.name == "synthetic0"
    assert quality.network_psnr_db == psnr_y(upscaled_pixels(model, pair.low), pair.high, 2)
    assert quality.bicubic_psnr_db == psnr_y(bicubic_pixels(pair.low, 2), pair.high, 2)
    plain = upscaled_pixels(without_attention(model), pair.low)
    assert quality.without_attention_psnr_db == psnr_y(plain, pair.high, 2)
    softmax = upscaled_pixels(with_softmax_attention(model), pair.low)
    assert quality.softmax_psnr_db == psnr_y(softmax, pair.high, 2)
    # A picture made of discs is easy for bicubic and hopeless for an untrained network.
    assert quality.bicubic_psnr_db > quality.network_psnr_db + 10
    assert quality.bicubic_ssim > quality.network_ssim


def test_attention_samples_count_the_support_of_each_row() -> None:
    model, low = _model(), picture(12, 10, seed=0)
    samples = attention_samples(model, "picture", low, rows=50, seed=0)
    assert [(sample.picture, sample.block, sample.positions) for sample in samples] == [
        ("picture", 0, 120),
        ("picture", 1, 120),
    ]
    for sample in samples:
        assert len(sample.support) == len(sample.score_range) == len(sample.score_maximum) == 50
        assert sample.support.min() >= 1
        assert sample.support.max() <= 120
        # A row whose scores span less than 1 / L keeps every position; one that spans more than 1 loses some.
        assert (sample.support[sample.score_range < 1 / 120] == 120).all()
        assert (sample.support[sample.score_range > 1] < 120).all()


def test_a_flat_picture_gives_full_support_inside_and_no_score_range() -> None:
    model = _model()
    with torch.no_grad():  # one-pixel kernels only, so that zero padding cannot break the flatness
        for name, parameter in model.named_parameters():
            if parameter.dim() == 4 and parameter.shape[-1] == 3:
                middle = parameter[..., 1:2, 1:2].clone()
                parameter.zero_()
                parameter[..., 1:2, 1:2] = middle
                assert "mean" not in name
    for sample in attention_samples(model, "flat", np.full((6, 7, 3), 90, np.uint8), rows=42, seed=0):
        assert sample.support.tolist() == [42] * 42
        # Equal features up to the rounding of 8 products.
        assert float(sample.score_range.max()) <= 8 * 2.0**-23 * (1 + float(sample.score_maximum.max()))


def test_rows_are_drawn_without_replacement_and_by_seed() -> None:
    model, low = _model(), picture(12, 10, seed=0)
    first, again, other = (attention_samples(model, "p", low, rows=40, seed=seed)[0] for seed in (1, 1, 2))
    whole = attention_samples(model, "p", low, rows=1000, seed=1)[0]
    assert np.array_equal(first.score_maximum, again.score_maximum)
    assert not np.array_equal(first.score_maximum, other.score_maximum)
    assert len(whole.support) == 120


def test_softmax_of_the_same_scores_keeps_every_position() -> None:
    model, low = _model(), picture(12, 10, seed=0)
    for block, sample in enumerate(attention_samples(model, "p", low, rows=1000, seed=0)):
        order = np.random.default_rng(0).permutation(120)
        for row in (0, 7, 119):
            position = divmod(int(order[row]), 10)
            sparse, softmax = attention_weights(model, low, block=block, position=position)
            # 120 terms, each rounded to float32.
            assert sparse.sum() == pytest.approx(1, abs=120 * 2**-24)
            assert softmax.sum() == pytest.approx(1, abs=120 * 2**-24)
            assert np.count_nonzero(softmax) == 120
            assert np.count_nonzero(sparse) == sample.support[row]
            assert softmax.argmax() == sparse.argmax()
            assert sample.softmax_smallest[row] == pytest.approx(softmax.min() * 120, rel=1e-4)
            assert sample.softmax_outside[row] == pytest.approx(softmax[sparse == 0].sum(), abs=1e-5)
            most = np.sort(softmax.flatten())[::-1][: sample.softmax_most[row]]
            assert most[:-1].sum() < 0.99 + 1e-5
            assert most.sum() > 0.99 - 1e-5
