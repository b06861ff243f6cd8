"""Libraries that the C++ runtime is linked with, built for 64-bit Arm: a folder that CMake searches instead of `/`.

They are those of Debian 12, whose glibc is near that of the oldest target; what they require of the target's is checked
when a package is packed. libpng, libjpeg and zlib go into the programs, because Debian's and Ubuntu's libjpeg have
different sonames and a board may lack the others; libcrypto stays the board's, which gets its security updates.
Each package is pinned by version and hash; a later version that Debian signed is used and reported (`package_lock`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tools.jetson_package.debian import fetch_debian_packages, is_later, unpack_debian_package
from tools.jetson_package.package_lock import (
    LOCK_FILE,
    REFRESH,
    Lock,
    LockedPackage,
    lock_from_file,
    lock_from_packages,
    require_locked,
    write_lock,
)
from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error

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
_PACKAGES: Final = (*STATIC_PACKAGES, *SHARED_PACKAGES)

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


def prepare_sysroot(folder: Path, *, on_step: Callable[[str], None] = lambda _: None) -> Path:
    """Puts the libraries into `folder`, unless they are there already.

    Args:
        folder: their own.
        on_step: called with what is being fetched.

    Returns:
        The sysroot: `folder`, or the one that HSPAN_CROSS_SYSROOT names.

    Raises:
        HspanError: the packages cannot be fetched or are not the pinned ones, or a folder that was named lacks one of
            the libraries.
    """
    if named := os.environ.get(SYSROOT_VARIABLE):
        _check(Path(named), f"{SYSROOT_VARIABLE} names a folder without it")
        return Path(named).absolute()
    folder = folder.absolute()
    lock = lock_from_file()
    if _is_current(_recorded(folder), lock):
        return folder
    on_step(f"{', '.join(_PACKAGES)} of Debian {SUITE} for arm64")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".sysroot.", dir=folder.parent) as scratch:
            tree, fetched = Path(scratch) / "tree", Path(scratch) / "fetched"
            files = _fetched(fetched)
            packages = lock_from_packages(files)
            for name in require_locked(packages, lock, _ADVICE):
                on_step(f"{name} {packages[name].version}, which is later than pinned; {REFRESH} pins it")
            for package in files:
                unpack_debian_package(package, tree, advice=_ADVICE)
            _check(tree, "Debian's packages no longer contain it")
            write_lock(packages, tree / _READY)
            tree.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)
            tree.rename(folder)
    except OSError as error:
        raise error_from_os_error(folder, error) from error
    return folder


def refresh_lock(lock_file: Path = LOCK_FILE) -> dict[str, LockedPackage]:
    """Pins what Debian's mirror has now.

    Args:
        lock_file: where to.

    Returns:
        The packages that were pinned otherwise before, or not at all.

    Raises:
        HspanError: the packages cannot be fetched, or the lock file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="trt-hspan-lock-") as scratch:
        packages = lock_from_packages(_fetched(Path(scratch) / "fetched"))
    try:
        before = lock_from_file(lock_file)
    except HspanError:
        before = {}
    write_lock(packages, lock_file)
    return {name: each for name, each in packages.items() if before.get(name) != each}


def _fetched(folder: Path) -> list[Path]:
    folder.mkdir()
    return fetch_debian_packages(
        _PACKAGES, folder, suite=SUITE, component="main", architecture="arm64", advice=_ADVICE
    )


def linked_versions(sysroot: Path) -> dict[str, str]:
    """Debian's versions of the packages that are linked into programs; empty for a sysroot that a user named."""
    packages = _recorded(sysroot)
    return {name: packages[name].version for name in STATIC_PACKAGES if name in packages}


def notices(sysroot: Path) -> list[Path]:
    """Copyright notices of what is linked into programs; their folders are named as the packages are."""
    files = [sysroot / "usr" / "share" / "doc" / name / "copyright" for name in STATIC_PACKAGES]
    return [path for path in files if path.is_file()]


def _recorded(folder: Path) -> dict[str, LockedPackage]:
    try:
        return lock_from_file(folder / _READY)
    except HspanError:
        return {}


def _is_current(recorded: Lock, lock: Lock) -> bool:
    """Whether a tree's packages are the pinned ones, or later."""
    return recorded.keys() == lock.keys() and all(
        each == lock[name] or is_later(each.version, lock[name].version) for name, each in recorded.items()
    )


def _check(folder: Path, why: str) -> None:
    for name in _NEEDED:
        if not (folder / name).exists():
            raise HspanError(folder / name, f"no such file: {why}", _ADVICE)
