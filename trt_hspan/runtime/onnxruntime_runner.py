"""An ONNX file on a CPU under ONNX Runtime: how an engine's arithmetic is checked where no GPU is.

What runs is `trt_hspan.graph.model_for_cpu`: FP16 and BF16 are emulated explicitly, because ONNX Runtime's
CPU provider drops the roundings of an FP16 graph (the figures stand there). *Measured* with 1.32 on six
convolutions of 16 channels, against the same layers in PyTorch with a rounding to FP16 after each: 3 values in
10,000 differ, by one rounding that falls the other way, at every optimization level; left to itself, ONNX
Runtime is as far from them as FP32 is. So graph optimizations, which change the order of sums only, stay on.

INT8 graphs are emulated in float32 as well, exactly. Asked for `integer_kernels`, what runs instead is
`trt_hspan.graph.integer_cpu`: for speed, and no longer to the bit what an engine computes.

The attention is computed by the native CPU library where there is one (`trt_hspan.runtime.onnxruntime_session`): the
same float32 arithmetic as the function body's, without L x L tensors.

Never imports torch.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final

from trt_hspan.errors import HspanError
from trt_hspan.runtime.runner import CHANNELS, Float32Array, Runner, Shape

if TYPE_CHECKING:
    import onnx

# Tensors of L x L float32 that the function body keeps alive at a time, per picture. *Measured* peaks with
# ONNX Runtime 1.32 at 64x64 to 128x128 pixels: 3.0 to 3.7.
SCORE_TENSORS: Final = 3.5

# With the native attention: tensors of the upscaled features, which are the largest. *Measured* peaks of
# hspan-tiny-x4 at 128x160 pixels, FP32 and emulated FP16: 3.1 and 3.0.
UPSCALED_TENSORS: Final = 3


# Of this process; not empty once the arena is registered.
_ARENA_IS_SHARED: Final[list[bool]] = []


class OnnxRuntimeRunner(Runner):
    """Runs an ONNX file of this project on a CPU.

    Args:
        path: the `.onnx` file.
        threads: CPU threads; None takes those that the process may use.
        stands_in_for: the engine that cannot run here, and why; for labels and errors.
        profiles: the smallest and largest (N, 3, H, W) of each of its profiles, which this keeps to.
        integer_kernels: INT8 convolutions in ONNX Runtime's integer kernels where they fit, instead of the exact
            emulation: single values differ by one quantization step. `emulated` is False then, `label` says how many.

    Attributes:
        integer_kernels: convolutions that run in integer kernels, and all in INT8; None when not asked for.

    Raises:
        HspanError: missing, not ONNX, truncated, without the attention operator, or with other inputs and
            outputs than this project's; integer kernels for what is not INT8 or where none fits. All this is checked
            here and not on entry, so that a bad file is told early.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        stands_in_for: tuple[str | os.PathLike[str], str] | None = None,
        profiles: tuple[tuple[Shape, Shape], ...] = (),
        integer_kernels: bool = False,
    ) -> None:
        from trt_hspan.graph import (
            load_onnx,
            metadata_from_model,
            precision_from_model,
            require_attention,
        )
        from trt_hspan.graph.integer_cpu import require_integer_kernels

        ort = imported_onnxruntime()
        self.where = os.fspath(path if stands_in_for is None else stands_in_for[0])
        self._model = load_onnx(path)
        require_attention(self._model, self.where)
        self.fixed_shape = _fixed_input_shape(self._model, self.where)
        metadata = metadata_from_model(self._model)
        self.name = f"ONNX Runtime {ort.__version__}"
        self.precision = precision_from_model(self._model)
        self.integer_kernels = require_integer_kernels(self._model, self.where) if integer_kernels else None
        self.profiles = profiles
        self.emulated = not integer_kernels
        self.why_emulated = None if stands_in_for is None else stands_in_for[1]
        self.scale = metadata.scale
        self.res_scale = metadata.res_scale
        self.source_sha256 = metadata.source_sha256
        self._features = _features_before_output(self._model)
        self._threads = threads or len(os.sched_getaffinity(0))
        self._session: Any = None

    @property
    def label(self) -> str:
        if self.integer_kernels is None:
            return super().label
        fitting, quantized = self.integer_kernels
        return f"{super().label}, integer kernels in {fitting} of {quantized} convolutions"

    def activate(self) -> None:
        from trt_hspan.graph import model_for_cpu
        from trt_hspan.graph.integer_cpu import model_with_integer_kernels
        from trt_hspan.native.cpu_attention import native_library
        from trt_hspan.runtime.onnxruntime_session import SplitSession, parts_from_model

        ort = imported_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what fails is raised as well
        # Sizes differ from picture to picture, so nothing is planned for one.
        options.enable_mem_pattern = False
        if self.integer_kernels is None:
            model = model_for_cpu(self._model)
        else:
            model, _ = model_with_integer_kernels(self._model)
        library = native_library()
        if library is not None:
            share_arena(options)

        def open_session(model: onnx.ModelProto) -> Any:
            return ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )

        try:
            if library is None:
                self._session = _WholeSession(open_session(model))
            else:
                parts = parts_from_model(model, self.where)
                self._session = SplitSession(parts, open_session, library, threads=self._threads)
        except onnxruntime_failures() as error:
            raise error_from_onnxruntime(self.where, "ONNX Runtime cannot load it", error) from error

    def deactivate(self) -> None:
        self._session = None

    def infer(self, batch: Float32Array) -> Float32Array:
        from trt_hspan.graph import INPUT_NAME, OUTPUT_NAME

        if self._session is None:
            raise RuntimeError("the runner is not active: use it in a `with` block")
        try:
            options = imported_onnxruntime().RunOptions()
            # Give buffers back after each picture, so that the next size does not come on top.
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
            output: Float32Array = self._session.run(OUTPUT_NAME, INPUT_NAME, batch, options)
        except onnxruntime_failures() as error:
            raise error_from_onnxruntime(self.where, "ONNX Runtime failed", error) from error
        return output

    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """With the native library `UPSCALED_TENSORS` of (N, features, scale * H, scale * W) float32; else the score
        tensors of the function body, `SCORE_TENSORS` of (N, L, L) float32 with L = H * W."""
        from trt_hspan.native.cpu_attention import native_library

        n, _, height, width = shape
        if native_library() is None:
            return int(SCORE_TENSORS * 4 * n * (height * width) ** 2)
        return int(UPSCALED_TENSORS * 4 * n * self._features * height * width * (self.scale or 1) ** 2)


