"""The quality of a trained network: held-out PSNR-Y and SSIM, the same with softmax attention, and its sparsity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tools.training.attention_kinds import attention_blocks, with_softmax_attention, without_attention
from tools.training.data import Pair, Pixels, tensor_from_pixels, upscaled_pixels
from trt_hspan.evaluation.metrics import psnr_y, ssim_y
from trt_hspan.evaluation.resize import bicubic_pixels
from trt_hspan.model.hspan import HSPAN, HighSimilarityPassAttention
from trt_hspan.ops.attention import sparsemax_threshold

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One picture by the official protocol (8 bits, luma, borders of `scale` pixels left out), four ways."""

    name: str
    bicubic_psnr_db: float
    network_psnr_db: float
    without_attention_psnr_db: float
    softmax_psnr_db: float
    bicubic_ssim: float
    network_ssim: float


def qualities(model: HSPAN, pairs: list[Pair]) -> Iterator[Quality]:
    """Whole pictures, attention over all positions."""
    scale, plain, softmax = model.config.scale, without_attention(model), with_softmax_attention(model)
    for pair in pairs:
        bicubic, network = bicubic_pixels(pair.low, scale), upscaled_pixels(model, pair.low)
        yield Quality(
            name=pair.name,
            bicubic_psnr_db=psnr_y(bicubic, pair.high, scale),
            network_psnr_db=psnr_y(network, pair.high, scale),
            without_attention_psnr_db=psnr_y(upscaled_pixels(plain, pair.low), pair.high, scale),
            softmax_psnr_db=psnr_y(upscaled_pixels(softmax, pair.low), pair.high, scale),
            bicubic_ssim=ssim_y(bicubic, pair.high, scale),
            network_ssim=ssim_y(network, pair.high, scale),
        )


@dataclass(frozen=True)
class AttentionSample:
    """Rows of one block's attention on one picture.

    Attributes:
        picture: the picture's name.
        block: index of the attention block, from 0.
        positions: L, the length of a row.
        support: (rows,) positions with a weight above 0.
        score_range: (rows,) largest minus smallest score of the row.
        score_maximum: (rows,) largest score of the row.
        softmax_smallest: (rows,) the smallest weight that softmax would give, times L.
        softmax_most: (rows,) positions that hold 99 % of softmax's weight.
        softmax_outside: (rows,) softmax's weight outside the support.
    """

    picture: str
    block: int
    positions: int
    support: npt.NDArray[np.int64]
    score_range: Float32Array
    score_maximum: Float32Array
    softmax_smallest: Float32Array
    softmax_most: npt.NDArray[np.int64]
    softmax_outside: Float32Array


def attention_samples(model: HSPAN, name: str, low: Pixels, *, rows: int, seed: int) -> list[AttentionSample]:
    """One sample per attention block, of the network's own features on the picture.

    Args:
        name: of the picture.
        low: (h, w, 3) uint8; every row attends to all h * w positions.
        rows: query positions to look at, drawn without replacement.
        seed: of the drawing.
    """
    samples = []
    for block, (query, key) in enumerate(_queries_and_keys(model, low)):
        length = len(key)
        chosen = np.random.default_rng(seed).permutation(length)[:rows]
        parts = np.array_split(chosen, max(1, len(chosen) * length // 4_000_000))
        columns = zip(*(_row_figures(query[torch.from_numpy(part)] @ key.T) for part in parts), strict=True)
        samples.append(AttentionSample(name, block, length, *(torch.cat(c).numpy() for c in columns)))
    return samples


def attention_weights(
    model: HSPAN, low: Pixels, *, block: int, position: tuple[int, int]
) -> tuple[Float32Array, Float32Array]:
    """(h, w) twice: what one position of a picture takes from each, by sparsemax and by softmax of the same scores."""
    query, key = _queries_and_keys(model, low)[block]
    height, width = low.shape[:2]
    scores = query[position[0] * width + position[1]] @ key.T
    scores -= scores.max()
    sparse = (scores - sparsemax_threshold(scores[None])[0]).clamp_min(0)
    weights = [part.reshape(height, width).numpy() for part in (sparse, torch.softmax(scores, -1))]
    return weights[0], weights[1]


def _queries_and_keys(model: HSPAN, low: Pixels) -> list[tuple[Tensor, Tensor]]:
    """Of each attention block, (L, C) each."""
    pairs: list[tuple[Tensor, Tensor]] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, HighSimilarityPassAttention)
        parts = (module.conv_match1, module.conv_match2)
        query, key = (part(inputs[0])[0].flatten(1).T for part in parts)
        pairs.append((query, key))

    handles = [block.register_forward_pre_hook(look) for block in attention_blocks(model)]
    try:
        with torch.no_grad():
            model(tensor_from_pixels(low))
    finally:
        for handle in handles:
            handle.remove()
    return pairs


def _row_figures(scores: Tensor) -> tuple[Tensor, ...]:
    """Of (rows, L) scores, the figures of `AttentionSample` from `support` on."""
    top = scores.amax(-1, keepdim=True)
    spread = (top - scores.amin(-1, keepdim=True))[:, 0]
    shifted = scores - top
    is_kept = shifted > sparsemax_threshold(shifted)
    weights = torch.softmax(shifted.double(), -1)
    most = (weights.sort(-1, descending=True).values.cumsum(-1) < 0.99).sum(-1) + 1
    outside = weights.masked_fill(is_kept, 0).sum(-1)
    smallest = weights.amin(-1) * weights.shape[-1]
    return is_kept.sum(-1), spread, top[:, 0], smallest.float(), most, outside.float()
