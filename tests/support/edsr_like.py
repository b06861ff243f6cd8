"""A network of other authors' kind around the attention block."""

from __future__ import annotations

import torch

import trt_hspan


class EdsrLike(torch.nn.Module):
    """A small network of other authors' kind with the attention block in its middle."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.attention = trt_hspan.HighSimilarityPassAttention(8, reduction=4, res_scale=0.5)
        self.tail = torch.nn.Sequential(torch.nn.Conv2d(8, 4, 3, padding=1), torch.nn.PixelShuffle(2))

    def forward(self, gray: torch.Tensor) -> torch.Tensor:
        features = self.head(gray)
        upscaled: torch.Tensor = self.tail(torch.relu(self.attention(features)) + features)
        return upscaled
