"""Memory of this machine."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_MEMINFO: Final = Path("/proc/meminfo")
# Limit and use of the container that the process is in: cgroup v2, then v1.
_CGROUPS: Final = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def available_memory_bytes() -> int | None:
    """Main memory that this process may still take without swapping; None where Linux does not say."""
    figures = [_machine_bytes(), *(_container_bytes(limit, use) for limit, use in _CGROUPS)]
    known = [figure for figure in figures if figure is not None]
    return min(known) if known else None


def _machine_bytes() -> int | None:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def _container_bytes(limit: Path, use: Path) -> int | None:
    try:
        return max(0, int(limit.read_text()) - int(use.read_text()))
    except (OSError, ValueError):  # no container, or the word "max"
        return None


def array_of_own_pages(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of zeros whose pages go back to the system when it is dropped.

    Allocators keep freed blocks of up to some tens of megabytes, and blocks of such sizes that come and go leave gaps
    between smaller ones: a stream of pictures' rows then takes several times what is in use.

    Raises:
        MemoryError: the system has none left.
    """
    size = math.prod(shape)
    try:
        pages = mmap.mmap(-1, max(1, size * np.dtype(dtype).itemsize))
    except OSError as error:
        raise MemoryError(f"not enough memory for {shape} {np.dtype(dtype)}") from error
    return np.frombuffer(pages, dtype, size).reshape(shape)


def keep_freed_memory() -> None:
    """Tells glibc to reuse large blocks instead of returning them, which halves the time of a step."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 256 << 20)):  # M_MMAP_MAX, M_TRIM_, M_TOP_PAD
            mallopt(parameter, value)
