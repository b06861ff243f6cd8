"""Which runner a file gets. Owns the choice, runs nothing."""

from __future__ import annotations

import os
from pathlib import Path

from trt_hspan.runtime.runner import Runner


def open_runner(
    source: str | os.PathLike[str],
    *,
    res_scale: float = 0.1,
    threads: int | None = None,
    plugin: str | os.PathLike[str] | None = None,
) -> Runner:
    """The runner for an engine, an ONNX file, a checkpoint or a preset. Use it in a `with` block.

    An engine (`.plan`) runs on the GPU where this machine can execute it. Elsewhere the ONNX file that it was
    built from runs instead under ONNX Runtime, `emulated` is True and `why_emulated` says why.

    Args:
        source: `.plan` with its manifest beside it, `.onnx`, `.pt`, `.pth`, `.safetensors`, or a preset's
            name.
        res_scale: for checkpoints, which do not store it.
        threads: CPU threads; None leaves it to the backend.
        plugin: for engines: the plugin library; None takes the one that `trt-hspan plugin build` writes.

    Raises:
        HspanError: as the runner of that kind of file.
        UsageError: a checkpoint's suffix is unknown.
    """
    suffix = Path(source).suffix.lower()
    if suffix == ".plan":
        return _engine_runner(Path(source), threads, plugin)
    if suffix == ".onnx":
        from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner

        return OnnxRuntimeRunner(source, threads=threads)
    from trt_hspan.runtime.torch_runner import TorchRunner

    return TorchRunner(source, res_scale=res_scale, threads=threads)


def _engine_runner(plan: Path, threads: int | None, plugin: str | os.PathLike[str] | None) -> Runner:
    from trt_hspan.engine.manifest import verify_manifest
    from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner
    from trt_hspan.runtime.tensorrt_runner import TensorRtRunner, engine_can_execute

    manifest = verify_manifest(plan)
    possible, reason = engine_can_execute(manifest)
    if possible:
        return TensorRtRunner(plan, plugin=plugin)
    return OnnxRuntimeRunner(plan.parent / manifest.onnx_file, threads=threads, stands_in_for=(plan, reason))