class _WholeSession:
    """The whole graph in one session, attention by its function body."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, output: str, name: str, batch: Float32Array, run_options: Any) -> Float32Array:
        result: Float32Array = self._session.run([output], {name: batch}, run_options)[0]
        return result


def _features_before_output(model: onnx.ModelProto) -> int:
    """Input channels of the last convolution, which sees the upscaled features; 0 where there is none."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv" and node.input[1] in weights]
    sizes = [weights[node.input[1]].dims for node in convolutions]
    return next((int(size[1]) for size in reversed(sizes) if size[2:] != [1, 1]), 0)


def imported_onnxruntime() -> Any:
    """The package, imported when it is needed. Raises: HspanError when it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise HspanError("ONNX Runtime", "is not installed", "pip install 'trt-hspan[cpu]'") from error
    return onnxruntime


def share_arena(options: Any) -> None:
    """Lets a session take its memory from one arena that all sessions of the process share and that grows by what is
    asked for, instead of from an arena of its own that grows in powers of two.

    *Measured* with hspan-x4, cut into 11 sessions, at 96x96 pixels and two threads: peaks of 697 MB with an arena
    each, 460 MB without arenas, 368 MB with a shared one, at the same processor time.
    """
    if not _ARENA_IS_SHARED:
        ort = imported_onnxruntime()
        kind = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        as_requested, unlimited, default = 1, 0, -1
        # Another part of the program may have registered one: then it is shared as it is.
        with contextlib.suppress(*onnxruntime_failures()):
            ort.create_and_register_allocator(
                kind, ort.OrtArenaCfg(unlimited, as_requested, default, default)
            )
        _ARENA_IS_SHARED.append(True)
    options.add_session_config_entry("session.use_env_allocators", "1")


def onnxruntime_failures() -> tuple[type[BaseException], ...]:
    """What ONNX Runtime raises: a dozen classes of its own without a common base, and pybind11's."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (
        value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)
    )
    return (*own, RuntimeError, ValueError, MemoryError)


def error_from_onnxruntime(where: str, what: str, error: BaseException) -> HspanError:
    """One line for what ONNX Runtime raised; `where` and `what` begin it."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return HspanError(where, f"{what}: out of memory", "give a smaller picture")
    return HspanError(where, f"{what}: {text[:300]}", "export it again")


def _fixed_input_shape(model: onnx.ModelProto, where: str) -> tuple[int | None, ...]:
    """The input's dimensions, None where free. Raises: HspanError when the file's interface is not ours."""
    import onnx

    from trt_hspan.graph import INPUT_NAME, OUTPUT_NAME

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    names = [value.name for value in inputs], [value.name for value in model.graph.output]
    if names != ([INPUT_NAME], [OUTPUT_NAME]):
        raise HspanError(
            where,
            f"its inputs are {names[0]} and its outputs {names[1]}, expected {INPUT_NAME!r} and {OUTPUT_NAME!r}",
            "export it with trt-hspan export",
        )
    for value in (inputs[0], model.graph.output[0]):
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise HspanError(where, f"its {value.name} is not float32", "export it with trt-hspan export")
    dims = inputs[0].type.tensor_type.shape.dim
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    if len(shape) != 4 or shape[1] not in (None, CHANNELS):
        raise HspanError(
            where,
            f"its input has {len(shape)} dimensions {shape}, expected (N, 3, H, W)",
            "give a network that takes RGB pictures",
        )
    return (shape[0], CHANNELS, shape[2], shape[3])
