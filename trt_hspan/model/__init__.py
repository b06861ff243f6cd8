"""The network in PyTorch: sizes, modules, checkpoints, presets."""

from trt_hspan.model.checkpoint import export_hspan_state, load_model, save_checkpoint
from trt_hspan.model.config import HspanConfig
from trt_hspan.model.hspan import HSPAN, HighSimilarityPassAttention
from trt_hspan.model.presets import PRESETS, preset_names
from trt_hspan.model.rescaling import rescaled_network

__all__ = [
    "HSPAN",
    "PRESETS",
    "HighSimilarityPassAttention",
    "HspanConfig",
    "export_hspan_state",
    "load_model",
    "preset_names",
    "rescaled_network",
    "save_checkpoint",
]
