"""Checkpoints: reading them strictly, writing them in the official format. Knows nothing of ONNX."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import atomic_path, sha256_from_file
from trt_hspan.model.checkpoint_file import read_checkpoint_file, require_suffix
from trt_hspan.model.config import DEFAULT_RES_SCALE, config_from_shapes
from trt_hspan.model.hspan import HSPAN
from trt_hspan.model.presets import PRESETS, RANDOM_SEED, closest_preset, preset_names, shipped_weights
from trt_hspan.model.state_search import FoundState, shapes_from_state, state_from_loaded

_LOG = logging.getLogger(__name__)
# Of a network for pixels in 0..255: features stay as they are, pixels at both ends become 0..1.
_DIVISORS_OF_255: Final = {
    "sub_mean.bias": 255,
    "head.0.weight": 1 / 255,
    "tail.1.weight": 255,
    "tail.1.bias": 255,
    "add_mean.bias": 255,
}


def load_model(path: str | os.PathLike[str], *, res_scale: float | None = None) -> HSPAN:
    """Loads a network from a checkpoint or by the name of a preset.

    Args:
        path: a file that PyTorch or safetensors saved (`.pt`, `.pth`, `.ckpt`, `.bin`, `.safetensors`), or a preset's
            name such as "hspan-x4" (published size, seeded random weights). The network's state dict has the official
            keys. It is found in wrappers ("params_ema", "model_state_dict", several levels) and under prefixes
            ("module.", "net_g."), and a warning of this module's logger says where. No code in the file is run.
        res_scale: factor on each attention and each module. None is what the file says beside the weights, in the
            header of safetensors or its training's arguments, else 0.1, as in the official commands.

    Returns:
        The network in eval mode, float32 whatever floating-point type was saved, on the CPU. Sizes and scale are read
        from the tensors' shapes. One trained with `--rgb_range 255` is rescaled to pixels in 0..1.

    Raises:
        HspanError: no such file; not a checkpoint; truncated; another architecture; keys missing,
            unexpected or misshaped (all are listed); values that are NaN or infinite; sparse, quantized or
            meta tensors.
        UsageError: res_scale is negative or not finite.

    Example:
        >>> from trt_hspan import load_model
        >>> load_model("hspan-tiny-x2").config.name
        'HSPAN x2, 32 features, 2 modules of 2 blocks'
    """
    name = os.fspath(path)
    if name in PRESETS:
        return _random_model(name, DEFAULT_RES_SCALE if res_scale is None else res_scale)
    checkpoint = shipped_weights(name) or Path(name)
    found = _find_state(checkpoint)
    res_scale = next(scale for scale in (res_scale, found.res_scale, DEFAULT_RES_SCALE) if scale is not None)
    config = config_from_shapes(shapes_from_state(found.state), where=found.where, res_scale=res_scale)
    state = _float32_state(found.state, found.where)
    _require_usable_values(state, found.where)
    notes = [found.note] if found.note else []
    if float(state["sub_mean.bias"].abs().max()) > 1.5:
        state |= {key: state[key] / divisor for key, divisor in _DIVISORS_OF_255.items()}
        notes.append("trained on pixels in 0..255 (rgb_range 255); rescaled to 0..1")
    with torch.device("meta"):
        model = HSPAN(config)
    model.load_state_dict(state, assign=True)
    if notes:
        _LOG.warning("%s: %s", checkpoint, "; ".join(notes))
    for parameter in (*model.sub_mean.parameters(), *model.add_mean.parameters()):
        parameter.requires_grad_(False)
    return model.eval()


def says_res_scale(path: str | os.PathLike[str]) -> bool:
    """Whether a residual scale is stored in a checkpoint, or known of a preset. Raises: HspanError as `load_model`."""
    return os.fspath(path) in preset_names() or _find_state(Path(path)).res_scale is not None


def export_hspan_state(model: HSPAN) -> dict[str, Tensor]:
    """The state dict of the official format: its keys in its order, float32, contiguous, on the CPU.

    Example:
        >>> from trt_hspan import export_hspan_state, load_model
        >>> list(export_hspan_state(load_model("hspan-tiny-x2")))[:3]
        ['a', 'sub_mean.weight', 'sub_mean.bias']
    """
    state = model.state_dict()
    return {
        key: state[key].detach().to("cpu", torch.float32).contiguous().clone()
        for key in model.config.state_shapes()
    }


def save_checkpoint(
    model: HSPAN, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a checkpoint in the official key layout, whole or not at all.

    Args:
        model: the network.
        path: `.pt` or `.pth` for the official file format, `.safetensors` for one without pickle.
        metadata: text stored in a `.safetensors` header.

    Raises:
        UsageError: another suffix, or metadata for a format that stores none.
        HspanError: the file cannot be written.

    Example:
        >>> from trt_hspan import load_model, save_checkpoint
        >>> save_checkpoint(load_model("hspan-tiny-x2"), "copy.safetensors")
        >>> load_model("copy.safetensors").config.scale
        2
    """
    target = Path(path)
    require_suffix(target)
    state = export_hspan_state(model)
    with atomic_path(target) as temporary:
        if target.suffix.lower() == ".safetensors":
            from safetensors.torch import save_file

            save_file(state, temporary, metadata=dict(metadata or {}))
        elif metadata:
            raise UsageError(target, f"{target.suffix} files store no metadata", "write .safetensors")
        else:
            torch.save(state, temporary)


