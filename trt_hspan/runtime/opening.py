"""Which runner a file gets on which device.

`device="auto"` takes, for each kind of file, the first that this machine can do:

1. an engine: TensorRT on the GPU; else its ONNX file under ONNX Runtime on the CPU, as an emulation;
2. an ONNX file: ONNX Runtime on the CPU; in INT8 OpenVINO, where it is installed and `sums_int8_exactly`: as accurate,
   and much faster;
3. a checkpoint or a preset: PyTorch on the CPU; where it is not installed, a shipped preset as ONNX.

`"gpu"` and `"cpu"` are never quietly replaced by the other: what this machine cannot do is an error.
`"cpu:onnxruntime"` and `"cpu:openvino"` name the library for ONNX files.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.machine.facts import sums_int8_exactly
from trt_hspan.machine.install_advice import install_command
from trt_hspan.model.presets import shipped_onnx
from trt_hspan.runtime.runner import Runner

#: Each thread is one of the system's, and some backends start all of them at once.
MOST_THREADS: Final = 1024

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Device:
    """A request for a device: `kind` "auto", "cpu" or "gpu"; `index` in CUDA's order, 0 unless named; on a CPU the
    library for ONNX files, None where any will do."""

    kind: str
    index: int = 0
    library: Literal["onnxruntime", "openvino"] | None = None


@dataclass(frozen=True, kw_only=True)
class RunnerOptions:
    """The options of `open_runner`, for requests that pass them on whole."""

    device: str = "auto"
    res_scale: float | None = None
    threads: int | None = None
    plugin: Path | None = None
    precision: str | None = None

    def open(self, source: str | os.PathLike[str]) -> Runner:
        """As `open_runner`."""
        return open_runner(
            source,
            device=self.device,
            res_scale=self.res_scale,
            threads=self.threads,
            plugin=self.plugin,
            precision=self.precision,
        )


def device_from_text(text: str) -> Device:
    """Reads "auto", "cpu", "cpu:onnxruntime", "cpu:openvino", "gpu", or "gpu:1" for the second GPU.

    Raises:
        UsageError: anything else.
    """
    match = re.fullmatch(r"(auto|cpu|gpu)|cpu:(onnxruntime|openvino)|gpu:([0-9]{1,3})", text, flags=re.ASCII)
    if match is None:
        expected = "auto, cpu, cpu:onnxruntime, cpu:openvino, gpu, or gpu:1 for the second GPU"
        raise UsageError("--device", f"got {text!r}, expected {expected}")
    library = cast(Literal["onnxruntime", "openvino"] | None, match[2])
    return Device(kind=match[1] or text.partition(":")[0], index=int(match[3] or 0), library=library)


def devices_from_text(text: str) -> tuple[str, ...]:
    """Reads "auto", "cpu", "gpu", "gpu:1" or "gpu:0,1", which is two. Raises: UsageError as `device_from_text`."""
    first, *others = text.split(",")
    devices = (first, *(f"gpu:{other}" for other in others)) if first.startswith("gpu:") else (text,)
    for device in devices:
        device_from_text(device)
    if len(set(devices)) < len(devices):
        raise UsageError("--device", f"got {text!r}, which names a GPU twice", "name each once")
    return devices


def open_runner(
    source: str | os.PathLike[str],
    *,
    device: str = "auto",
    res_scale: float | None = None,
    threads: int | None = None,
    plugin: str | os.PathLike[str] | None = None,
    precision: str | None = None,
) -> Runner:
    """The runner for an engine, an ONNX file, a checkpoint or a preset. Use it in a `with` block.

    An engine (`.plan`) runs on the GPU where this machine can execute it. Elsewhere the ONNX file that it was
    built from runs instead under ONNX Runtime, `emulated` is True and `why_emulated` says why. The runner's
    `picked` says which backend was taken and why; the same line goes to this module's logger.

    Example:
        >>> import numpy as np
        >>> from trt_hspan.runtime.opening import open_runner
        >>> with open_runner("hspan-tiny-x2", device="cpu") as runner:
        ...     runner.run(np.zeros((1, 3, 24, 32), np.float32)).shape
        (1, 3, 48, 64)

    Args:
        source: `.plan` with its manifest beside it, `.onnx`, `.pt`, `.pth`, `.safetensors`, or a preset's
            name.
        device: as `device_from_text` takes it.
        res_scale: for checkpoints, which do not store it.
        threads: CPU threads; None leaves it to the backend.
        plugin: for engines: the plugin library; None takes the one that `trt-hspan plugin build` writes.
        precision: for checkpoints: as `TorchRunner` takes it; None is "fp32". Engines and ONNX files contain theirs.

    Raises:
        HspanError: as the runner of that kind of file; the device cannot run this file; the package that
            would run it is not installed.
        UsageError: a checkpoint's suffix or the device is unknown, a precision for what is no checkpoint, a library
            for what is no ONNX file, or a number of threads outside 1 to `MOST_THREADS`.
    """
    if threads is not None:
        require_threads(threads)
    request = device_from_text(device)
    suffix = Path(source).suffix.lower()
    if precision is not None and suffix in (".plan", ".onnx"):
        raise UsageError(
            "--precision", f"is for checkpoints, {os.fspath(source)} contains its own", "leave it out"
        )
    if request.library is not None and suffix != ".onnx":
        step = "name the one that it was built from" if suffix == ".plan" else "see trt-hspan export"
        raise UsageError(f"--device {device}", f"is for ONNX files, and {os.fspath(source)} is none", step)
    if suffix == ".plan":
        runner = _engine_runner(Path(source), request, threads, plugin)
    elif suffix == ".onnx":
        if request.kind == "gpu":
            raise HspanError(
                source,
                "--device gpu: an ONNX file runs on the CPU here",
                f"build an engine: trt-hspan build --onnx {os.fspath(source)}",
            )
        runner = _onnx_runner(source, threads, request.library)
        is_int8 = runner.precision == "int8" and not runner.emulated and sums_int8_exactly()
        why = "which computes INT8 in integers" if is_int8 else "which runs ONNX files"
        why = "as requested" if request.library else why
        runner.picked = f"{runner.name} on the CPU, {why}"
    else:
        is_gpu = request.kind == "gpu"
        takes_onnx = not is_gpu and precision in (None, "fp32")
        shipped = shipped_onnx(source, res_scale=res_scale) if takes_onnx else None
        if shipped is None:
            _require_package("torch", source, "PyTorch, which runs checkpoints,", "export")
            from trt_hspan.runtime.torch_runner import TorchRunner

            runner = TorchRunner(
                source,
                res_scale=res_scale,
                threads=threads,
                precision=precision or "fp32",
                gpu=request.index if is_gpu else None,
            )
            on_cpu = f"{runner.name} on the CPU, which runs checkpoints"
            runner.picked = f"{runner.name}, as requested" if is_gpu else on_cpu
        else:
            runner = _onnx_runner(shipped, threads, None)
            runner.picked = (
                f"{runner.name} on the CPU: PyTorch is not installed, and {source} ships as ONNX too"
            )
    _LOG.info("%s: %s", runner.where, runner.picked)
    return runner


def require_threads(threads: int) -> None:
    """Raises: UsageError for a number of CPU threads outside 1 to `MOST_THREADS`, which no machine can use."""
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError("--threads", f"got {threads}, expected 1 to {MOST_THREADS}")


def _engine_runner(
    plan: Path, request: Device, threads: int | None, plugin: str | os.PathLike[str] | None
) -> Runner:
    from trt_hspan.engine.manifest import verify_manifest
    from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner
    from trt_hspan.runtime.tensorrt_runner import TensorRtRunner, engine_can_execute

    manifest = verify_manifest(plan)
    possible, reason = engine_can_execute(manifest, index=request.index)
    if request.kind == "gpu" and not possible:
        raise HspanError(
            plan, f"cannot run on a GPU: {reason}", f"see trt-hspan doctor {plan}, or take --device cpu"
        )
    runner: Runner
    if request.kind != "cpu" and possible:
        runner = TensorRtRunner(plan, plugin=plugin, index=request.index)
        runner.picked = f"{runner.name} on the GPU" + (f" {request.index}" if request.index else "")
        return runner
    why = "the CPU was requested" if request.kind == "cpu" else reason
    _require_package("onnxruntime", plan, f"{why}, and ONNX Runtime, which would emulate it,", "cpu")
    runner = OnnxRuntimeRunner(
        plan.parent / manifest.onnx_file,
        threads=threads,
        stands_in_for=(plan, why),
        profiles=manifest.shape_ranges,
    )
    runner.picked = f"{runner.name} on the CPU, emulating the engine: {why}"
    return runner


def _onnx_runner(
    source: str | os.PathLike[str], threads: int | None, library: Literal["onnxruntime", "openvino"] | None
) -> Runner:
    from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner
    from trt_hspan.runtime.openvino_runner import OpenVinoRunner, openvino_is_usable

    may_be_openvino = library is None and openvino_is_usable()
    is_alone = may_be_openvino and importlib.util.find_spec("onnxruntime") is None
    if library == "openvino" or is_alone:
        return OpenVinoRunner(source, threads=threads)
    runner = OnnxRuntimeRunner(source, threads=threads)
    is_faster = may_be_openvino and runner.precision == "int8" and sums_int8_exactly()
    return OpenVinoRunner(source, threads=threads) if is_faster else runner


def _require_package(module: str, where: object, what: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise HspanError(where, f"{what} is not installed", install_command(extra))
