"""Libraries that the C++ runtime is linked with, built for 64-bit Arm: a folder that CMake searches instead of `/`.

They are those of Debian 12, whose glibc is near that of the oldest target; what they ask of the target's is checked
when a package is packed. libpng, libjpeg and zlib go into the programs, because Debian's and Ubuntu's libjpeg have
different sonames and a board may lack the others; libcrypto stays the board's, which gets its security updates.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error
from trt_hspan.packaging.debian import (
    fetch_debian_packages,
    unpack_debian_package,
    version_from_file_name,
)

#: Names a folder with usr/include and usr/lib/aarch64-linux-gnu of one's own, instead of Debian's packages.
SYSROOT_VARIABLE: Final = "HSPAN_CROSS_SYSROOT"

SUITE: Final = "bookworm"
#: Linked into the programs; their notices go into the package.
STATIC_PACKAGES: Final = (
    "libpng-dev",
    "libjpeg62-turbo-dev",
    "zlib1g-dev",
    "nlohmann-json3-dev",
    "libcli11-dev",
)
#: Headers, and the library itself, which the linker looks into.
SHARED_PACKAGES: Final = ("libssl-dev", "libssl3")

_READY: Final = ".complete"
_NEEDED: Final = (
    "usr/include/png.h",
    "usr/include/jpeglib.h",
    "usr/include/zlib.h",
    "usr/include/nlohmann/json.hpp",
    "usr/include/CLI/CLI.hpp",
    "usr/lib/aarch64-linux-gnu/libpng16.a",
    "usr/lib/aarch64-linux-gnu/libjpeg.a",
    "usr/lib/aarch64-linux-gnu/libz.a",
    "usr/lib/aarch64-linux-gnu/libcrypto.so",
)
_ADVICE: Final = f"name a folder with these libraries for aarch64 by {SYSROOT_VARIABLE}"


def prepare_sysroot(folder: Path, *, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Puts the libraries into `folder`, unless they are there already.

    Args:
        folder: their own.
        tell: told what is being fetched.

    Returns:
        The sysroot: `folder`, or the one that HSPAN_CROSS_SYSROOT names.

    Raises:
        HspanError: the packages cannot be fetched, or a folder that was named lacks one of the libraries.
    """
    if named := os.environ.get(SYSROOT_VARIABLE):
        _check(Path(named), f"{SYSROOT_VARIABLE} names a folder without it")
        return Path(named).absolute()
    folder = folder.absolute()
    packages = (*STATIC_PACKAGES, *SHARED_PACKAGES)
    if _recorded(folder).keys() == set(packages):
        return folder
    tell(f"{', '.join(packages)} of Debian {SUITE} for arm64")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".sysroot.", dir=folder.parent) as scratch:
            tree, fetched = Path(scratch) / "tree", Path(scratch) / "fetched"
            fetched.mkdir()
            found = fetch_debian_packages(
                packages, fetched, suite=SUITE, component="main", architecture="arm64", advice=_ADVICE
            )
            for package in found:
                unpack_debian_package(package, tree, advice=_ADVICE)
            _check(tree, "Debian's packages hold it no more")
            versions = dict(map(version_from_file_name, found))
            (tree / _READY).write_text(json.dumps(versions))
            tree.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)
            tree.rename(folder)
    except OSError as error:
        raise error_from_os_error(folder, error) from error
    return folder


def linked_versions(sysroot: Path) -> dict[str, str]:
    """Debian's versions of the packages that are linked into programs; empty for a sysroot that a user named."""
    versions = _recorded(sysroot)
    return {name: versions[name] for name in STATIC_PACKAGES if name in versions}


def notices(sysroot: Path) -> list[Path]:
    """Copyright notices of what is linked into programs; their folders are named as the packages are."""
    found = [sysroot / "usr" / "share" / "doc" / name / "copyright" for name in STATIC_PACKAGES]
    return [path for path in found if path.is_file()]


def _recorded(folder: Path) -> dict[str, str]:
    try:
        versions = json.loads((folder / _READY).read_text())
    except (OSError, ValueError):
        return {}
    return versions if isinstance(versions, dict) else {}


def _check(folder: Path, why: str) -> None:
    for name in _NEEDED:
        if not (folder / name).exists():
            raise HspanError(folder / name, f"no such file: {why}", _ADVICE)
