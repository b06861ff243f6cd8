"""Fair turns on the devices: the tiles of all requests in one queue, in turn by request, batched by shape.

A `Model` is one loaded network: a thread for each device, and on a CPU for each instance, with a runner of its own. A
`Job` is one request's part of the queue. What is computed is decided in `upscaling`; here only when, and with whom.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from trt_hspan.errors import OutOfMemoryError, UsageError
from trt_hspan.runtime.runner import CHANNELS, Float32Array, Runner, Shape
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tile_size import CPU_TILE, batch_limits, rounded_down, rounded_up

#: Items of one run on a CPU, of no more pixels in all than a tile has: *measured*, four tiles at a time take 151 MB and
#: one 33 MB, in the same time for each. Of one request only one, which then gets what it would get alone, to the bit.
CPU_BATCH: Final = 4
SMALLEST_SIDE: Final = 8
#: Pixels of a run on a CPU that nothing interrupts. *Measured*: 160x160 take as long as some 12 tiles of 64x64.
_WHOLE_PIXELS: Final = 160 * 160
Ranges = tuple[tuple[Shape, Shape], ...]
#: What becomes of batches, in their order; it may take a few before it gives the first.
Results = Callable[[Iterable[Float32Array]], Iterator[Float32Array]]


class DeviceError(Exception):
    """A GPU that failed: nothing more can be expected of this process."""


class RunError(Exception):
    """A run that failed; others may succeed."""


class TileRunner(Runner):
    """Tiles go to whatever `results` is; `ranges` are the smallest and largest (N, 3, H, W) that it takes.

    Args:
        size_multiple: sides of tiles are multiples of this.
    """

    name, precision, emulated = "server", "fp32", False

    def __init__(
        self, where: str, scale: int, ranges: Ranges, results: Results, *, size_multiple: int = 1
    ) -> None:
        self.where, self.scale, self.profiles, self._results = where, scale, ranges, results
        self.size_multiple = size_multiple

    def activate(self) -> None:
        pass

    def deactivate(self) -> None:
        pass

    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """The result; the network's own memory is counted where it runs."""
        n, _, height, width = shape
        return 4 * n * CHANNELS * height * width * self.scale**2

    def infer(self, batch: Float32Array) -> Float32Array:
        return next(self._results([batch]))

    def run_many(self, batches: Iterable[Float32Array]) -> Iterator[Float32Array]:
        return self._results(map(self._checked_input, batches))


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What runs in one piece: (N, 3, H, W), the job it is of, and where the result goes."""

    job: Job
    batch: Float32Array
    result: Future[Float32Array] = field(default_factory=Future)


class TileQueue:
    """Units that wait: each job's in order, jobs in turn."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._waiting: dict[Job, deque[Unit]] = {}  # in the order of their turns
        self._closed = False

    def put(self, units: Iterable[Unit]) -> None:
        with self._lock:
            for unit in units:
                self._waiting.setdefault(unit.job, deque()).append(unit)
            self._lock.notify_all()

    def drop(self, job: Job) -> None:
        """A job's units wait no more."""
        with self._lock:
            units = self._waiting.pop(job, deque())
        for unit in units:
            unit.result.cancel()

    def take(self, most: Callable[[tuple[int, ...]], int], *, several: bool) -> list[Unit]:
        """The next units, all of one height and width; none when the queue is closed.

        Args:
            most: how many items of a shape run together.
            several: whether a job gives more than one.
        """
        with self._lock:
            self._lock.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            first, taken = next(iter(self._waiting.values()))[0].batch, []
            left = max(most(first.shape), len(first))
            while given := self._round(first.shape[2:], left):
                taken += given
                left -= sum(len(unit.batch) for unit in given)
                if not several:
                    break
        for unit in taken:
            unit.result.set_running_or_notify_cancel()
        return taken

    def close(self) -> None:
        """Lets `take` return without units once there are none."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def _round(self, side: tuple[int, ...], left: int) -> list[Unit]:
        """At most one unit of each job, of this height and width and no more than `left` items in all; who gave goes
        to the end of the line."""
        given: list[Unit] = []
        for job, units in list(self._waiting.items()):
            count = len(units[0].batch)
            if units[0].batch.shape[2:] == side and count <= left:
                given.append(units.popleft())
                job.has_begun = True
                left -= count
                del self._waiting[job]
                if units:
                    self._waiting[job] = units
        return given


class Job:
    """One request's units. Used by one thread; `cancel` may come from any.

    Attributes:
        state: receiving, decoding, working, encoding, done or failed.
        done, total: tiles, for those who wait; total is 0 until it is known.
        has_begun: whether a device has had one of its units.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.state = "receiving"
        self.done = self.total = 0
        self.has_begun = False
        self._why: BaseException | None = None
        self._lock = threading.Lock()

    @property
    def runner(self) -> TileRunner:
        """The model as this job sees it: a runner whose tiles wait for their turn."""
        model = self.model
        step = model.runner.size_multiple
        return TileRunner(model.name, model.scale, model.tile_ranges, self.results, size_multiple=step)

    def cancel(self, why: BaseException) -> None:
        """Gives the units back at once; what waits for one raises `why`."""
        with self._lock:
            self._why = self._why or why
        self.model.queue.drop(self)

    def check(self) -> None:
        """Raises: the reason of `cancel`."""
        if self._why is not None:
            raise self._why

    def on_tile(self, done: int, total: int) -> None:
        """Notes the progress. Raises: as `check`."""
        self.done, self.total = done, total
        self.check()

    def submit(self, batch: Float32Array) -> Future[Float32Array]:
        """(N, 3, H, W), to be run. Raises: as `check`."""
        unit = Unit(job=self, batch=batch)
        with self._lock:
            self.check()
            self.model.put([unit])
        return unit.result

    def results(self, batches: Iterable[Float32Array]) -> Iterator[Float32Array]:
        """What becomes of batches, in their order, a few in the queue at a time. Raises: as `result`."""
        pending: deque[Future[Float32Array]] = deque()
        for batch in batches:
            pending.append(self.submit(batch))
            if len(pending) >= self.model.window:
                yield self.result(pending.popleft())
        while pending:
            yield self.result(pending.popleft())

    def result(self, pending: Future[Float32Array]) -> Float32Array:
        """What became of a batch. Raises: as `check`; RunError, DeviceError, MemoryError of the run."""
        try:
            return pending.result()
        finally:
            self.check()


