"""An ONNX file on a CPU under ONNX Runtime: how an engine's arithmetic is checked where no GPU is.

What runs is `trt_hspan.graph.model_for_cpu`: FP16 and BF16 are emulated explicitly, because ONNX Runtime's
CPU provider drops the roundings of an FP16 graph (the figures stand there). *Measured* with 1.32 on six
convolutions of 16 channels, against the same layers in PyTorch with a rounding to FP16 after each: 3 values in
10,000 differ, by one rounding that falls the other way, at every optimization level; left to itself, ONNX
Runtime is as far from them as FP32 is. So graph optimizations, which change the order of sums only, stay on.

INT8 graphs are emulated in float32 as well, exactly.

The attention is computed by the native CPU library where there is one (`trt_hspan.runtime.cpu_network`): the
same float32 arithmetic as the function body's, without L x L tensors.

Never imports torch.
"""

from __future__ import annotations

import os

from trt_hspan.machine.onnx_runtime import imported_onnxruntime
from trt_hspan.runtime.cpu_network import CpuNetwork
from trt_hspan.runtime.onnx_file_runner import OnnxFileRunner
from trt_hspan.runtime.onnxruntime_session import cpu_network
from trt_hspan.runtime.runner import Shape


class OnnxRuntimeRunner(OnnxFileRunner):
    """Runs an ONNX file of this project on a CPU, in the arithmetic that the file says.

    Args:
        path, threads: as `OnnxFileRunner` takes them.
        stands_in_for: the engine that cannot run here, and why; for labels and errors.
        profiles: the smallest and largest (N, 3, H, W) of each of its profiles, which this keeps to.

    Raises:
        HspanError: as `OnnxFileRunner`; ONNX Runtime is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        stands_in_for: tuple[str | os.PathLike[str], str] | None = None,
        profiles: tuple[tuple[Shape, Shape], ...] = (),
    ) -> None:
        self.name = f"ONNX Runtime {imported_onnxruntime().__version__}"
        super().__init__(path, threads=threads)
        self.profiles = profiles
        self.emulated = stands_in_for is not None or self.precision != "fp32"
        if stands_in_for is not None:
            self.where, self.why_emulated = os.fspath(stands_in_for[0]), stands_in_for[1]

    def _loaded(self) -> CpuNetwork:
        return cpu_network(self._model, self.where, threads=self._threads)
