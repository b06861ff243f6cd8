"""Wheels of a pinned version and hash: downloaded with pip and unpacked, never installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError
from trt_hspan.files import sha256_from_file

_SECONDS: Final = 900


def unpack_pinned_wheel(
    requirement: str,
    sha256: str,
    folder: Path,
    *,
    place: Callable[[str], str | None],
    platforms: Sequence[str] = (),
    advice: str,
) -> None:
    """Downloads one wheel, without its dependencies, and unpacks files of it into a folder.

    Args:
        requirement: name and version, such as "kernel-lens==2.0.1".
        place: the path below `folder` of a file, by its name in the wheel; None leaves it out.
        platforms: tags of another machine, such as "manylinux2014_aarch64"; none stand for this one.
        advice: the next step for a user whose pip cannot download it.

    Raises HspanError: pip is missing, cannot reach the package index, or gets a file of another hash; a path leaves the
    folder.
    """
    with tempfile.TemporaryDirectory(prefix="trt-hspan-wheel-") as temporary:
        wheel = _download(requirement, Path(temporary), platforms, advice)
        actual = sha256_from_file(wheel)
        if actual != sha256:
            raise HspanError(
                requirement, f"the package index sent a file with SHA-256 {actual}, expected {sha256}", advice
            )
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                path = None if name.endswith("/") else place(name)
                if path is None:
                    continue
                target = folder / path
                if not target.resolve().is_relative_to(folder.resolve()):
                    raise HspanError(requirement, f"{name} would leave {folder}", advice)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, target.open("wb") as output:
                    shutil.copyfileobj(source, output)


def _download(requirement: str, folder: Path, platforms: Sequence[str], advice: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    command += [word for tag in platforms for word in ("--platform", tag)]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise HspanError(requirement, f"no answer from the package index in {_SECONDS} s", advice) from error
    if "No module named pip" in process.stderr:
        raise HspanError(requirement, "pip is missing in this environment", "python -m ensurepip")
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        errors = process.stderr.strip().splitlines() or ["pip gives no reason"]
        raise HspanError(
            requirement,
            f"cannot be fetched from the package index: {errors[-1].removeprefix('ERROR: ')}",
            advice,
        )
    return wheels[0]
