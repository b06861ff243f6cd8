"""The library name that the wheel of TensorRT-RTX lacks, and its cure. Imports no TensorRT.

The wheel ships libtensorrt_rtx.so.1 alone, but as soon as its ONNX parser meets a plugin it opens the name
without the 1, looking in $ORIGIN (the folder it was loaded from), and ends the process when it is missing:
measured on 1.7.1.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.util
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from trt_hspan.errors import HspanError

LIBRARY = "libtensorrt_rtx.so"
_PACKAGE = "tensorrt_rtx_libs"
_RTLD_DI_ORIGIN = 6  # dlfcn.h of glibc
_LOG = logging.getLogger(__name__)


def library_folder() -> Path | None:
    """The folder of the wheel's libraries, or None for an installation of another kind. Imports nothing."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def preload_with_unversioned_name() -> None:
    """Loads the wheel's libraries through a private folder of symlinks that has the missing name too.

    To be called before anything imports `tensorrt_rtx`; later it does nothing. The folder is then the
    libraries' $ORIGIN and is removed when the process ends; the installation, which may be read-only, is
    left as it is.
    """
    folder = library_folder()
    if folder is None or (folder / LIBRARY).exists() or _PACKAGE in sys.modules:
        return
    try:
        links = Path(tempfile.mkdtemp(prefix="trt-hspan-"))
        atexit.register(shutil.rmtree, links, ignore_errors=True)
        libraries = _libraries(folder)
        for library in libraries:
            (links / library.name).symlink_to(library)
        (links / LIBRARY).symlink_to(libraries[0])
        for library in libraries:
            ctypes.CDLL(str(links / library.name))
    except (OSError, IndexError) as error:  # `ensure_unversioned_name` speaks up where it matters
        _LOG.info("TensorRT-RTX is not preloaded: %s", error)


def ensure_unversioned_name() -> None:
    """Makes sure that the parser finds the name, by a symlink in its folder if need be; raises HspanError if not."""
    folder = library_folder()
    for library in [] if folder is None else _libraries(folder):
        origin = _origin(library)
        if (origin / LIBRARY).exists():
            continue
        with contextlib.suppress(OSError):
            (origin / LIBRARY).symlink_to(f"{LIBRARY}.1")
        if not (origin / LIBRARY).exists():
            raise HspanError(
                origin,
                f"has no {LIBRARY}, which TensorRT-RTX's parser needs for a plugin, and cannot be written",
                f"run ln -s {LIBRARY}.1 {LIBRARY} there, or let nothing import tensorrt_rtx before trt_hspan",
            )


def _libraries(folder: Path) -> list[Path]:
    """The wheel's shared libraries, the one with the missing name first."""
    return sorted(folder.glob("lib*.so.*"), key=lambda path: (not path.name.startswith(LIBRARY), path.name))


def _origin(library: Path) -> Path:
    """What $ORIGIN means for a shared library; loads it if it is not loaded yet."""
    handle = ctypes.c_void_p(ctypes.CDLL(str(library))._handle)
    buffer = ctypes.create_string_buffer(4096)  # PATH_MAX
    if ctypes.CDLL(None).dlinfo(handle, _RTLD_DI_ORIGIN, buffer) != 0:
        return library.parent
    return Path(buffer.value.decode())
