"""The C++ sources of the compiled libraries, and where the libraries are kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError
from trt_hspan.files import cache_folder, sha256_from_file
from trt_hspan.version import __version__

_PACKAGE: Final = Path(__file__).resolve().parents[1]
#: Of a platform wheel: the compiled libraries, as hatch_build.py puts them there.
_SHIPPED: Final = _PACKAGE / "_libraries"
# Of plugins/; the other folders there are other products.
_KERNEL_FOLDERS: Final = ("device", "kernels")
_PLUGIN_FOLDERS: Final = (*_KERNEL_FOLDERS, "tensorrt")
_CUDA_FOLDERS: Final = (*_KERNEL_FOLDERS, "cuda")


def is_checkout(root: Path) -> bool:
    """Whether a folder contains the sources of the libraries."""
    return (root / "CMakeLists.txt").is_file() and (root / "plugins" / "CMakeLists.txt").is_file()


def sources_folder() -> Path:
    """The folder of CMakeLists.txt and plugins/: in an installed wheel, or the checkout."""
    folder = _sources_if_any()
    if folder is None:
        raise HspanError(
            _PACKAGE, "this installation contains no sources of the libraries", "install trt-hspan again"
        )
    return folder


def _sources_if_any() -> Path | None:
    return next(filter(is_checkout, (_PACKAGE / "_sources", _PACKAGE.parent)), None)


@dataclass(frozen=True, kw_only=True)
class LibraryPlaces:
    """Where a compiled library may lie.

    Attributes:
        file_name: of the library.
        variable: the environment variable that names it.
        folder: its folder in the build folder of a checkout.
        sources_sha256: hash of the sources that it is compiled from, given their folder.
    """

    file_name: str
    variable: str
    folder: str
    sources_sha256: Callable[[Path], str]

    def path(self) -> Path:
        """The library to use: as the environment variable says, in build/ of a checkout, compiled here, else shipped.

        One that was compiled here was asked for, for another GPU than the wheel's, and goes first.
        """
        own, shipped = self.own_path(), _SHIPPED / self.file_name
        named = os.environ.get(self.variable)
        return own if named or own.is_file() or not shipped.is_file() else shipped

    def own_path(self) -> Path:
        """Where a library that is compiled here goes: never into the installed package."""
        if named := os.environ.get(self.variable):
            return Path(named)
        if is_checkout(_PACKAGE.parent):
            return _PACKAGE.parent / "build" / self.folder / self.file_name
        sources = _sources_if_any()  # the name leads past what was compiled from other ones
        version = __version__ if sources is None else f"{__version__}-{self.sources_sha256(sources)[:16]}"
        return cache_folder() / version / self.file_name


def plugin_sources_sha256(root: Path) -> str:
    """One hash over the names and contents of all files that the plugin is compiled from."""
    return _sha256_from_folders(root, _PLUGIN_FOLDERS)


def cuda_sources_sha256(root: Path) -> str:
    """The same for the CUDA library."""
    return _sha256_from_folders(root, _CUDA_FOLDERS)


def cpu_sources_sha256(root: Path) -> str:
    """The same for the CPU library."""
    folder = root / "plugins" / "cpu"
    return _sha256_from_files(
        folder, [path for path in folder.iterdir() if path.suffix in {".h", ".cpp", ".txt"}]
    )


def _sha256_from_folders(root: Path, folders: Iterable[str]) -> str:
    plugins = root / "plugins"
    paths = [
        *plugins.glob("*"),
        plugins / "cuda" / "nvcc.options",  # names the kernels' sources
        *(path for name in folders for path in (plugins / name).rglob("*")),
    ]
    sources = {path for path in paths if path.is_file() and path.suffix != ".md"}
    return _sha256_from_files(root, [root / "CMakeLists.txt", *sources])


def _sha256_from_files(root: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256_from_file(path)}\n".encode())
    return digest.hexdigest()
