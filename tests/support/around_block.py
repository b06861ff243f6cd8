"""A network around some part and the attention block, and its export under ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

import trt_hspan


class Around(nn.Module):
    """A convolution, the part, the block, a convolution."""

    def __init__(self, part: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.part = nn.Conv2d(3, 8, 3, padding=1), part
        self.attention, self.tail = trt_hspan.HighSimilarityPassAttention(8), nn.Conv2d(8, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.tail(self.attention(self.part(self.head(image))))
        return result


def require_same(module: nn.Module, model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    image = torch.rand(shape)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(
            session.run(None, {"input": image.numpy()})[0], module(image).numpy(), atol=1e-4
        )
