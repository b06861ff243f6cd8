"""The peer of a benchmark: the same network in eager PyTorch, without any kernel of this project."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trt_hspan.runtime.runner import Float32Array

if TYPE_CHECKING:
    import torch


@contextmanager
def eager_reference(
    checkpoint: str | os.PathLike[str], *, res_scale: float, threads: int | None
) -> Iterator[tuple[str, Callable[[Float32Array], Float32Array]]]:
    """Yields the peer's name and its run: (N, 3, H, W) -> (N, 3, sH, sW) float32.

    The attention is PyTorch's tensor operations (`trt_hspan.ops.attention.reference_attention`). On CUDA where PyTorch
    has it, copies included and FP32 never TF32, else on the CPU.
    """
    import torch

    from trt_hspan.model.checkpoint import load_model
    from trt_hspan.ops.attention import reference_attention

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(checkpoint, res_scale=res_scale).to(device)
    name = f"PyTorch {torch.__version__.split('+')[0]} eager, FP32, {device}"

    def run(batch: Float32Array) -> Float32Array:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            output: torch.Tensor = model(torch.from_numpy(batch).to(device))
            result: Float32Array = output.cpu().numpy()
        return result

    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with _replaced_attention(reference_attention):
            yield name, run
    finally:
        torch.set_num_threads(before)


@contextmanager
def _replaced_attention(attention: Callable[..., torch.Tensor]) -> Iterator[None]:
    """The blocks look their operator up in their module at each call."""
    module: Any = importlib.import_module("trt_hspan.model.hspan")
    own = module.high_similarity_pass_attention
    module.high_similarity_pass_attention = attention
    try:
        yield
    finally:
        module.high_similarity_pass_attention = own
