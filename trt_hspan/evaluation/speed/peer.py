"""The peer of a benchmark: the same network in eager PyTorch, without any kernel of this project. Imports torch."""

from __future__ import annotations

import os
from unittest.mock import patch

import torch

from trt_hspan.model import hspan
from trt_hspan.ops.attention import reference_attention
from trt_hspan.runtime.runner import Float32Array
from trt_hspan.runtime.torch_runner import TorchRunner


class EagerRunner(TorchRunner):
    """A checkpoint in float32 whose attention is PyTorch's tensor operations, on CUDA where PyTorch has it."""

    def __init__(
        self, checkpoint: str | os.PathLike[str], *, res_scale: float | None, threads: int | None = None
    ) -> None:
        gpu = 0 if torch.cuda.is_available() else None
        super().__init__(checkpoint, res_scale=res_scale, threads=threads, gpu=gpu)
        self.name += " eager"

    def infer(self, batch: Float32Array) -> Float32Array:
        # The blocks look their operator up in their module at each call.
        with patch.object(hspan, "high_similarity_pass_attention", reference_attention):
            return super().infer(batch)