def source_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the checkpoint file that `load_model` would read; of name and seed for random presets.

    Raises:
        HspanError: no such file.
    """
    name = os.fspath(path)
    if name in PRESETS:
        return hashlib.sha256(f"{PRESETS[name]} seed {RANDOM_SEED}".encode()).hexdigest()
    return sha256_from_file(shipped_weights(name) or name)


def _random_model(name: str, res_scale: float) -> HSPAN:
    config = dataclasses.replace(PRESETS[name], res_scale=res_scale)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return HSPAN(config).eval()


def _find_state(path: Path) -> FoundState:
    if path.is_dir():
        raise HspanError(
            path, "is a folder, expected a checkpoint", "name the .pt or .safetensors file in it"
        )
    if not path.exists():
        closest = closest_preset(str(path))
        hint = (
            f"did you mean the preset {closest}?" if closest else f"presets are {', '.join(preset_names())}"
        )
        raise HspanError(path, "no such file", f"check the path; {hint}")
    require_suffix(path)
    loaded, objects = read_checkpoint_file(path)
    return state_from_loaded(loaded, path, objects)


def _float32_state(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Weights of any floating-point type as dense float32. Raises: HspanError naming those that are none."""
    unusable = {key: why for key, tensor in state.items() if (why := _why_unusable(tensor))}
    if unusable:
        what, next_step = next(iter(unusable.values()))
        keys = [key for key, why in unusable.items() if why[0] == what]
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise HspanError(where, f"{what}: {', '.join(keys[:3])}{more}", next_step)
    # Converted before values are looked at: float8 has neither isfinite nor abs.
    return {key: tensor.detach().float() for key, tensor in state.items()}


def _why_unusable(tensor: Tensor) -> tuple[str, str] | None:
    """What a tensor is that cannot be converted to dense float32, and what to save instead."""
    if tensor.is_meta:
        return "without values (meta tensors)", "save the state dict after the weights are loaded"
    if tensor.layout != torch.strided:
        return (
            "sparse tensors, expected dense ones",
            "save {key: tensor.to_dense() for key, tensor in state.items()}",
        )
    if tensor.is_quantized:
        return "quantized tensors, expected floating point", "save the float checkpoint that they come from"
    if not tensor.is_floating_point() or "float4" in str(tensor.dtype):  # packed: two numbers to an element
        return "not floating point that converts to float32", "give a float checkpoint"
    return None


def _require_usable_values(state: Mapping[str, Tensor], where: str) -> None:
    broken = [key for key, tensor in state.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise HspanError(
            where, f"NaN or infinite values in {', '.join(broken)}", "give an undamaged checkpoint"
        )
