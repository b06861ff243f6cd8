"""Main memory of this machine: what is left, and allocating so that it is returned or kept."""

from __future__ import annotations

import ctypes
import math
import mmap
import re
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
    limits = [
        bytes_from_meminfo(_MEMINFO).get("MemAvailable"),
        *(_container_bytes(*files) for files in _CGROUPS),
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def bytes_from_meminfo(path: Path) -> dict[str, int]:
    """The figures of a file like /proc/meminfo in bytes, by name; empty where there is none."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return {}
    return {name: int(kib) << 10 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}


def _container_bytes(limit: Path, use: Path) -> int | None:
    try:
        return max(0, int(limit.read_text()) - int(use.read_text()))
    except (OSError, ValueError):  # no container, or the word "max"
        return None


def array_of_own_pages(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of zeros whose pages go back to the system when it is dropped.

    Allocators keep freed blocks of up to some tens of megabytes, and blocks of such sizes that come and go leave gaps
    between smaller ones: a stream of pictures' rows then takes several times what is in use.
    """
    size = math.prod(shape)
    try:
        pages = mmap.mmap(-1, max(1, size * np.dtype(dtype).itemsize))
    except OSError as error:
        raise MemoryError(f"not enough memory for {shape} {np.dtype(dtype)}") from error
    return np.frombuffer(pages, dtype, size).reshape(shape)


def keep_freed_memory() -> None:
    """Makes glibc reuse large blocks instead of returning them, which halves the time of a step.

    All threads that start later share one arena: of others' `return_freed_memory` does not return all.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 256 << 20), (-8, 1)):
            # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD, M_ARENA_MAX
            mallopt(parameter, value)


def return_freed_memory() -> None:
    """Gives the system back what glibc keeps of freed memory."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
