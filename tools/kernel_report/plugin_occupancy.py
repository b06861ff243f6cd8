"""Theoretical occupancy of a kernel, computed without a GPU.

Limits: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". Allocation: registers go to
warps in units of 256 within the quarter of a multiprocessor that the warp lives in; shared memory goes to blocks in
units of 128 bytes (256 on Turing), after 1 KiB that CUDA reserves from compute capability 8.0 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trt_hspan.errors import HspanError

WARP_SIZE: Final = 32
REGISTERS_PER_SM: Final = 65536
MAX_REGISTERS_PER_THREAD: Final = 255
MAX_THREADS_PER_BLOCK: Final = 1024

_REGISTER_UNIT: Final = 256
_QUARTERS: Final = 4
_KIB: Final = 1024


@dataclass(frozen=True, kw_only=True)
class SmLimits:
    """The limits of one multiprocessor.

    Attributes:
        warps, blocks: resident at most.
        shared_bytes: shared memory of the multiprocessor, what CUDA keeps included.
        shared_unit_bytes, shared_reserved_bytes: allocation unit; what CUDA keeps of each block's.
    """

    warps: int
    blocks: int
    shared_bytes: int
    shared_unit_bytes: int = 128
    shared_reserved_bytes: int = _KIB

    @property
    def max_shared_per_block_bytes(self) -> int:
        """The most a block may ask for: 48 KiB unless the kernel opts in to more."""
        return self.shared_bytes - self.shared_reserved_bytes


#: By compute capability, 86 being 8.6.
LIMITS: Final = {
    75: SmLimits(warps=32, blocks=16, shared_bytes=64 * _KIB, shared_unit_bytes=256, shared_reserved_bytes=0),
    80: SmLimits(warps=64, blocks=32, shared_bytes=164 * _KIB),
    86: SmLimits(warps=48, blocks=16, shared_bytes=100 * _KIB),
    87: SmLimits(warps=48, blocks=16, shared_bytes=164 * _KIB),
    89: SmLimits(warps=48, blocks=24, shared_bytes=100 * _KIB),
    90: SmLimits(warps=64, blocks=32, shared_bytes=228 * _KIB),
    100: SmLimits(warps=64, blocks=32, shared_bytes=228 * _KIB),
    103: SmLimits(warps=64, blocks=32, shared_bytes=228 * _KIB),
    110: SmLimits(warps=48, blocks=24, shared_bytes=228 * _KIB),
    120: SmLimits(warps=48, blocks=24, shared_bytes=100 * _KIB),
    121: SmLimits(warps=48, blocks=24, shared_bytes=100 * _KIB),
}


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """How many blocks of a kernel one multiprocessor runs at a time.

    Attributes:
        blocks, warps: resident.
        fraction: of the warps that the multiprocessor could run, 0..1.
        limited_by: what runs out first: "registers", "shared memory", "warps" or "blocks".
    """

    blocks: int
    warps: int
    fraction: float
    limited_by: str


def occupancy(architecture: int, *, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Theoretical occupancy of blocks of `threads` threads.

    Args:
        architecture: compute capability, 86 being 8.6.
        threads: of a block, 1..1024.
        registers: of a thread, as ptxas reports them.
        shared_bytes: of a block, static and dynamic.

    Raises:
        HspanError: the limits of this compute capability are unknown, or no such block can run.
    """
    limits = LIMITS.get(architecture)
    if limits is None:
        choices = ", ".join(map(str, LIMITS))
        raise HspanError(f"sm_{architecture}", "its limits are unknown", f"choose among {choices}")
    if not (
        1 <= threads <= MAX_THREADS_PER_BLOCK
        and 0 <= registers <= MAX_REGISTERS_PER_THREAD
        and 0 <= shared_bytes <= limits.max_shared_per_block_bytes
    ):
        raise HspanError(
            f"sm_{architecture}",
            f"no block of {threads} threads, {registers} registers and {shared_bytes} bytes of shared memory runs",
        )
    warps = -(-threads // WARP_SIZE)
    per_warp = max(_rounded_up(registers * WARP_SIZE, _REGISTER_UNIT), 1)
    by_registers = REGISTERS_PER_SM // _QUARTERS // per_warp * _QUARTERS // warps
    if per_warp * _rounded_up(warps, _QUARTERS) > REGISTERS_PER_SM:
        by_registers = 0  # a launch is checked as if all quarters took the same number of warps
    shared = _rounded_up(shared_bytes + limits.shared_reserved_bytes, limits.shared_unit_bytes)
    by_shared = limits.shared_bytes // shared if shared else limits.blocks
    bounds = {
        "registers": by_registers,
        "shared memory": by_shared,
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
    }
    limited_by = min(bounds, key=lambda name: bounds[name])
    blocks = bounds[limited_by]
    return Occupancy(
        blocks=blocks, warps=blocks * warps, fraction=blocks * warps / limits.warps, limited_by=limited_by
    )


def _rounded_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
