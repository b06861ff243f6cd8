"""The C++ sources of the compiled libraries, and where the libraries are kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError
from trt_hspan.files import cache_folder, sha256_from_file
from trt_hspan.version import __version__

_PACKAGE: Final = Path(__file__).resolve().parents[1]
# Of plugins/; the other folders there are other products.
_PLUGIN_FOLDERS: Final = ("device", "kernels", "tensorrt")


def is_checkout(root: Path) -> bool:
    """Whether a folder contains the sources of the libraries."""
    return (root / "CMakeLists.txt").is_file() and (root / "plugins" / "CMakeLists.txt").is_file()


def sources_folder() -> Path:
    """The folder of CMakeLists.txt and plugins/: in an installed wheel, or the checkout."""
    for folder in (_PACKAGE / "_sources", _PACKAGE.parent):
        if is_checkout(folder):
            return folder
    raise HspanError(
        _PACKAGE, "this installation contains no sources of the libraries", "install trt-hspan again"
    )


def library_path(file_name: str, *, variable: str, folder: str) -> Path:
    """Where a library is kept: as an environment variable says, in build/`folder` of a checkout, else in the cache."""
    if named := os.environ.get(variable):
        return Path(named)
    if is_checkout(_PACKAGE.parent):
        return _PACKAGE.parent / "build" / folder / file_name
    return cache_folder() / __version__ / file_name


def plugin_sources_sha256(root: Path) -> str:
    """One hash over the names and contents of all files that the plugin is compiled from."""
    plugins = root / "plugins"
    paths = [*plugins.glob("*"), *(path for name in _PLUGIN_FOLDERS for path in (plugins / name).rglob("*"))]
    sources = [path for path in paths if path.is_file() and path.suffix != ".md"]
    return _sha256_from_files(root, [root / "CMakeLists.txt", *sources])


def cpu_sources_sha256(root: Path) -> str:
    """The same for the CPU library."""
    folder = root / "plugins" / "cpu"
    return _sha256_from_files(
        folder, [path for path in folder.iterdir() if path.suffix in {".h", ".cpp", ".txt"}]
    )


def _sha256_from_files(root: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256_from_file(path)}\n".encode())
    return digest.hexdigest()
