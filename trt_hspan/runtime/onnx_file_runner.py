"""What runners of ONNX files on a CPU share: what the file says of its network, and the memory of a run."""

from __future__ import annotations

import abc
import os
from typing import ClassVar, Final

import onnx

from trt_hspan.errors import HspanError
from trt_hspan.graph import (
    INPUT_NAME,
    OUTPUT_NAME,
    image_input,
    load_onnx,
    model_inputs,
    precision_from_model,
    require_attention,
)
from trt_hspan.native import cpu_attention
from trt_hspan.runtime.cpu_network import CpuNetwork
from trt_hspan.runtime.onnxruntime_session import described, scale_of
from trt_hspan.runtime.runner import CHANNELS, Float32Array, Runner

# Tensors of L x L float32 that the function body keeps alive at a time, per picture. *Measured* peaks with
# ONNX Runtime 1.32 at 64x64 to 128x128 pixels: 3.0 to 3.7.
SCORE_TENSORS: Final = 3.5

# With the native attention: tensors of the upscaled features, which are the largest. *Measured* peaks of
# hspan-tiny-x4 at 128x160 pixels, FP32 and emulated FP16: 3.1 and 3.0.
UPSCALED_TENSORS: Final = 3


class OnnxFileRunner(Runner):
    """Runs an ONNX file of this project on a CPU.

    Args:
        path: the `.onnx` file.
        threads: CPU threads; None takes those that the process may use, at most OMP_NUM_THREADS.

    Raises:
        HspanError: missing, not ONNX, truncated, without the attention operator, or with other inputs and
            outputs than this project's. All this is checked here and not on entry, so that a bad file is an early
            error.
    """

    upscaled_tensors: ClassVar[float] = UPSCALED_TENSORS

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        self.where = os.fspath(path)
        self._model = load_onnx(path)
        require_attention(self._model, self.where)
        self.fixed_shape = _fixed_input_shape(self._model, self.where)
        metadata = described(self._model, self.where)
        self.precision = precision_from_model(self._model)
        self.scale = scale_of(metadata, self.where)
        self.size_multiple, self.min_size = metadata.size_multiple or 1, metadata.min_size or 1
        self.res_scale = metadata.res_scale
        self.source_sha256 = metadata.source_sha256
        self._features = _features_before_output(self._model)
        self._threads = threads
        self._network: CpuNetwork | None = None

    @abc.abstractmethod
    def _loaded(self) -> CpuNetwork:
        """The network in the library that computes it."""

    def activate(self) -> None:
        self._network = self._loaded()

    def deactivate(self) -> None:
        self._network = None

    def infer(self, batch: Float32Array) -> Float32Array:
        if self._network is None:
            raise RuntimeError("the runner is not active: use it in a `with` block")
        return self._network.run(batch)

    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """With the native library `upscaled_tensors` of (N, features, scale * H, scale * W) float32; else the score
        tensors of the function body, `SCORE_TENSORS` of (N, L, L) float32 with L = H * W."""
        n, _, height, width = shape
        if cpu_attention.native_library() is None:
            return int(SCORE_TENSORS * 4 * n * (height * width) ** 2)
        return int(self.upscaled_tensors * 4 * n * self._features * height * width * self.scale**2)


def _features_before_output(model: onnx.ModelProto) -> int:
    """Input channels of the last convolution, which sees the upscaled features; 0 where there is none."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv" and node.input[1] in weights]
    sizes = [weights[node.input[1]].dims for node in convolutions]
    return next((int(size[1]) for size in reversed(sizes) if size[2:] != [1, 1]), 0)


def _fixed_input_shape(model: onnx.ModelProto, where: str) -> tuple[int | None, ...]:
    """The input's dimensions, None where free. Raises: HspanError when the file's interface is not ours."""
    names = [value.name for value in model_inputs(model)], [value.name for value in model.graph.output]
    if names != ([INPUT_NAME], [OUTPUT_NAME]):
        raise HspanError(
            where,
            f"its inputs are {names[0]} and its outputs {names[1]}, expected {INPUT_NAME!r} and {OUTPUT_NAME!r}",
            "export it with trt-hspan export",
        )
    for value in (*model_inputs(model), model.graph.output[0]):
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise HspanError(where, f"its {value.name} is not float32", "export it with trt-hspan export")
    shape = image_input(model, where).shape
    if shape[1] not in (None, CHANNELS):
        raise HspanError(
            where,
            f"its input has {shape[1]} channels, expected (N, 3, H, W)",
            "give a network that takes RGB pictures",
        )
    return (shape[0], CHANNELS, shape[2], shape[3])
