"""The network in PyTorch. In float32 on a CPU it is the reference that everything else is measured against."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, cast

from trt_hspan.errors import HspanError, OutOfMemoryError, UsageError
from trt_hspan.runtime.runner import CHANNELS, Float32Array, Runner, RunnerPrecision, is_for_one_thread

if TYPE_CHECKING:
    import torch
    from torch import nn

_PRECISIONS: Final = {"cpu": ("fp32", "bf16"), "gpu": ("fp32", "fp16", "bf16")}
# Tensors of the upscaled features that a run keeps. *Measured* with hspan-tiny-x4 at 128x160 pixels: 3.1.
UPSCALED_TENSORS: Final = 3


class TorchRunner(Runner):
    """Runs a checkpoint, a preset or a module in PyTorch.

    Args:
        network: as `trt_hspan.load_model` takes it, or a module, of which a copy in float32 runs.
        res_scale: factor on each attention and module; checkpoints do not store it.
        threads: CPU threads; None takes PyTorch's own choice.
        precision: "fp32", "bf16", on a GPU also "fp16". The short types compute convolutions and attention from such
            numbers, sums in float32, and keep what is added to the features in float32. On CPUs BF16 is faster only
            where the processor has its instructions.
        gpu: which GPU in CUDA's order; None is the CPU. FP32 is never TF32 there.

    Raises:
        HspanError: as `load_model`, BF16 on a processor or GPU without its instructions, a PyTorch that cannot use the
            GPU. The checkpoint is read here and not on entry, so that a bad one is an early error.
        UsageError: as `load_model`, or another precision.
    """

    def __init__(
        self,
        network: str | os.PathLike[str] | nn.Module,
        *,
        res_scale: float | None = None,
        threads: int | None = None,
        precision: str = "fp32",
        gpu: int | None = None,
    ) -> None:
        import torch

        from trt_hspan.model.checkpoint import load_model, source_sha256
        from trt_hspan.model.hspan import HSPAN

        self.where = type(network).__name__ if isinstance(network, torch.nn.Module) else os.fspath(network)
        self.name = f"PyTorch {torch.__version__.split('+')[0]}"
        kind = "cpu" if gpu is None else "gpu"
        if precision not in _PRECISIONS[kind]:
            runs = "a CPU runs fp32 or bf16" if gpu is None else "a GPU runs fp32, fp16 or bf16"
            raise UsageError("--precision", f"got {precision!r}, PyTorch on {runs}")
        self._device = torch.device("cpu") if gpu is None else gpu_device(gpu, self.where)
        if gpu is not None:
            self.name += " on the GPU" + (f" {gpu}" if gpu else "")
        if precision == "bf16" and not has_bf16_instructions(self._device):
            raise HspanError(
                self.where,
                f"--precision bf16: this {'processor' if gpu is None else 'GPU'} has no BF16 instructions and would "
                "take many times as long",
                "leave it out" if gpu is None else "take --precision fp16",
            )
        self.precision = cast(RunnerPrecision, precision)
        self._low = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
        self.on_gpu = gpu is not None
        self.emulated = False
        self._model: nn.Module
        if isinstance(network, torch.nn.Module):
            self._describe(network)
        else:
            self._model = hspan = load_model(network, res_scale=res_scale)
            self.scale, self.res_scale = hspan.config.scale, hspan.config.res_scale
            self.source_sha256 = source_sha256(network)
        self._features = _upscaled_features(self._model)
        if self._low is not None and isinstance(self._model, HSPAN):
            # Mean shifts, the first and the last convolution see colors, and are cheap.
            for module in (self._model.sub_mean, self._model.head, self._model.tail[1], self._model.add_mean):
                _keep_in_float32(module, self._device.type)
        self._macs_per_pixel = sum(parameter.numel() for parameter in self._model.parameters())
        self._threads = threads
        self._threads_before = torch.get_num_threads()

    def activate(self) -> None:
        import torch

        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self._threads or self._threads_before)
        with self._translate_cuda_errors():
            self._model.to(self._device)

    def deactivate(self) -> None:
        import torch

        torch.set_num_threads(self._threads_before)
        with suppress(RuntimeError):  # after an error of CUDA's there is nothing left to save
            self._model.to("cpu")

    def infer(self, batch: Float32Array) -> Float32Array:
        import torch

        alone = is_for_one_thread(batch.shape, self._macs_per_pixel)
        torch.set_num_threads(1 if alone else self._threads or self._threads_before)
        # Convolutions take short copies of their inputs and weights; sums with float32 features stay float32.
        low = torch.autocast(self._device.type, self._low, enabled=self._low is not None)
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.inference_mode(), low, exact, self._translate_cuda_errors():
            output: Float32Array = self._model(torch.from_numpy(batch).to(self._device)).float().cpu().numpy()
        return output

    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """`UPSCALED_TENSORS` of (N, features, scale * H, scale * W) float32. Attention never keeps all scores.

        On a GPU input and result alone are in main memory.
        """
        n, _, height, width = shape
        if self.on_gpu:
            return 4 * n * CHANNELS * height * width * (1 + self.scale**2)
        return UPSCALED_TENSORS * 4 * n * self._features * height * width * self.scale**2

    def _describe(self, module: nn.Module) -> None:
        from trt_hspan.export.module_runs import taken_by_module, unwrapped
        from trt_hspan.graph import OnnxMetadata
        from trt_hspan.runtime.onnxruntime_session import scale_of

        self._model = copy.deepcopy(unwrapped(module)).to("cpu").float().eval()
        taken = taken_by_module(self._model, CHANNELS)
        self.scale = scale_of(taken.recorded_in(OnnxMetadata()), self.where)
        self.size_multiple, self.min_size = taken.size_multiple, taken.min_size

    @contextmanager
    def _translate_cuda_errors(self) -> Iterator[None]:
        """Errors of CUDA in PyTorch, of which each has a way out of its own; on a CPU there are none."""
        import torch

        try:
            yield
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                self.where, f"the GPU has not enough memory: {_first_sentence(error)}", "give smaller tiles"
            ) from error
        except RuntimeError as error:
            if not self.on_gpu:
                raise
            raise HspanError(
                self.where, f"{self.name} failed: {_first_sentence(error)}", "take --device cpu"
            ) from error


def gpu_device(index: int, where: str) -> torch.device:
    """PyTorch's device for a GPU in CUDA's order.

    Raises:
        HspanError: this PyTorch has no CUDA, finds no GPU or driver, or not so many GPUs.
    """
    import torch

    option = "--device gpu" + (f":{index}" if index else "")
    other = f"take --device cpu, or build an engine: trt-hspan build --checkpoint {where}"
    if torch.version.cuda is None:
        raise HspanError(
            where,
            f"{option}: PyTorch {torch.__version__} is a build without CUDA",
            f"install one with CUDA (pytorch.org), {other}",
        )
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise HspanError(
            where,
            f"{option}: PyTorch finds no GPU: {_first_sentence(error)}",
            f"see trt-hspan doctor, {other}",
        ) from error
    count = torch.cuda.device_count()
    if index >= count:
        raise HspanError(where, f"{option}: there is no GPU {index} here, PyTorch finds {count}", other)
    return torch.device("cuda", index)


def _first_sentence(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0].split(". ", 1)[0].rstrip(".")


def _upscaled_features(model: nn.Module) -> int:
    """Input channels of the last convolution with a neighborhood, which sees the upscaled features."""
    import torch

    convolutions = [each for each in model.modules() if isinstance(each, torch.nn.Conv2d)]
    channels = (each.in_channels for each in reversed(convolutions) if each.kernel_size != (1, 1))
    return next(channels, CHANNELS)


def _keep_in_float32(module: nn.Module, device_type: str) -> None:
    """The module computes in float32 whatever surrounds it."""
    import torch

    forward = module.forward

    def in_float32(features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device_type, enabled=False):
            result: torch.Tensor = forward(features.float())
        return result

    module.forward = in_float32


def has_bf16_instructions(device: torch.device) -> bool:
    """AVX-512 BF16 on x86-64, compute capability 8.0 on GPUs; elsewhere PyTorch's own kernels use what there is."""
    import platform

    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return platform.machine() != "x86_64" or bool(torch.cpu._is_avx512_bf16_supported())
