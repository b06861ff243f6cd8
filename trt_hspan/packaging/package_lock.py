"""Versions and hashes of Debian's packages that programs are linked with: pinned in a file beside this one.

A package of another hash is never used. Debian replaces a package within a suite when it mends it; then
`python scripts/jetson_package.py --refresh-lock` takes the new ones over, and the change is there to be read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error, sha256_from_file, write_text
from trt_hspan.packaging.debian import version_from_file_name

LOCK_FILE: Final = Path(__file__).with_name("sysroot.lock.json")
REFRESH: Final = "python scripts/jetson_package.py --refresh-lock"


@dataclass(frozen=True)
class LockedPackage:
    """Debian's version, and the SHA-256 of the .deb."""

    version: str
    sha256: str


Lock = Mapping[str, LockedPackage]


def lock_from_file(path: Path = LOCK_FILE) -> dict[str, LockedPackage]:
    """The packages of a lock file, or of the record that an unpacked tree holds.

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
    found = {}
    for file in files:
        name, version = version_from_file_name(file)
        found[name] = LockedPackage(version, sha256_from_file(file))
    return found


def require_locked(found: Lock, lock: Lock, advice: str) -> None:
    """Compares packages with what is pinned.

    Args:
        found: what was fetched.
        lock: what is pinned.
        advice: the way out that needs no new lock.

    Raises:
        HspanError: one is not the pinned one.
    """
    for name, each in found.items():
        pinned = lock.get(name)
        if each != pinned:
            raise HspanError(
                name,
                f"the mirror sent version {each.version} with SHA-256 {each.sha256}, "
                + (f"pinned is {pinned.version} with {pinned.sha256}" if pinned else "none is pinned"),
                f"take it over with {REFRESH}, or {advice}",
            )
