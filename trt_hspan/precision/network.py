"""The network that a command names: a checkpoint, preset, ONNX file or engine, ready to be written in any type."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx

from trt_hspan.engine.manifest import verify_manifest
from trt_hspan.errors import UsageError
from trt_hspan.graph import (
    Variants,
    image_input,
    load_onnx,
    metadata_from_model,
    require_attention,
    variants_from_model,
)
from trt_hspan.model.presets import shipped_onnx
from trt_hspan.runtime.onnxruntime_session import described
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tile_size import SizeRange, rounded_up

#: Called with what is being done, how much of it is complete, and the whole; 0 before it is counted.
OnProgress = Callable[[str, float, float], None]


def no_progress(_what: str, _complete: float, _whole: float) -> None:
    """An `OnProgress` that shows nothing."""


def variants_from_path(network: str | os.PathLike[str], *, res_scale: float | None = None) -> Variants:
    """Reads a network. Checkpoints and presets need torch, ONNX files and engines do not.

    Args:
        network: an ONNX file, a plan beside its manifest and model, a checkpoint file, or a preset's name. The
            shipped presets are read as ONNX where there is no torch.
        res_scale: of a checkpoint, which does not store it; None is 0.1.

    Returns:
        The network; its metadata says its scale and the sizes that it takes, which runs show where the file does not.

    Raises:
        UsageError: `res_scale` of an ONNX file.
        HspanError: the file cannot be read, is no network of this project, or contains no attention.
    """
    shipped = shipped_onnx(network, res_scale=res_scale)
    path = shipped or Path(network)
    suffix = path.suffix.lower()
    if suffix not in (".onnx", ".plan"):
        from trt_hspan.export.to_onnx import variants_from_checkpoint

        return variants_from_checkpoint(network, res_scale=res_scale)
    if res_scale is not None and shipped is None:
        raise UsageError("--res-scale", "is part of an ONNX file already", "leave it out")
    if suffix == ".plan":
        path = path.parent / verify_manifest(path).onnx_file
    model = load_onnx(path)
    where = os.fspath(network)
    require_attention(model, where)
    return variants_from_model(model, where, metadata=described(model, where))


def input_sizes(model: onnx.ModelProto) -> SizeRange:
    """The pictures that a network takes, by its declared input and its metadata."""
    metadata = metadata_from_model(model)
    height, width = image_input(model, "model").shape[2:]
    least, step = metadata.min_size or 1, metadata.size_multiple or 1
    if height and width:
        return SizeRange(low=ImageSize(height, width), high=(height, width))
    return SizeRange(
        low=rounded_up(ImageSize(height or least, width or least), step), high=(height, width), step=step
    )
