"""What requests go no further than: the memory that they share, and what they are answered instead.

Here alone errors become what clients read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.media.decoders import DecoderError
from trt_hspan.media.formats import WRITE_FORMATS
from trt_hspan.serving.events import log_event
from trt_hspan.upscaling.scheduler import DeviceError, RunError

#: A request that arrives for longer makes room for another, where there is none.
STALLED_SECONDS: Final = 1.0


class RefusedError(Exception):
    """A request that goes no further: an HTTP status, which also decides gRPC's, and one line for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, " ".join(message.split())


def stopping() -> RefusedError:
    """What a request hears when the server stops."""
    return RefusedError(503, "the server stops; try another one, or again later")


def too_slow() -> RefusedError:
    """What a request hears that gave way."""
    return RefusedError(408, "it went slowly, and another request needed its memory; try again")


def gone() -> RefusedError:
    """Why work is given up whose client has left; the status is for the log and the metrics only."""
    return RefusedError(499, "the client has left")


def suffix_from_format(kind: str) -> str:
    """The suffix of a result's files: "webp" is .webp. Raises: RefusedError, 400, for what is not written."""
    if f".{kind}" not in WRITE_FORMATS:
        expected = ", ".join(suffix[1:] for suffix in WRITE_FORMATS)
        raise RefusedError(400, f"format is {kind[:40]!r}, expected one of {expected}")
    return f".{kind}"


def refusal_from_error(error: BaseException) -> RefusedError:
    """What a request is answered that failed; what a client must not see goes to the log."""
    if isinstance(error, RefusedError):
        return error
    status, message = 500, f"unexpected {type(error).__name__}"
    if isinstance(error, (OutOfMemoryError, MemoryError)):
        status, message = 503, "it does not fit in the server's memory now; try again later"
    elif isinstance(error, HspanError):
        status, message = 400, str(error)
    elif isinstance(error, DecoderError):
        status, message = 400, f"picture: its decoder failed: {error}"
    elif isinstance(error, DeviceError):
        status, message = 503, "the GPU failed; the server ends"
    elif isinstance(error, RunError):
        message = "the network failed on this input; the server's log says why"
    if status != 400:
        log_event("failed", level=logging.ERROR, why=f"{type(error).__name__}: {error}")
    return RefusedError(status, message)


class Budget:
    """Memory that requests share, `total` bytes of it; errors name `what` is held. Safe to use from any thread."""

    def __init__(self, total: int, what: str) -> None:
        self.total, self.what = total, what
        self.lock = threading.Lock()
        self.open: set[Reservation] = set()

    @property
    def held(self) -> int:
        """Bytes that are taken."""
        with self.lock:
            return sum(each.size for each in self.open)

    def reserve(
        self, size: int = 0, *, on_drop: Callable[[], object] | None = None, after: float = STALLED_SECONDS
    ) -> Reservation:
        """Takes `size` bytes to begin with. Raises: RefusedError as `Reservation.grow`.

        Once it is older than `after` seconds it gives way where another needs the memory: then `on_drop` is called,
        which must let go of the memory.
        """
        reservation = Reservation(self, on_drop, time.monotonic() + after)
        reservation.grow(size)
        return reservation


class Reservation:
    """What one request holds of a budget: `size` bytes; `dropped` when they were given to another."""

    def __init__(self, budget: Budget, on_drop: Callable[[], object] | None, until: float) -> None:
        self._budget, self._on_drop, self._until = budget, on_drop, until
        self.dropped = False
        self.size = 0

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def grow(self, to: int) -> None:
        """Holds `to` bytes in all.

        Raises:
            RefusedError: 413 for more than there is in all, 503 for more than is left now, 408 after it was dropped.
        """
        budget, now = self._budget, time.monotonic()
        if self.dropped:
            raise too_slow()
        if to > budget.total:
            raise RefusedError(413, f"it takes {to} bytes of {budget.what}, this server has {budget.total}")
        with budget.lock:
            others = sorted(budget.open - {self}, key=lambda each: -each.size)
            free = budget.total - to - sum(each.size for each in others)
            for each in others:
                if free < 0 and each._on_drop is not None and now > each._until:
                    free += each.size
                    budget.open.discard(each)
                    each.dropped, each.size = True, 0
                    each._on_drop()
            if free < 0:
                raise RefusedError(503, f"the memory for {budget.what} is taken; try again later")
            budget.open.add(self)
            self.size = to

    def settle(self, size: int) -> None:
        """Holds `size` bytes for good: it gives way no more. Raises: RefusedError as `grow`."""
        self.grow(size)
        self._on_drop = None

    def release(self) -> None:
        """Holds nothing any more."""
        with self._budget.lock:
            self._budget.open.discard(self)
            self.size = 0
