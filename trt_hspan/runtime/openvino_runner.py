"""An ONNX file on a CPU under OpenVINO, for speed: in the types that the processor computes in itself.

INT8 convolutions are multiplied in integers also where their result is added to something, from the very Q/DQ graph
that engines are built from. Processors that saturate such sums compute them in FP32. BF16 is the processor's own where
it has it; FP16 and other BF16 networks are computed in FP32. So the result is close to an engine's and not equal to it:
what an engine computes is checked under ONNX Runtime (`trt_hspan.runtime.onnxruntime_runner`). Never imports torch.
"""

from __future__ import annotations

import importlib.util
import os

from trt_hspan.errors import HspanError
from trt_hspan.graph import base_precision_from_model
from trt_hspan.graph.cpu import model_with_stored_weights
from trt_hspan.machine.facts import sums_int8_exactly
from trt_hspan.native import cpu_attention
from trt_hspan.runtime.cpu_network import CpuNetwork
from trt_hspan.runtime.onnx_file_runner import OnnxFileRunner
from trt_hspan.runtime.openvino_session import Arithmetic, has_bf16, imported_openvino, openvino_network


def openvino_is_usable() -> bool:
    """Whether it is installed, and the native library without which it would meet the attention."""
    return importlib.util.find_spec("openvino") is not None and cpu_attention.native_library() is not None


class OpenVinoRunner(OnnxFileRunner):
    """Runs an ONNX file of this project on a CPU, as fast as its types allow.

    Args:
        path, threads: as `OnnxFileRunner` takes them.

    Raises:
        HspanError: as `OnnxFileRunner`; OpenVINO is not installed, or the native library of the attention is not there.
    """

    emulated = False
    # *Measured* with 2026.4: hspan-tiny-x4 in FP32 at 96x96, 128x160 and 192x224 pixels takes 3.8 to 4.0.
    upscaled_tensors = 4.0

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        self.name = f"OpenVINO {imported_openvino().__version__.split('-')[0]}"
        if cpu_attention.native_library() is None:
            raise HspanError(
                path,
                "OpenVINO cannot compute its attention, and there is no native library for it",
                "trt-hspan plugin build --cpu",
            )
        super().__init__(path, threads=threads)
        is_bf16 = base_precision_from_model(self._model) == "bf16" and has_bf16()
        self._arithmetic: Arithmetic = "bf16" if is_bf16 else "f32"

    @property
    def label(self) -> str:
        is_integer = self.precision == "int8" and sums_int8_exactly()
        is_native = is_integer or self.precision == "fp32" or self._arithmetic == "bf16"
        return super().label if is_native else f"{super().label} computed in FP32"

    def _loaded(self) -> CpuNetwork:
        model = self._model if sums_int8_exactly() else model_with_stored_weights(self._model)
        return openvino_network(model, self.where, arithmetic=self._arithmetic, threads=self._threads)