class Model:
    """A network, loaded on one or several devices.

    Args:
        openers: of the runners, one for each device.
        cpu_instances: threads with a runner of their own, where the first runner is on a CPU.
        name: of the network, as clients see it.
        tile: largest tile; None is the network's own largest, and on a CPU `tile_size.CPU_TILE`.
        version: a number that goes up with each reload.
        on_failure: called with the DeviceError when a GPU fails.

    Attributes:
        runner: one of the runners, for its facts.
        tile_ranges: smallest and largest (N, 3, H, W) of tiles.
        runs, items: so far.
    """

    runner: Runner

    def __init__(
        self,
        openers: Sequence[Callable[[], Runner]],
        *,
        name: str,
        cpu_instances: int = 1,
        tile: ImageSize | None = None,
        version: int = 1,
        on_failure: Callable[[DeviceError], object] = lambda _: None,
    ) -> None:
        self.name, self.version = name, version
        self.queue = TileQueue()
        self.runs = self.items = 0
        self.tile_ranges: Ranges = ()
        self._tile, self._on_failure = tile, on_failure
        self._openers, self._cpu_instances = list(openers), cpu_instances
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._pending = 0
        self._asked = 0.0
        self._waiting_since: float | None = None  # the first of those that no success has followed

    def open(self) -> None:
        """Loads the network and runs it once on each device.

        Raises:
            HspanError: as `runtime.opening.open_runner`; its file contains no scale; it gives no result.
            UsageError: the tile does not suit the network.
        """
        try:
            self._start(self._openers[0])
            more = self._openers[1:] if self.runner.on_gpu else self._openers[:1] * (self._cpu_instances - 1)
            for opener in more:
                self._start(opener)
        except BaseException:
            self.close()
            raise

    def close(self, seconds: float = 2.0) -> None:
        """Ends the threads once their queue is empty; unloads the network. Waits so long at most."""
        self.queue.close()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def scale(self) -> int:
        return self.runner.scale

    @property
    def window(self) -> int:
        """Units that one job may have in the queue: enough to keep every device busy."""
        largest = max((high for _, high in self.tile_ranges), key=lambda shape: shape[2] * shape[3])
        return 2 * len(self._threads) * (self.most(largest) if self.runner.on_gpu else 1)

    def most(self, shape: tuple[int, ...]) -> int:
        """How many items of a shape run together."""
        size = ImageSize(*shape[2:])
        most = batch_limits(self.runner, size, requested=CPU_BATCH)[1]
        return most if self.runner.on_gpu else max(1, min(most, CPU_TILE**2 // size.pixels))

    def least(self, shape: tuple[int, ...]) -> int:
        """How many items of a shape the network takes at least; fewer are filled up with the last one repeated."""
        return batch_limits(self.runner, ImageSize(*shape[2:]), requested=1)[0]

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Raises: HspanError unless the network takes an input of this shape, filled up if need be."""
        self.runner.require_shape((max(shape[0], self.least(shape)), *shape[1:]), "input")

    def runs_whole(self, size: ImageSize) -> bool:
        """Whether what has this size runs in one piece: the network takes it, and on a CPU nobody waits for long."""
        return takes_size(self.runner, size) and (self.runner.on_gpu or size.pixels <= _WHOLE_PIXELS)

    def put(self, units: Sequence[Unit]) -> None:
        """Puts units into the queue; a device sees all of them at once."""
        with self._lock:
            self._pending += len(units)
            self._asked = time.monotonic()
            self._waiting_since = self._waiting_since or self._asked
        for unit in units:
            unit.result.add_done_callback(self._answered)
        self.queue.put(units)

    def is_healthy(self, seconds: float = 60.0) -> bool:
        """Whether a run succeeded within so many seconds, or none was asked for."""
        with self._lock:
            now = time.monotonic()
            late = self._waiting_since is not None and now - self._waiting_since > seconds
            return not late or (not self._pending and now - self._asked > seconds)

    def _answered(self, result: Future[Float32Array]) -> None:
        with self._lock:
            self._pending -= 1
            if result.cancelled() and not self._pending:
                self._waiting_since = None
            elif not result.cancelled() and result.exception() is None:
                self._waiting_since = time.monotonic() if self._pending else None

    def _start(self, opener: Callable[[], Runner]) -> None:
        opened: Future[Runner] = Future()
        thread = threading.Thread(target=self._serve, args=(opener, opened), daemon=True)
        thread.start()
        self._threads.append(thread)
        self.runner = opened.result()

    def _serve(self, opener: Callable[[], Runner], opened: Future[Runner]) -> None:
        """A thread: what CUDA opens is bound to it."""
        try:
            with opener() as runner:
                self._warm_up(runner)
                where, runner.where = runner.where, self.name  # clients see its errors, and no file names
                opened.set_result(runner)
                while units := self.queue.take(self.most, several=runner.on_gpu):
                    self._run(runner, units)
                    del units
        except BaseException as error:  # noqa: BLE001  # goes to `open`, or to whoever runs the server
            if not opened.done():
                opened.set_exception(error)
            else:
                what = str(error) if isinstance(error, DeviceError) else f"unexpected {error!r}"
                self._on_failure(DeviceError(f"{where}: {what}"))

    def _warm_up(self, runner: Runner) -> None:
        ranges = _tile_ranges(runner, self._tile)
        self.tile_ranges = self.tile_ranges or ranges
        low = ranges[0][0]
        least = batch_limits(runner, ImageSize(*low[2:]), requested=1)[0]
        runner.run(np.zeros((least, *low[1:]), np.float32))

    def _run(self, runner: Runner, units: list[Unit]) -> None:
        batch = units[0].batch if len(units) == 1 else np.concatenate([unit.batch for unit in units])
        count = len(batch)
        # A view of a message may be neither: PyTorch warns of the one, and the other is slow.
        batch = np.require(batch, requirements=("ALIGNED", "WRITEABLE"))
        missing = max(0, self.least(batch.shape) - count)
        if missing:
            batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        try:
            output = runner.run(batch)
        except Exception as error:  # noqa: BLE001  # the boundary: whatever happens, the requests get an answer
            self._failed(runner, units, error)
            return
        with self._lock:
            self.runs, self.items = self.runs + 1, self.items + count
        if len(units) == 1 and not missing:
            units[0].result.set_result(output)
            return
        ends = itertools.accumulate(len(unit.batch) for unit in units)
        for unit, end in zip(units, ends, strict=True):
            unit.result.set_result(output[end - len(unit.batch) : end].copy())

    def _failed(self, runner: Runner, units: list[Unit], error: Exception) -> None:
        memory = isinstance(error, (MemoryError, OutOfMemoryError))
        if runner.on_gpu and not memory:
            for unit in units:
                unit.result.set_exception(DeviceError("the GPU failed"))
            raise DeviceError(f"the GPU failed: {error}") from error
        if len(units) > 1:  # it may be one of them only
            for unit in units:
                self._run(runner, [unit])
            return
        units[0].result.set_exception(error if memory else RunError(f"{type(error).__name__}: {error}"))


def _tile_ranges(runner: Runner, tile: ImageSize | None) -> Ranges:
    """Smallest and largest (N, 3, H, W) of a tile, of each range of the network that takes one of at most `tile`."""
    ranges = []
    step = runner.size_multiple
    for low, high in runner.shape_ranges:
        least = rounded_up(ImageSize(*(side or SMALLEST_SIDE for side in low[2:])), step)
        given = rounded_down(tile or ImageSize(CPU_TILE, CPU_TILE), step)
        most = [
            max(min(limit or size, size) if tile else limit or size, smallest)
            for limit, size, smallest in zip(high[2:], given, least, strict=True)
        ]
        ranges.append(((1, CHANNELS, least[0], least[1]), (high[0] or CPU_BATCH, CHANNELS, most[0], most[1])))
    if tile is not None and not takes_size(runner, tile):
        raise UsageError("--tile", f"{tile} is more than the network takes", "give a smaller one")
    return tuple(dict.fromkeys(ranges))


def takes_size(runner: Runner, size: ImageSize) -> bool:
    """Whether no side of a size is more than the network takes at a time, and each is a multiple that it takes."""
    return not any(side % runner.size_multiple for side in size) and any(
        all(limit is None or side <= limit for side, limit in zip(size, high[2:], strict=True))
        for _, high in runner.shape_ranges
    )
