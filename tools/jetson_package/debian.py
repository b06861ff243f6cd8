"""Packages of Debian, fetched by apt and unpacked into folders: nothing is installed, apt's state is not touched.

Works on systems whose apt has a mirror of Debian, and takes from that mirror; apt checks the signatures.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError

_SECONDS: Final = 900


def fetch_debian_packages(
    names: Sequence[str],
    folder: Path,
    *,
    suite: str,
    component: str,
    architecture: str | None = None,
    advice: str,
) -> list[Path]:
    """Fetches packages into `folder`.

    Args:
        names: of packages, as apt takes them: "zlib1g-dev", or "zlib1g-dev=1:1.2" for one version of it.
        folder: an empty one.
        suite, component: where they are, such as "bookworm" and "main".
        architecture: "arm64" and the like; None is this machine's.
        advice: the next step, where Debian's packages cannot be had.

    Returns:
        The .deb files, in the order of `names`.

    Raises:
        HspanError: this system has no apt or no mirror of Debian, or a package cannot be fetched.
    """
    plain = [name.split("=")[0] for name in names]
    apt = _private_apt(folder, suite=suite, component=component, where=plain[0], advice=advice)
    if architecture is not None:
        apt += ["-o", f"APT::Architecture={architecture}", "-o", f"APT::Architectures::={architecture}"]
    run_fetching([*apt, "update"], plain[0], advice)
    run_fetching([*apt, "download", *names], plain[0], advice, folder=folder)
    packages = []
    for name, short in zip(names, plain, strict=True):
        files = list(folder.glob(f"{short}_*.deb"))
        if len(files) != 1:
            raise HspanError(short, f"apt-get fetched no {name}", advice)
        packages.append(files[0])
    return packages


def unpack_debian_package(package: Path, folder: Path, *, advice: str) -> None:
    """Unpacks a .deb's files into `folder`, over what is there. Raises: HspanError when it is none."""
    run_fetching(["dpkg-deb", "-x", str(package), str(folder)], package.name, advice)


def version_from_file_name(package: Path) -> tuple[str, str]:
    """("zlib1g-dev", "1:1.2.13") from zlib1g-dev_1%3a1.2.13_arm64.deb."""
    name, version, _ = package.name.split("_")
    return name, version.replace("%3a", ":")


def is_later(version: str, other: str) -> bool:
    """Whether Debian orders `version` after `other`; False where there is no dpkg."""
    try:
        return (
            subprocess.run(["dpkg", "--compare-versions", version, "gt", other], check=False).returncode == 0
        )
    except OSError:
        return False


def run_fetching(command: list[str], where: str, advice: str, *, folder: Path | None = None) -> str:
    """Runs a program that fetches or unpacks; its standard output.

    Raises:
        HspanError: it takes too long, or fails; the error contains the last line that it printed.
    """
    try:
        completed = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            cwd=folder,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise HspanError(where, f"no answer in {_SECONDS} s", advice) from error
    if completed.returncode != 0:
        lines = (completed.stderr.strip() or completed.stdout.strip() or "no message").splitlines()
        raise HspanError(where, f"cannot be fetched: {lines[-1]}", advice)
    return completed.stdout


def _private_apt(folder: Path, *, suite: str, component: str, where: str, advice: str) -> list[str]:
    """apt-get with sources, lists and cache of its own, in `folder`."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise HspanError(where, f"needs {program}, which is not here", advice)
    listed = run_fetching(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"],
        where,
        advice,
    )
    words = [line.split() for line in listed.splitlines()]
    mirrors = [each[2] for each in words if each[:2] == ["Debian", "Debian"] and len(each) == 3]
    if not mirrors:
        raise HspanError(where, "this system has no Debian package source", advice)
    state = folder / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "sources.list").write_text(f"deb {mirrors[0]} {suite} {component}\n")
    options = [
        f"Dir::Etc::SourceList={state / 'sources.list'}",
        "Dir::Etc::SourceParts=/dev/null",
        f"Dir::State::Lists={state / 'lists'}",
        f"Dir::Cache={state / 'cache'}",
        "APT::Sandbox::User=",
    ]
    return ["apt-get", "-qq", *(word for option in options for word in ("-o", option))]
