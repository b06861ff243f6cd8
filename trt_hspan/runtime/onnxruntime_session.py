"""ONNX Runtime on a CPU: the one place that opens its sessions, and turns its errors into ours. Never imports torch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from trt_hspan.errors import HspanError
from trt_hspan.graph import (
    INPUT_NAME,
    OUTPUT_NAME,
    OnnxMetadata,
    image_input,
    metadata_from_model,
    model_for_cpu,
    model_with_attention_function,
    model_with_stand_in_attention,
)
from trt_hspan.graph.taken_sizes import NotTakenError, taken_sizes
from trt_hspan.machine.onnx_runtime import imported_onnxruntime
from trt_hspan.runtime.cpu_network import Array, CpuNetwork, RunPart, cpu_threads
from trt_hspan.runtime.runner import CHANNELS, Float32Array
from trt_hspan.sizes import ImageSize


def open_session(
    model: onnx.ModelProto | Path,
    where: str,
    *,
    threads: int | None = None,
    optimize: bool = True,
    shared_arena: bool = False,
) -> Any:
    """An `onnxruntime.InferenceSession` on this CPU, for inputs of any size.

    Args:
        model: float32, or made by `graph.model_for_cpu`; or a file that contains such a model.
        where: what errors name.
        threads: as `cpu_threads` takes it.
        optimize: whether ONNX Runtime may rewrite the graph.
        shared_arena: whether its memory comes from one arena that the sessions of this process share.

    Raises:
        HspanError: ONNX Runtime is not installed, or cannot load the model.
    """
    ort = imported_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = cpu_threads(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised as well
    options.enable_mem_pattern = False  # sizes differ from picture to picture, so nothing is planned for one
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if shared_arena:
        _register_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    with translate_errors(where, "ONNX Runtime cannot load it"):
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, names: Sequence[str], batch: Float32Array, where: str) -> list[Any]:
    """The outputs of these names for one input. Raises: HspanError when ONNX Runtime fails."""
    with translate_errors(where, "ONNX Runtime failed"):
        values: list[Any] = session.run(list(names), {INPUT_NAME: batch})
    return values


def with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy whose outputs are these tensors too, float32 ones."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    present = {value.name for value in result.graph.output}
    added = (name for name in tensors if name not in present)
    result.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in added)
    return result


def described(model: onnx.ModelProto, where: str) -> OnnxMetadata:
    """A model's metadata; where it does not say its scale, with the scale and the sizes that runs of it show.

    Raises:
        HspanError: it is no network of pictures, or ONNX Runtime runs it at no size.
    """
    metadata = metadata_from_model(model)
    if metadata.scale is not None:
        return metadata
    shape = image_input(model, where).shape
    session = open_session(model_for_cpu(model_with_stand_in_attention(model)), where)

    def run(size: ImageSize) -> ImageSize:
        batch = np.zeros((shape[0] or 1, shape[1] or CHANNELS, *size), np.float32)
        try:
            output = run_session(session, [OUTPUT_NAME], batch, where)[0]
        except HspanError as error:
            raise NotTakenError(where, error.what, error.next_step) from error
        return ImageSize(*output.shape[2:])

    fixed = ImageSize(shape[2] or 24, shape[3] or 24) if any(shape[2:]) else None
    return taken_sizes(run, fixed=fixed).recorded_in(metadata)


def scale_of(metadata: OnnxMetadata, where: object) -> int:
    """Of a network whose output is a picture that many times as high and wide. Raises: HspanError for another one."""
    if metadata.scale is None:
        raise HspanError(
            where,
            "its output is no whole multiple of its input in size",
            "give a network that keeps or enlarges pictures",
        )
    return metadata.scale


def cpu_network(model: onnx.ModelProto, where: str, *, threads: int | None = None) -> CpuNetwork:
    """A model of any precision, computed as its file says. Raises: HspanError as `open_session` and `CpuNetwork`."""

    def open_part(part: onnx.ModelProto, outputs: tuple[str, ...], threads: int) -> RunPart:
        session = open_session(part, where, threads=threads, shared_arena=True)
        options = imported_onnxruntime().RunOptions()
        # Give buffers back after each picture, so that the next size does not come on top.
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

        def run(feed: dict[str, Array]) -> list[Array]:
            with translate_errors(where, "ONNX Runtime failed"):
                values: list[Array] = session.run(list(outputs), feed, options)
            return values

        return run

    return CpuNetwork(model_for_cpu(model_with_attention_function(model)), where, open_part, threads=threads)


@contextlib.contextmanager
def translate_errors(where: str, what: str) -> Iterator[None]:
    """Turns what ONNX Runtime raises into one line that begins with `where` and `what`. Raises: HspanError."""
    try:
        yield
    except _onnxruntime_errors() as error:
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
            raise HspanError(where, f"{what}: out of memory", "give a smaller picture") from error
        raise HspanError(where, f"{what}: {text[:300]}", "export it again") from error


def _onnxruntime_errors() -> tuple[type[BaseException], ...]:
    """A dozen classes without a common base, and pybind11's."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (
        value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)
    )
    return (*own, RuntimeError, ValueError, MemoryError)


@functools.cache
def _register_arena() -> None:
    """One arena for the sessions of the process, which grows by what is requested, instead of one for each, which grow
    in powers of two.

    *Measured* with hspan-x4, cut into 11 sessions, at 96x96 pixels and two threads: peaks of 697 MB with an arena
    each, 460 MB without arenas, 368 MB with a shared one, at the same processor time.
    """
    ort = imported_onnxruntime()
    kind = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    as_requested, unlimited, default = 1, 0, -1
    # Another part of the program may have registered one: then it is shared as it is.
    with contextlib.suppress(*_onnxruntime_errors()):
        ort.create_and_register_allocator(kind, ort.OrtArenaCfg(unlimited, as_requested, default, default))
