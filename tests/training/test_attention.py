from __future__ import annotations

import pytest
import torch

from trt_hspan.model import HSPAN, HspanConfig
from trt_hspan.ops import high_similarity_pass_attention
from trt_hspan.training.attention import batched_attention, use_patch_attention


def _inputs(spread: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 4, 5, 7), (2, 4, 5, 7), (2, 6, 5, 7))
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).mul(spread).requires_grad_() for s in shapes
    ]


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.7, 3.0])
def test_batched_attention_and_its_gradients_are_those_of_the_operator(spread: float) -> None:
    inputs = _inputs(spread)
    ours, theirs = batched_attention(*inputs), high_similarity_pass_attention(*inputs)
    weight = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    gradients = torch.autograd.grad((ours * weight).sum(), inputs)
    expected = torch.autograd.grad((theirs * weight).sum(), inputs)
    # Both are exact up to rounding of sums of at most L = 35 float64 terms of size spread^2 * 10.
    tolerance = 35 * 2.0**-52 * (1 + 10 * spread**2) * 10
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=0, atol=10 * tolerance)


def test_gradients_agree_with_finite_differences() -> None:
    small = tuple(tensor.detach()[:1, :2, :2, :3].clone().requires_grad_() for tensor in _inputs(0.7))
    assert torch.autograd.gradcheck(batched_attention, small)


def test_compiled_passes_give_what_the_interpreted_ones_give() -> None:
    inputs = [tensor.detach().float().requires_grad_() for tensor in _inputs(1.5)]
    outputs = [batched_attention(*inputs, compiled=compiled) for compiled in (False, True)]
    gradients = [torch.autograd.grad(output.square().sum(), inputs) for output in outputs]
    # float32: 2^-23 per sum of at most 35 terms, values up to about 10, squared in the gradient.
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=35 * 2.0**-23 * 10)
    for compiled, interpreted in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(compiled, interpreted, rtol=0, atol=35 * 2.0**-23 * 100)


def test_a_network_with_patch_attention_keeps_its_keys_and_its_function() -> None:
    torch.manual_seed(0)
    model = HSPAN(HspanConfig(n_feats=8, n_groups=2, n_blocks=1, scale=2, res_scale=1.0))
    image = torch.rand(2, 3, 9, 11)
    keys, before = list(model.state_dict()), model(image)
    use_patch_attention(model, compiled=False)
    assert list(model.state_dict()) == keys
    # A dozen layers of sums of 72 float32 products below 1.
    torch.testing.assert_close(model(image), before, rtol=0, atol=12 * 72 * 2.0**-24)
