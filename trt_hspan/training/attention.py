"""Attention for training patches: the operator's mathematics, batched, its weights kept for the backward pass.

`trt_hspan.ops` never stores an L x L matrix and pays for it with a second computation. A training patch has
few positions (L = 1024 at 32x32), so the weights are stored here, and the Newton passes run compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trt_hspan.model.hspan import HighSimilarityPassAttention

_PASSES = 5


def _newton_passes(scores: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Newton steps towards the sparsemax threshold, as in `trt_hspan.ops.attention`; did the last one rise?"""
    rising = torch.zeros_like(tau, dtype=torch.bool)
    for _ in range(_PASSES):
        excess = (scores - tau).clamp_min(0)
        count = (excess > 0).to(scores.dtype).sum(-1, keepdim=True)
        risen = tau + (excess.sum(-1, keepdim=True) - 1) / count
        rising = risen > tau
        tau = torch.where(rising, risen, tau)
    return tau, rising.any()


def _score_gradient(weights: Tensor, gradient: Tensor) -> Tensor:
    """1_S (gradient - mean over S): the Jacobian of sparsemax (Martins & Astudillo 2016) times a vector."""
    support = (weights > 0).to(gradient.dtype)
    mean = (gradient * support).sum(-1, keepdim=True) / support.sum(-1, keepdim=True)
    return (gradient - mean) * support


_Loops = tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], Callable[[Tensor, Tensor], Tensor]]
_INTERPRETED: _Loops = (_newton_passes, _score_gradient)
# Nothing is compiled before the first call.
_COMPILED: _Loops = (
    torch.compile(_newton_passes, dynamic=False),
    torch.compile(_score_gradient, dynamic=False),
)


class _BatchedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, compiled: bool) -> Tensor:
        newton_passes, ctx.score_gradient = _COMPILED if compiled else _INTERPRETED
        scores = query @ key.transpose(1, 2)
        maximum = scores.amax(-1, keepdim=True)
        scores -= maximum
        tau, rising = newton_passes(scores, torch.full_like(maximum, -1.0))
        while bool(rising):
            tau, rising = newton_passes(scores, tau)
        weights = scores.sub_(tau).clamp_min_(0)
        ctx.save_for_backward(query, key, value, weights)
        return weights @ value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, weights = ctx.saved_tensors
        dscores = ctx.score_gradient(weights, gradient @ value.transpose(1, 2))
        dvalue = weights.transpose(1, 2) @ gradient
        return dscores @ key, dscores.transpose(1, 2) @ query, dvalue, None


def batched_attention(query: Tensor, key: Tensor, value: Tensor, *, compiled: bool = False) -> Tensor:
    """Exact sparsemax attention, memory O(N L^2), first derivatives only.

    Args:
        query: (N, C, H, W) float32 or float64; key alike; value: (N, D, H, W).
        compiled: run the elementwise passes through `torch.compile` (needs a C++ compiler).

    Returns:
        (N, D, H, W), what `high_similarity_pass_attention` returns, up to rounding.
    """
    q, k, v = (image.flatten(2).transpose(1, 2) for image in (query, key, value))
    attended: Tensor = _BatchedAttention.apply(q, k, v, compiled)  # type: ignore[no-untyped-call]
    return attended.transpose(1, 2).reshape(value.shape)


class PatchAttention(HighSimilarityPassAttention):
    """The attention block with `batched_attention` inside; same parameters, same function."""

    compiled: bool

    def forward(self, features: Tensor) -> Tensor:
        query, key = self.conv_match1(features), self.conv_match2(features)
        value = self.conv_assembly(features)
        return batched_attention(query, key, value, compiled=self.compiled) * self.res_scale + features


def use_patch_attention(model: nn.Module, *, compiled: bool) -> None:
    """Makes every attention block of the model compute as `PatchAttention` does; parameters are untouched."""
    for module in model.modules():
        if isinstance(module, HighSimilarityPassAttention):
            module.__class__ = PatchAttention
            assert isinstance(module, PatchAttention)
            module.compiled = compiled
