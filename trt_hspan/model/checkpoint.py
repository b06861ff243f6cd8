"""Checkpoints: reading them strictly, writing them in the official format. Knows nothing of ONNX."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import atomic_path, error_from_os_error, sha256_from_file
from trt_hspan.model.config import config_from_shapes
from trt_hspan.model.hspan import HSPAN
from trt_hspan.model.presets import PRESETS, RANDOM_SEED, closest_preset, preset_names, shipped_weights

_SUFFIXES = (".pt", ".pth", ".safetensors")


def load_model(path: str | os.PathLike[str], *, res_scale: float = 0.1) -> HSPAN:
    """Loads a network from a checkpoint or by the name of a preset.

    Args:
        path: `.pt` or `.pth` (a state dict as the official code saves it), `.safetensors` (the same keys), or
            a preset's name such as "hspan-x4" (published size, seeded random weights).
        res_scale: factor on each attention and each module; checkpoints do not store it.

    Returns:
        The network in eval mode, float32, on the CPU. Sizes and scale are read from the tensors' shapes.

    Raises:
        HspanError: no such file; not a checkpoint; truncated; another architecture; keys missing,
            unexpected or misshaped (all are listed); values that are NaN or infinite.
        UsageError: res_scale is negative or not finite.

    Example:
        >>> from trt_hspan import load_model
        >>> load_model("hspan-tiny-x2").config.name
        'HSPAN x2, 32 features, 2 modules of 2 blocks'
    """
    name = os.fspath(path)
    if name in PRESETS:
        return _random_model(name, res_scale)
    checkpoint = shipped_weights(name) or Path(name)
    state = _read_state(checkpoint)
    config = config_from_shapes(
        {key: tuple(tensor.shape) for key, tensor in state.items()}, where=checkpoint, res_scale=res_scale
    )
    _require_usable_values(state, checkpoint)
    with torch.device("meta"):
        model = HSPAN(config)
    model.load_state_dict({key: tensor.float() for key, tensor in state.items()}, strict=True, assign=True)
    for parameter in (*model.sub_mean.parameters(), *model.add_mean.parameters()):
        parameter.requires_grad_(False)
    return model.eval()


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
    _require_suffix(target)
    state = export_hspan_state(model)
    with atomic_path(target) as temporary:
        if target.suffix == ".safetensors":
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


def _require_suffix(path: Path) -> None:
    if path.suffix not in _SUFFIXES:
        raise UsageError(
            path, f"not a checkpoint's name, expected {', '.join(_SUFFIXES)}", "name another file"
        )


def _read_state(path: Path) -> dict[str, Tensor]:
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
    _require_suffix(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise HspanError(
            path, f"not a safetensors file, or truncated ({error})", "copy or download it again"
        ) from error
    except OSError as error:
        raise error_from_os_error(path, error, action="read") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() and zipfile.is_zipfile(path):
            raise HspanError(
                path,
                "contains Python objects besides tensors, which are not loaded because they can run code",
                "save the bare state dict: torch.save(model.state_dict(), path)",
            ) from error
        raise _not_a_checkpoint(path, error) from error
    except OSError as error:
        if error.errno is None:
            raise _not_a_checkpoint(path, error) from error
        raise error_from_os_error(path, error, action="read") from error
    # torch.load meets damaged files with many kinds of errors; all of them mean this one thing.
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        IndexError,
        ImportError,
    ) as error:
        raise _not_a_checkpoint(path, error) from error
    return _state_from_loaded(loaded, path)


def _not_a_checkpoint(path: Path, error: Exception) -> HspanError:
    reason = str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__
    return HspanError(
        path, f"not a PyTorch checkpoint, or truncated ({reason[:160]})", "copy or download it again"
    )


def _state_from_loaded(loaded: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping) or not loaded:
        raise HspanError(
            path, f"contains a {type(loaded).__name__}, expected a state dict", "save model.state_dict()"
        )
    wrong = [
        str(key) for key, item in loaded.items() if not isinstance(item, Tensor) or not isinstance(key, str)
    ]
    if wrong:
        raise HspanError(
            path,
            f"not a bare state dict: {', '.join(wrong[:5])} are not tensors",
            f"save the inner one, for example torch.save(checkpoint[{wrong[0]!r}], path)",
        )
    return dict(loaded)


def _require_usable_values(state: Mapping[str, Tensor], path: Path) -> None:
    complex_or_integer = [key for key, tensor in state.items() if not tensor.is_floating_point()]
    if complex_or_integer:
        raise HspanError(
            path, f"not floating point: {', '.join(complex_or_integer)}", "give a float checkpoint"
        )
    broken = [key for key, tensor in state.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise HspanError(
            path, f"NaN or infinite values in {', '.join(broken)}", "give an undamaged checkpoint"
        )
    if float(state["sub_mean.bias"].abs().max()) > 1.5:
        raise HspanError(
            path,
            "its mean shift is for pixels in 0..255 (rgb_range 255), expected 0..1",
            "give a checkpoint trained with --rgb_range 1",
        )
