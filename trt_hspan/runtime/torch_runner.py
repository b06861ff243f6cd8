"""The network in PyTorch on the CPU. In float32 it is the reference that everything else is measured against."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, Literal, cast, get_args

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.runtime.runner import Float32Array, Runner

if TYPE_CHECKING:
    from torch import nn

TorchPrecision = Literal["fp32", "bf16"]
# Tensors of the upscaled features that a run keeps. *Measured* with hspan-tiny-x4 at 128x160 pixels: 3.1.
UPSCALED_TENSORS: Final = 3


class TorchRunner(Runner):
    """Runs a checkpoint or a preset in PyTorch.

    Args:
        checkpoint: as `trt_hspan.load_model` takes it.
        res_scale: factor on each attention and module; checkpoints do not store it.
        threads: CPU threads; None takes PyTorch's own choice.
        precision: "fp32" or "bf16". The latter computes convolutions and attention from BF16 numbers, sums in float32,
            and keeps what is added to the features in float32. Faster only on processors that have BF16 instructions.

    Raises:
        HspanError: as `load_model`, or BF16 on a processor without its instructions. The checkpoint is read here and
            not on entry, so that a bad one is an early error.
        UsageError: as `load_model`, or another precision.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        res_scale: float = 0.1,
        threads: int | None = None,
        precision: str = "fp32",
    ) -> None:
        import torch

        from trt_hspan.model.checkpoint import load_model, source_sha256

        self.where = os.fspath(checkpoint)
        self.name = f"PyTorch {torch.__version__.split('+')[0]}"
        if precision not in get_args(TorchPrecision):
            raise UsageError("--precision", f"got {precision!r}, PyTorch on a CPU runs fp32 or bf16")
        if precision == "bf16" and not has_bf16_instructions():
            raise HspanError(
                self.where,
                "--precision bf16: this processor has no BF16 instructions and would take hundreds of times as long",
                "leave it out",
            )
        self.precision = cast(TorchPrecision, precision)
        self.emulated = False
        self._model = load_model(checkpoint, res_scale=res_scale)
        if precision == "bf16":
            # Mean shifts, the first and the last convolution see colors, and are cheap.
            for module in (self._model.sub_mean, self._model.head, self._model.tail[1], self._model.add_mean):
                _keep_in_float32(module)
        self.scale = self._model.config.scale
        self.res_scale = res_scale
        self.source_sha256 = source_sha256(checkpoint)
        self._threads = threads
        self._threads_before = torch.get_num_threads()

    def activate(self) -> None:
        import torch

        self._threads_before = torch.get_num_threads()
        if self._threads is not None:
            torch.set_num_threads(self._threads)

    def deactivate(self) -> None:
        import torch

        torch.set_num_threads(self._threads_before)

    def infer(self, batch: Float32Array) -> Float32Array:
        import torch

        # Convolutions take BF16 copies of their inputs and weights; sums with float32 features stay float32.
        low: AbstractContextManager[object] = torch.autocast(
            "cpu", torch.bfloat16, enabled=self.precision == "bf16"
        )
        with torch.inference_mode(), low:
            output: Float32Array = self._model(torch.from_numpy(batch)).float().numpy()
        return output

    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """`UPSCALED_TENSORS` of (N, features, scale * H, scale * W) float32. Attention never keeps all scores."""
        n, _, height, width = shape
        config = self._model.config
        return UPSCALED_TENSORS * 4 * n * config.n_feats * height * width * config.scale**2


def _keep_in_float32(module: nn.Module) -> None:
    """The module computes in float32 whatever surrounds it."""
    import torch

    forward = module.forward

    def in_float32(features: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            result: torch.Tensor = forward(features.float())
        return result

    module.forward = in_float32


def has_bf16_instructions() -> bool:
    """AVX-512 BF16 on x86-64; on other processors PyTorch's own kernels decide, which use what there is."""
    import platform

    import torch

    if platform.machine() != "x86_64":
        return True
    return bool(torch.cpu._is_avx512_bf16_supported())
