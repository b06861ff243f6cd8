"""Main memory: whether there is enough for a run, checked before the work."""

from __future__ import annotations

from trt_hspan.errors import HspanError
from trt_hspan.machine.memory import available_memory_bytes
from trt_hspan.runtime.runner import Limits


def require_memory(
    runner: Limits, shape: tuple[int, int, int, int], what: object, next_step: str = "give a smaller picture"
) -> None:
    """Checks that a run would not obviously fill the main memory.

    Args:
        runner: what would run.
        shape: (N, 3, H, W) of the input.
        what: what has the shape; errors name it.
        next_step: what a user can do about it.

    Raises:
        HspanError: the runner's lower estimate exceeds what is available.
    """
    available = available_memory_bytes()
    needed = runner.memory_bytes(shape)
    if available is not None and needed > available:
        height, width = shape[2:]
        raise HspanError(
            what,
            f"{height}x{width} pixels as a whole need about {needed / 1e9:.1f} GB of memory under {runner.name}, "
            f"{available / 1e9:.1f} GB are available",
            next_step,
        )
