"""OpenVINO on a CPU: the one place that imports it, and turns its errors into ours. Never imports torch."""

from __future__ import annotations

import functools
import sys
from typing import Any, Final, Literal

import onnx

from trt_hspan.errors import HspanError
from trt_hspan.graph import model_with_native_types
from trt_hspan.machine.install_advice import install_command
from trt_hspan.runtime.cpu_network import Array, CpuNetwork, RunPart

#: The type in which OpenVINO computes what is not quantized.
Arithmetic = Literal["f32", "bf16"]
_TELEMETRY: Final = "openvino_telemetry"


def imported_openvino() -> Any:
    """The package, imported when it is needed, without its telemetry. Raises: HspanError when it is not installed.

    Importing OpenVINO sends an event home, unless the package that sends it cannot be imported: then OpenVINO takes a
    stub of its own. Where a program has imported either before, it stays as it is.
    """
    is_hidden = not {"openvino", _TELEMETRY} & sys.modules.keys()
    if is_hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # the documented way to forbid an import
    try:
        import openvino
    except ImportError as error:
        raise HspanError("OpenVINO", "is not installed", install_command("openvino")) from error
    finally:
        if is_hidden:
            del sys.modules[_TELEMETRY]
    return openvino


def has_bf16() -> bool:
    """Whether OpenVINO computes in BF16 on this processor."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def openvino_network(
    model: onnx.ModelProto, where: str, *, arithmetic: Arithmetic, threads: int | None = None
) -> CpuNetwork:
    """A model with the attention in the native library, INT8 convolutions in integers and the rest in `arithmetic`.

    Raises:
        HspanError: OpenVINO cannot load the model; as `CpuNetwork`.
    """
    options = {
        # Left to itself, it computes float32 networks in BF16 where the processor can.
        "INFERENCE_PRECISION_HINT": arithmetic,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # other programs run here too
    }

    def open_part(part: onnx.ModelProto, outputs: tuple[str, ...], threads: int) -> RunPart:
        try:
            read = _core().read_model(part.SerializeToString())
            compiled = _core().compile_model(read, "CPU", {**options, "INFERENCE_NUM_THREADS": threads})
        except RuntimeError as error:
            raise _translated(error, where, "OpenVINO cannot load it") from error

        def run(feed: dict[str, Array]) -> list[Array]:
            # A request of its own: one cannot be shared by threads, and its buffers go when it does.
            request = compiled.create_infer_request()
            try:
                # Not by `infer`: *measured* with 2026.4, it raises nothing when a node fails and gives empty results.
                # Never canceled: the next run of the model would crash. Ctrl-C waits for the part.
                request.start_async(feed, share_inputs=True)
                request.wait()
                return [request.get_tensor(name).data.copy() for name in outputs]
            except (RuntimeError, MemoryError) as error:
                raise _translated(error, where, "OpenVINO failed") from error

        return run

    return CpuNetwork(model_with_native_types(model), where, open_part, threads=threads)


@functools.lru_cache(maxsize=1)
def _core() -> Any:
    return imported_openvino().Core()


def _translated(error: Exception, where: str, what: str) -> HspanError:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "bad_alloc" in text or "allocate" in text:
        return HspanError(where, f"{what}: out of memory", "give a smaller picture")
    return HspanError(where, f"{what}: {text[-300:]}", "take --device cpu:onnxruntime")
