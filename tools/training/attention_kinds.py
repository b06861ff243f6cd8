"""The same network with other attention in place of HSPA: none, softmax, softmax over regions drawn at random."""

from __future__ import annotations

import copy
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trt_hspan.model.hspan import HSPAN, HighSimilarityPassAttention

#: Side of a region in positions, and the share of a picture's regions that are drawn.
REGION_SIDE: Final = 8
REGION_SHARE: Final = 0.25


def attention_blocks(model: HSPAN) -> list[HighSimilarityPassAttention]:
    """In the order in which they compute."""
    return [module for module in model.modules() if isinstance(module, HighSimilarityPassAttention)]


def without_attention(model: HSPAN) -> HSPAN:
    """A copy whose attention blocks add nothing to their input."""
    changed = copy.deepcopy(model)
    for group in range(changed.config.n_groups):
        body = changed.get_submodule(f"body.{group}.body")
        assert isinstance(body, nn.Sequential)
        body[changed.config.n_blocks] = nn.Identity()
    return changed


def with_softmax_attention(model: HSPAN) -> HSPAN:
    """A copy whose attention blocks weigh by softmax instead of sparsemax, with the same parameters."""
    return _with_blocks(model, _SoftmaxAttention)


def with_random_regions(model: HSPAN) -> HSPAN:
    """A copy whose attention blocks weigh by softmax, over the positions of regions that each run draws at random.

    A region is a square of `REGION_SIDE` positions, less at the right and the bottom. A run draws `REGION_SHARE` of
    them, the same for all queries of its batch. What is drawn follows from the number of runs so far, which is in the
    state dict as `draws`.
    """
    changed = _with_blocks(model, _RandomRegionAttention)
    for block in attention_blocks(changed):
        block.register_buffer("draws", torch.zeros((), dtype=torch.int64))
    return changed


def _with_blocks(model: HSPAN, kind: type[HighSimilarityPassAttention]) -> HSPAN:
    changed = copy.deepcopy(model)
    for block in attention_blocks(changed):
        block.__class__ = kind
    return changed


class _SoftmaxAttention(HighSimilarityPassAttention):
    """The attention block with softmax in place of sparsemax; same parameters."""

    def forward(self, features: Tensor) -> Tensor:
        parts = (self.conv_match1, self.conv_match2, self.conv_assembly)
        query, key, value = (part(features).flatten(2).transpose(1, 2)[:, None] for part in parts)
        taken = self._positions(*features.shape[2:])
        if taken is not None:
            key, value = key[:, :, taken], value[:, :, taken]
        # Zero channels change no score, and sizes that agree let PyTorch keep the L x L weights in tiles.
        missing = (0, value.shape[-1] - query.shape[-1])
        attended = F.scaled_dot_product_attention(
            F.pad(query, missing), F.pad(key, missing), value, scale=1.0
        )
        return attended[:, 0].transpose(1, 2).reshape(features.shape) * self.res_scale + features

    def _positions(self, height: int, width: int) -> Tensor | None:
        """Those that get a weight; None is all."""
        return None


class _RandomRegionAttention(_SoftmaxAttention):
    draws: Tensor

    def _positions(self, height: int, width: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(self.draws))
        self.draws += 1
        columns = -(-width // REGION_SIDE)
        regions = (torch.arange(height) // REGION_SIDE * columns)[:, None] + torch.arange(
            width
        ) // REGION_SIDE
        count = int(regions[-1, -1]) + 1
        drawn = torch.randperm(count, generator=generator)[: max(1, round(count * REGION_SHARE))]
        return torch.isin(regions.flatten(), drawn).nonzero()[:, 0]
