"""What a server accepts: the figures, the one budget of memory, and what a request over a limit is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Final

from trt_hspan.errors import HspanError, UsageError

#: A request that arrives for longer makes room for another, where there is none.
STALLED_SECONDS: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class ServingLimits:
    """Limits of one server. Each is enforced before the work that it would cost.

    Attributes:
        max_bytes: of one request's body, after any Content-Encoding is undone.
        max_pixels: of one picture or tensor before upscaling, before it is decoded.
        queue_length: requests of one model that may wait; the next is refused.
        queue_time_ms: milliseconds that a request may wait; then it is refused.
        work_time_ms: milliseconds of work on one picture; then it is given up.
        body_time_ms: milliseconds that a client may take to send its request.

    Raises:
        UsageError: a figure below 1.
    """

    max_bytes: int = 64 << 20
    max_pixels: int = 1 << 23
    queue_length: int = 64
    queue_time_ms: int = 30_000
    work_time_ms: int = 300_000
    body_time_ms: int = 30_000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or value < 1:
                raise UsageError(f"--{name.replace('_', '-')}", f"got {value!r}, expected at least 1")

    def as_parameters(self) -> dict[str, str]:
        """The limits as Triton's model parameters, which are texts."""
        return {name: str(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class ServerLimits(ServingLimits):
    """What the server in one process accepts beyond `ServingLimits`.

    Attributes:
        held_bytes: of all bodies and messages that are held, over HTTP and gRPC together.
        work_bytes: of all pictures and results that are worked on.
        connections: that may be open, of each protocol.

    Raises:
        UsageError: a figure below 1, or less memory for all bodies than one may have.
    """

    held_bytes: int = 512 << 20
    work_bytes: int = 2 << 30
    connections: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.held_bytes < self.max_bytes:
            raise UsageError(
                "--held-bytes", f"{self.held_bytes} is less than --max-bytes {self.max_bytes}", "give more"
            )


def limits_from_parameters(parameters: Mapping[str, str], *, where: object) -> ServingLimits:
    """Reads what `as_parameters` wrote; what is missing takes its default."""
    given = {}
    for field in fields(ServingLimits):
        if field.name in parameters:
            try:
                given[field.name] = int(parameters[field.name])
            except ValueError:
                raise HspanError(
                    where,
                    f"parameter {field.name} is {parameters[field.name]!r}, expected a whole number",
                    "correct config.pbtxt",
                ) from None
    return ServingLimits(**given)


class RefusedError(Exception):
    """A request that goes no further: an HTTP status, which also decides gRPC's, and one line for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, " ".join(message.split())


def too_slow() -> RefusedError:
    """What a request is told that gave way."""
    return RefusedError(408, "it went slowly, and another request needed its memory; try again")


class Budget:
    """Memory that requests share. Safe to use from any thread.

    Args:
        total: bytes.
        what: is held; errors name it.

    Attributes:
        largest: of what was ever taken, or since it was set to 0.
    """

    def __init__(self, total: int, what: str) -> None:
        self.total, self._what = total, what
        self._lock = threading.Lock()
        self._open: set[Reservation] = set()
        self.largest = 0

    @property
    def held(self) -> int:
        """Bytes that are taken."""
        with self._lock:
            return sum(each.size for each in self._open)

    def reserve(
        self, size: int = 0, *, on_drop: Callable[[], None] | None = None, after: float = STALLED_SECONDS
    ) -> Reservation:
        """Takes a part, to be given back by `release`.

        Args:
            size: bytes, to begin with.
            on_drop: makes this one give way, once it is older than `after` seconds, where another needs the memory;
                called then, it must let go of the memory.
            after: seconds.

        Raises:
            RefusedError: as `Reservation.grow`.
        """
        reservation = Reservation(self, on_drop, after)
        reservation.grow(size)
        return reservation

    def take(self, reservation: Reservation, size: int) -> None:
        """Sets what a reservation holds. Raises: RefusedError as `Reservation.grow`."""
        if size > self.total:
            raise RefusedError(413, f"it takes {size} bytes of {self._what}, this server has {self.total}")
        with self._lock:
            self._open.add(reservation)
            free = self.total - sum(each.size for each in self._open) + reservation.size - size
            for each in sorted(self._open, key=lambda each: -each.size):
                if free < 0 and each is not reservation and each.gives_way:
                    free += each.size
                    self._open.discard(each)
                    each.drop()
            if free < 0:
                raise RefusedError(503, f"the memory for {self._what} is taken; try again later")
            reservation.size = size
            self.largest = max(self.largest, size)

    def give(self, reservation: Reservation) -> None:
        """Takes everything back from a reservation."""
        with self._lock:
            self._open.discard(reservation)
            reservation.size = 0


class Reservation:
    """What one request holds of a budget: `size` bytes; `dropped` when they were given to another."""

    def __init__(self, budget: Budget, on_drop: Callable[[], None] | None, after: float) -> None:
        self._budget, self._on_drop = budget, on_drop
        self._until = time.monotonic() + after
        self.dropped = False
        self.size = 0

    @property
    def gives_way(self) -> bool:
        """Whether another that needs the memory may have it."""
        return self._on_drop is not None and time.monotonic() > self._until

    def grow(self, to: int) -> None:
        """Holds `to` bytes in all.

        Raises:
            RefusedError: 413 for more than there is in all, 503 for more than is left now, 408 after it was dropped.
        """
        if self.dropped:
            raise too_slow()
        self._budget.take(self, to)

    def settle(self, size: int) -> None:
        """Holds `size` bytes for good: it gives way no more. Raises: RefusedError as `grow`."""
        self.grow(size)
        self._on_drop = None

    def drop(self) -> None:
        """Called by the budget: the memory is another's now."""
        self.dropped, self.size = True, 0
        if self._on_drop is not None:
            self._on_drop()

    def release(self) -> None:
        """Holds nothing any more."""
        self._budget.give(self)
