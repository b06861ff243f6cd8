"""Reads a checkpoint file by its contents, whatever its name, and runs no code from it. Knows nothing of networks."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, Final

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import error_from_os_error

_LOG = logging.getLogger(__name__)

#: Names under which checkpoints come; `.tar` is that of `.pth.tar`. What a file is, its contents say.
SUFFIXES: Final = (".pt", ".pth", ".safetensors", ".ckpt", ".bin", ".tar")

#: The entry of the texts in a safetensors file's header.
HEADER: Final = "__metadata__"

# What is saved under a checkpoint's name by mistake: first bytes, what it is, what to do.
_MISTAKEN: Final = (
    (
        rb"version https://git-lfs\.github\.com/",
        "a Git LFS pointer to the file, not the file",
        "git lfs pull",
    ),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|\?xml)",
        "an HTML page, not a checkpoint: a download that was answered with a web page",
        "download the file itself, as its download button does",
    ),
    (rb"\x1f\x8b|7z\xbc\xaf|Rar!|(?s:.{257}ustar)", "an archive", "unpack it and name the checkpoint in it"),
    (rb"\x89HDF\r\n", "an HDF5 file, as Keras saves it", "save it with torch.save"),
)


class InertObject(dict[Any, Any]):
    """Stands for a pickled object whose class is not loaded, since that could run code; its fields are items."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, *_values: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.update(state)


def require_suffix(path: Path) -> None:
    """Raises: UsageError for a name that no checkpoint has."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            path, f"not a checkpoint's name, expected {', '.join(SUFFIXES)}", "name another file"
        )


def read_checkpoint_file(path: Path) -> tuple[object, list[str]]:
    """What was saved, and the names of the classes of objects that were not loaded (`InertObject` stands for them).

    The texts in a safetensors file's header come in the entry `HEADER`.

    Raises:
        HspanError: neither PyTorch's format nor safetensors, or truncated; cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise error_from_os_error(path, error, action="read") from error
    for pattern, what, next_step in _MISTAKEN:
        if re.match(pattern, start):
            raise HspanError(path, what, next_step)
    is_named_safetensors = path.suffix.lower() == ".safetensors"
    if re.match(rb"(?s).{8}\{\s*[\"}]", start):  # the header's length, and the header in JSON
        if not is_named_safetensors:
            _LOG.warning("%s: a safetensors file by its contents, read as one", path)
        return _read_safetensors(path), []
    if zipfile.is_zipfile(path) or not is_named_safetensors:
        if is_named_safetensors:
            _LOG.warning("%s: a PyTorch file by its contents, read as one", path)
        return _read_torch(path)
    return _read_safetensors(path), []


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {HEADER: file.metadata() or {}} | {
                key: file.get_tensor(key)
                for key in file.keys()  # noqa: SIM118  # it is no mapping
            }
    except SafetensorError as error:
        raise HspanError(
            path, f"not a safetensors file, or truncated ({error})", "copy or download it again"
        ) from error
    except OSError as error:
        raise error_from_os_error(path, error, action="read") from error


def _read_torch(path: Path) -> tuple[object, list[str]]:
    objects: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            _require_tensors_inside(path)
            objects = sorted(get_unsafe_globals_in_checkpoint(os.fspath(path)))
        inert: list[Any] = [(InertObject, name) for name in objects]
        with path.open("rb") as file, warnings.catch_warnings(), safe_globals(inert):
            warnings.simplefilter("ignore")
            # The open file, not its name, by whose suffix torch.load would choose another format.
            return torch.load(file, map_location="cpu", weights_only=True), objects
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path) or "Unsupported global" in str(error):
            raise objects_error(path, objects) from error
        raise _not_a_checkpoint(path, error) from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # a truncated file has torch.load seek to before its start
            raise _not_a_checkpoint(path, error) from error
        raise error_from_os_error(path, error, action="read") from error
    except HspanError:
        raise
    except Exception as error:  # torch.load meets damaged files with many kinds of errors
        raise _not_a_checkpoint(path, error) from error


def objects_error(path: Path, objects: list[str]) -> HspanError:
    """The error about a file whose contents are Python objects rather than tensors."""
    names = f" ({', '.join(objects[:3])})" if objects else ""
    return HspanError(
        path,
        f"contains Python objects{names} besides tensors, which are not loaded because they can run code",
        "save the bare state dict: torch.save(model.state_dict(), path)",
    )


def _require_tensors_inside(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("constants.pkl") for name in names):
        raise HspanError(
            path,
            "a TorchScript archive, expected a state dict",
            "save torch.jit.load(path).state_dict() with torch.save",
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise HspanError(
            path,
            f"a ZIP archive of {', '.join(names[:3]) or 'nothing'}",
            "unpack it and name the checkpoint in it",
        )


def _not_a_checkpoint(path: Path, error: Exception) -> HspanError:
    # To load without restrictions, which runs code.
    is_advice = isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error)
    reason = ("" if is_advice else str(error).strip().split("\n")[0]) or type(error).__name__
    return HspanError(
        path, f"not a PyTorch checkpoint, or truncated ({reason[:160]})", "copy or download it again"
    )
