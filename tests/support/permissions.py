"""Root may write anywhere; tests of missing permission give that up for a while."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

# linux/capability.h: version 3 takes two records of three 32-bit sets; bits 1 and 2 are
# CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.
_VERSION_3, _DAC_BITS, _EFFECTIVE = 0x20080522, 1 << 1 | 1 << 2, 0


@contextlib.contextmanager
def obeying_permissions() -> Iterator[None]:
    """Makes this thread obey the permission bits of files, as root too."""
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    before = sets[_EFFECTIVE]
    sets[_EFFECTIVE] = before & ~_DAC_BITS
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        sets[_EFFECTIVE] = before
        assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be created or removed in the folder inside the block; an error says so when that fails."""
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    try:
        with obeying_permissions():
            probe = folder / "probe"
            with contextlib.suppress(PermissionError):
                probe.touch()
            assert not probe.exists(), "the folder can be written all the same"
            yield
    finally:
        folder.chmod(mode)
