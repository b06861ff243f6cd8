"""trt-hspan: HSPAN super-resolution from checkpoint to TensorRT engine.

The public names below load on first use, so that `import trt_hspan` costs no torch and no TensorRT.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.version import __version__

if TYPE_CHECKING:
    from trt_hspan.evaluation.validation import validate
    from trt_hspan.export import export_onnx, onnx_from_model
    from trt_hspan.model.checkpoint import export_hspan_state, load_model, save_checkpoint
    from trt_hspan.model.config import HspanConfig
    from trt_hspan.model.hspan import HSPAN, HighSimilarityPassAttention

_LAZY = {
    "HSPAN": "trt_hspan.model.hspan",
    "HighSimilarityPassAttention": "trt_hspan.model.hspan",
    "HspanConfig": "trt_hspan.model.config",
    "export_hspan_state": "trt_hspan.model.checkpoint",
    "load_model": "trt_hspan.model.checkpoint",
    "save_checkpoint": "trt_hspan.model.checkpoint",
    "export_onnx": "trt_hspan.export",
    "onnx_from_model": "trt_hspan.export",
    "validate": "trt_hspan.evaluation.validation",
}

__all__ = [
    "HSPAN",
    "HighSimilarityPassAttention",
    "HspanConfig",
    "HspanError",
    "UsageError",
    "__version__",
    "export_hspan_state",
    "export_onnx",
    "load_model",
    "onnx_from_model",
    "save_checkpoint",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
