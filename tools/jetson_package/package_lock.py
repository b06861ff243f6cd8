"""Versions and hashes of Debian's packages that programs are linked with: pinned in a file beside this one.

A package of the pinned version and another hash is never used, nor an older one. Debian replaces a package within a
suite when it fixes it: a later version, whose signature apt has checked, is used, reported and recorded, and
`python scripts/jetson_package.py --refresh-lock` pins it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tools.jetson_package.debian import is_later, version_from_file_name
from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error, sha256_from_file, write_text

LOCK_FILE: Final = Path(__file__).with_name("sysroot.lock.json")
REFRESH: Final = "python scripts/jetson_package.py --refresh-lock"


@dataclass(frozen=True)
class LockedPackage:
    """Debian's version, and the SHA-256 of the .deb."""

    version: str
    sha256: str


Lock = Mapping[str, LockedPackage]


def lock_from_file(path: Path = LOCK_FILE) -> dict[str, LockedPackage]:
    """The packages of a lock file, or of the record that an unpacked tree contains.

    Raises:
        HspanError: it cannot be read, or is none.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise error_from_os_error(path, error, action="read") from error
    try:
        listed = json.loads(text)["packages"]
        return {name: LockedPackage(**each) for name, each in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HspanError(path, "is no lock of packages", f"write it anew: {REFRESH}") from error


def write_lock(packages: Lock, path: Path = LOCK_FILE) -> None:
    """Writes a lock file whole. Raises: HspanError as `atomic_path` does."""
    listed = {name: asdict(each) for name, each in packages.items()}
    write_text(path, json.dumps({"packages": listed}, indent=2) + "\n")


def lock_from_packages(files: Sequence[Path]) -> dict[str, LockedPackage]:
    """What these .deb files are. Raises: HspanError when one cannot be read."""
    packages = {}
    for file in files:
        name, version = version_from_file_name(file)
        packages[name] = LockedPackage(version, sha256_from_file(file))
    return packages


def require_locked(fetched: Lock, lock: Lock, advice: str) -> list[str]:
    """Compares packages with what is pinned.

    Args:
        fetched: the packages that the mirror sent.
        lock: what is pinned.
        advice: the way out that needs no new lock.

    Returns:
        The names of those that are later than pinned.

    Raises:
        HspanError: one is older than the pinned one, or its equal in version and not in hash, or is not pinned.
    """
    later = []
    for name, each in fetched.items():
        pinned = lock.get(name)
        if each == pinned:
            continue
        if pinned is None or not is_later(each.version, pinned.version):
            raise HspanError(
                name,
                f"the mirror sent version {each.version} with SHA-256 {each.sha256}, "
                + (f"pinned is {pinned.version} with {pinned.sha256}" if pinned else "none is pinned"),
                f"look at the mirror; take it over with {REFRESH}, or {advice}",
            )
        later.append(name)
    return later
