"""The quality of a trained network: held-out PSNR-Y and SSIM, the same with softmax attention, and its sparsity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """

    picture: str
    block: int
    positions: int
    support: npt.NDArray[np.int64]
    score_range: Float32Array
    score_maximum: Float32Array


def attention_samples(model: HSPAN, name: str, low: Pixels, *, rows: int, seed: int) -> list[AttentionSample]:
    """One sample per attention block, of the network's own features on the picture.

    Args:
        name: of the picture.
        low: (h, w, 3) uint8; every row attends to all h * w positions.
        rows: query positions to look at, drawn without replacement.
        seed: of the drawing.
    """
    samples: list[AttentionSample] = []
    handles = []

    def watch(block: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(module, HighSimilarityPassAttention)
            samples.append(_sample(module, inputs[0], name, block, rows=rows, seed=seed))

        return look

    for block, module in enumerate(attention_blocks(model)):
        handles.append(module.register_forward_pre_hook(watch(block)))
    try:
        with torch.no_grad():
            model(tensor_from_pixels(low))
    finally:
        for handle in handles:
            handle.remove()
    return samples


def _sample(
    module: HighSimilarityPassAttention, features: Tensor, name: str, block: int, *, rows: int, seed: int
) -> AttentionSample:
    query, key = (
        conv(features)[0].flatten(1).transpose(0, 1) for conv in (module.conv_match1, module.conv_match2)
    )
    length = key.shape[0]
    chosen = np.random.default_rng(seed).permutation(length)[:rows]
    support, spread, maximum = [], [], []
    for part in np.array_split(chosen, max(1, len(chosen) * length // 4_000_000)):
        scores = query[torch.from_numpy(part)] @ key.transpose(0, 1)
        top = scores.amax(-1, keepdim=True)
        spread.append((top - scores.amin(-1, keepdim=True))[:, 0])
        maximum.append(top[:, 0])
        scores -= top
        support.append((scores > sparsemax_threshold(scores)).sum(-1))
    return AttentionSample(
        name,
        block,
        length,
        torch.cat(support).numpy(),
        torch.cat(spread).numpy(),
        torch.cat(maximum).numpy(),
    )
