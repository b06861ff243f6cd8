"""The network in PyTorch, float32, on the CPU: the reference that everything else is measured against."""

from __future__ import annotations

import os

from trt_hspan.runtime.runner import Float32Array, Runner


class TorchRunner(Runner):
    """Runs a checkpoint or a preset in PyTorch.

    Args:
        checkpoint: as `trt_hspan.load_model` takes it.
        res_scale: factor on each attention and module; checkpoints do not store it.
        threads: CPU threads; None takes PyTorch's own choice.

    Raises:
        HspanError: as `load_model`. The checkpoint is read here and not on entry, so that a bad one is told
            early.
        UsageError: as `load_model`.
    """

    def __init__(
        self, checkpoint: str | os.PathLike[str], *, res_scale: float = 0.1, threads: int | None = None
    ) -> None:
        import torch

        from trt_hspan.model.checkpoint import load_model, source_sha256

        self.where = os.fspath(checkpoint)
        self.name = f"PyTorch {torch.__version__.split('+')[0]}"
        self.precision = "fp32"
        self.emulated = False
        self._model = load_model(checkpoint, res_scale=res_scale)
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

        with torch.inference_mode():
            output: Float32Array = self._model(torch.from_numpy(batch)).numpy()
        return output

    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """The up-sampler's largest two tensors. Attention works in chunks and never holds all scores."""
        n, _, height, width = shape
        config = self._model.config
        return 2 * 4 * n * config.n_feats * height * width * config.scale**2
