"""Networks with a name: the published sizes with seeded random weights, and those shipped here. Needs no torch."""

from __future__ import annotations

import difflib
import importlib.util
import os
from pathlib import Path
from typing import Final

from trt_hspan.model.config import DEFAULT_RES_SCALE, HspanConfig

# The published sizes. Their trained weights are not shipped; random ones serve benchmarks and builds.
PRESETS: Final = {
    f"hspan-x{scale}": HspanConfig(n_feats=192, n_groups=10, n_blocks=4, scale=scale) for scale in (2, 3, 4)
}
RANDOM_SEED: Final = 2024

_WEIGHTS_FOLDER = Path(__file__).parent / "weights"


def shipped_weights(name: str) -> Path | None:
    """The checkpoint shipped under this name, or None."""
    path = _WEIGHTS_FOLDER / f"{name}.safetensors"
    return path if path.is_file() else None


def shipped_onnx(name: str | os.PathLike[str], *, res_scale: float | None = None) -> Path | None:
    """The same network as float32 ONNX, for machines without PyTorch; None where there is none, or PyTorch is here."""
    path = _WEIGHTS_FOLDER / f"{os.fspath(name)}.onnx"
    same = res_scale in (None, DEFAULT_RES_SCALE) and path.parent == _WEIGHTS_FOLDER
    return path if same and path.is_file() and importlib.util.find_spec("torch") is None else None


def preset_names() -> list[str]:
    """All names that `load_model` takes instead of a path."""
    return sorted({*PRESETS, *(path.stem for path in _WEIGHTS_FOLDER.glob("*.safetensors"))})


def closest_preset(name: str) -> str | None:
    """The preset whose name is most like this one; None when none is."""
    return next(iter(difflib.get_close_matches(name, preset_names(), n=1)), None)
