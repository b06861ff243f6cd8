"""Loading a compiled library by its C interface, once it is shown to be the right one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

from trt_hspan.errors import HspanError
from trt_hspan.native.sources import LibraryPlaces, sources_folder

ElementType = Literal["float32", "float16", "bfloat16"]

#: The types' numbers in both C interfaces.
TYPE_NUMBERS: Final[dict[ElementType, int]] = {"float32": 0, "float16": 1, "bfloat16": 2}


class Loaded(Protocol):
    """A loaded library; `source_sha256` is the hash of the sources that it was compiled from."""

    source_sha256: str


LoadedT = TypeVar("LoadedT", bound=Loaded)


def open_library(path: Path, *, version_function: str, version: int, command: str) -> ctypes.CDLL:
    """The library's functions.

    Args:
        version_function: returns the version of the library's C interface.
        version: the one that fits.
        command: compiles the library.

    Raises:
        HspanError: the file cannot be loaded, is another library, or has another version.
    """
    remedy = f"compile it again with {command}"
    try:
        library = ctypes.CDLL(os.fspath(path))
        actual = getattr(library, version_function)()
    except OSError as error:
        raise HspanError(path, f"cannot be loaded: {error}", remedy) from error
    except AttributeError as error:
        raise HspanError(path, f"is another library: it has no {version_function}", remedy) from error
    if actual != version:
        raise HspanError(path, f"has ABI version {actual}, this package needs {version}", remedy)
    return library


def checked_library(load: Callable[[Path], LoadedT], places: LibraryPlaces, command: str) -> LoadedT:
    """The library of these places, loaded; it must be of the sources at hand, unless the environment names it.

    Args:
        load: loads the file.
        command: compiles it.

    Raises:
        HspanError: there is no file, it was compiled from other sources, or as `load`.
    """
    path = places.path()
    if not path.is_file():
        raise HspanError(path, "there is no such library", f"compile it with {command}")
    library = load(path)
    named = os.environ.get(places.variable)
    if not named and library.source_sha256 != places.sources_sha256(sources_folder()):
        raise HspanError(path, "was compiled from other sources", f"compile it again with {command}")
    return library
