"""Programs for 64-bit Arm on this machine: the cross compiler, and qemu's user emulation."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tools.jetson_package.cross_toolkit import CROSS_COMPILER, CROSS_PACKAGE

#: Where Debian's cross compiler has the target's C and C++ libraries.
SYSTEM_ROOT = Path("/usr/aarch64-linux-gnu")
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

needs_cross_compiler = pytest.mark.skipif(
    shutil.which(CROSS_COMPILER) is None,
    reason=f"{CROSS_COMPILER} is not installed (apt install {CROSS_PACKAGE})",
)
needs_qemu = pytest.mark.skipif(
    QEMU is None, reason="qemu's user emulation is not installed (apt install qemu-user-static)"
)


def emulated(*command: object, libraries: Sequence[Path] = ()) -> list[str]:
    """The command under emulation; it finds its libraries in `libraries` and in the cross compiler's folder."""
    assert QEMU is not None
    path = ":".join(map(str, libraries))
    return [QEMU, "-L", str(SYSTEM_ROOT), "-E", f"LD_LIBRARY_PATH={path}", *map(str, command)]


def run_emulated(
    *command: object,
    libraries: Sequence[Path] = (),
    stdin: bytes = b"",
    stdout: int = subprocess.PIPE,
    timeout: float = 120,
) -> subprocess.CompletedProcess[bytes]:
    """Runs `emulated(*command)`."""
    return subprocess.run(
        emulated(*command, libraries=libraries),
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        timeout=timeout,
    )
