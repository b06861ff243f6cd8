"""How much a server accepts at a time: the counts behind "busy", and the metrics of refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from trt_hspan.serving.limits import ServingLimits

#: Bodies of this many largest requests are held at a time, whatever the number of clients.
BUFFERED_BODIES: Final = 4


class RefusedError(Exception):
    """A request that goes no further: an HTTP status and one line for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Admission:
    """Counts requests and the bytes of their bodies; both doors share one."""

    def __init__(self, limits: ServingLimits) -> None:
        self.limits = limits
        self.requests: Counter[tuple[str, str]] = Counter()
        self._in_flight = 0
        self._bytes = 0

    @property
    def in_flight(self) -> int:
        """Inference requests that are being worked on or wait."""
        return self._in_flight

    @contextmanager
    def slot(self, *, counted: bool = True) -> Iterator[Reservation]:
        """A place for one request; what is no inference is not counted, only its bytes.

        Raises RefusedError, 503, when all are taken. The models' own queues refuse too; this one guards the memory.
        """
        if counted and self._in_flight >= 2 * self.limits.queue_length:
            raise RefusedError(503, f"the server is busy with {self._in_flight} requests; try again later")
        self._in_flight += counted
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self._in_flight -= counted
            reservation.release()

    def take(self, count: int) -> None:
        """Counts bytes that are held. Raises: RefusedError 503 when they would be too many."""
        if self._bytes and self._bytes + count > BUFFERED_BODIES * self.limits.max_bytes:
            raise RefusedError(503, "the server is at its limit; try again later")
        self._bytes += count

    def give(self, count: int) -> None:
        """Counts bytes that are held no longer."""
        self._bytes -= count

    def metrics(self) -> str:
        """Prometheus' text format."""
        lines = [
            "# HELP trt_hspan_requests_total Requests at the server's doors by their outcome",
            "# TYPE trt_hspan_requests_total counter",
            *(
                f'trt_hspan_requests_total{{via="{via}",status="{status}"}} {count}'
                for (via, status), count in sorted(self.requests.items())
            ),
            "# HELP trt_hspan_in_flight Inference requests that are worked on or wait",
            "# TYPE trt_hspan_in_flight gauge",
            f"trt_hspan_in_flight {self._in_flight}",
            "# HELP trt_hspan_held_bytes Bytes of request bodies that are held",
            "# TYPE trt_hspan_held_bytes gauge",
            f"trt_hspan_held_bytes {self._bytes}",
        ]
        return "\n".join([*lines, ""])


class Reservation:
    """The bytes that one request holds."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._count = 0

    def grow(self, to: int) -> None:
        """Holds `to` bytes in all. Raises: RefusedError 413 over the limit of one request, 503 over that of all."""
        if to > self._admission.limits.max_bytes:
            raise RefusedError(
                413,
                f"the request has more than the {self._admission.limits.max_bytes} bytes that are accepted",
            )
        if to > self._count:
            self._admission.take(to - self._count)
            self._count = to

    def release(self) -> None:
        """Holds nothing any more."""
        self._admission.give(self._count)
        self._count = 0
