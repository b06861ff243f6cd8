"""The network that a command names: a checkpoint, preset, ONNX file or engine, ready to be written in any type."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from trt_hspan.engine.manifest import verify_manifest
from trt_hspan.errors import UsageError
from trt_hspan.graph import Variants, load_onnx, variants_from_model
from trt_hspan.model.presets import shipped_onnx

#: Called with what is being done, how much of it is complete, and the whole; 0 while that is not known.
OnProgress = Callable[[str, float, float], None]


def no_progress(_what: str, _complete: float, _whole: float) -> None:
    """An `OnProgress` that shows nothing."""


def variants_from_path(network: str | os.PathLike[str], *, res_scale: float | None = None) -> Variants:
    """Reads a network. Checkpoints and presets need torch, ONNX files and engines do not.

    Args:
        network: an ONNX file, a plan beside its manifest and model, a checkpoint file, or a preset's name. The
            shipped presets are read as ONNX where there is no torch.
        res_scale: of a checkpoint, which does not store it; None is 0.1.

    Raises:
        UsageError: `res_scale` of an ONNX file.
        HspanError: the file cannot be read, is no network of this project, or contains no attention.
    """
    path = shipped_onnx(network, res_scale=res_scale)
    if path is not None:
        return variants_from_model(load_onnx(path), os.fspath(network))
    path = Path(network)
    suffix = path.suffix.lower()
    if suffix not in (".onnx", ".plan"):
        from trt_hspan.export.to_onnx import variants_from_checkpoint

        return variants_from_checkpoint(network, res_scale=res_scale)
    if res_scale is not None:
        raise UsageError("--res-scale", "is part of an ONNX file already", "leave it out")
    if suffix == ".plan":
        path = path.parent / verify_manifest(path).onnx_file
    return variants_from_model(load_onnx(path), os.fspath(network))
