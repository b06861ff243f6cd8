"""What the server does with a request, whichever protocol brought it: admits it, has it computed, keeps count.

A request that was admitted has a thread, which cuts and joins tiles; its work is given back when the client leaves,
when its time is over, or when the server stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections import Counter as Tally
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.machine.memory import return_freed_memory
from trt_hspan.media.formats import require_sides
from trt_hspan.runtime.runner import CHANNELS, Float32Array
from trt_hspan.serving.decoders import SUFFIXES, Buffer, DecodedPicture, DecoderError, DecoderPool
from trt_hspan.serving.events import log_event
from trt_hspan.serving.limits import Budget, RefusedError, Reservation, ServerLimits
from trt_hspan.serving.scheduler import WHOLE_PIXELS, Job, Model, TileRunner
from trt_hspan.serving.v2 import PICTURES, TENSORS, InferCall, Interface
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tile_size import batch_limits
from trt_hspan.upscaling.upscaler import Upscaler, upscale_array

_T = TypeVar("_T")
#: Requests whose progress is remembered.
_REMEMBERED: Final = 256
# What a request must have taken for its memory to be given back to the system.
_LARGE_BYTES: Final = 32 << 20


async def in_thread(call: Callable[[], _T]) -> _T:
    """What a call gives, made in a thread of its own, which the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:  # noqa: BLE001  # raised where it is awaited
            error = raised.with_traceback(None)  # frames, and what they refer to, are as large as the request
            error.__context__ = None
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)
        del result, error  # an error and this frame would keep each other, and all that the call had

    threading.Thread(target=run, daemon=True).start()
    return await future


def stopping() -> RefusedError:
    """What a request is told when the server stops."""
    return RefusedError(503, "the server stops; try another one, or again later")


class GoneError(Exception):
    """The client has left."""


@dataclass
class Progress:
    """How far a request has come.

    Attributes:
        state: receiving, decoding, working, encoding, done or failed.
    """

    state: str = "receiving"
    job: Job | None = None

    def as_dict(self) -> dict[str, Any]:
        job = self.job
        return {
            "state": self.state,
            "tiles_done": 0 if job is None else job.done,
            "tiles": 0 if job is None else job.total,
        }


class Service:
    """The network, the decoders and the budgets, and the requests that are under way.

    Args:
        model: open.
        pool: the decoders; closed by whoever made it.

    Attributes:
        bodies: the budget of what clients send, over all protocols.
        draining: whether new requests are refused, because the server stops.
        under_way: requests of any kind, from their first byte to the last of their answer.
    """

    def __init__(self, model: Model, pool: DecoderPool, limits: ServerLimits) -> None:
        self.model, self.limits = model, limits
        self.bodies = Budget(limits.held_bytes, "requests")
        self.work = Budget(limits.work_bytes, "pictures and results")
        self.draining = False
        self.under_way = 0
        self.metrics = Metrics(self)
        for name in self.interfaces:
            self.metrics.seconds.labels(name)
        self.pool = pool
        self._lock = threading.Lock()
        self._outcomes: Tally[tuple[str, bool]] = Tally()
        self._jobs: set[Job] = set()
        self._progress: OrderedDict[str, Progress] = OrderedDict()

    @property
    def image_name(self) -> str:
        """Of the model that takes pictures."""
        return f"{self.model.name}_image"

    @property
    def in_flight(self) -> int:
        """Requests that are worked on or wait for it."""
        with self._lock:
            return len(self._jobs)

    def is_ready(self) -> bool:
        """Whether requests are taken, and an inference succeeded within the last minute or none was asked for."""
        return not self.draining and self.model.is_healthy()

    def progress(self, identifier: str) -> Progress | None:
        """Of a request that named itself, while it is remembered."""
        return self._progress.get(identifier)

    def follow(self, identifier: str | None) -> Progress:
        """The progress of a request, remembered if it names itself."""
        progress = Progress()
        if identifier:
            self._progress.pop(identifier, None)
            self._progress[identifier] = progress
            while len(self._progress) > _REMEMBERED:
                self._progress.popitem(last=False)
        return progress

    @property
    def interfaces(self) -> dict[str, Interface]:
        """The models by their names."""
        return {self.model.name: TENSORS, self.image_name: PICTURES}

    def statistics(self, only: str | None = None) -> list[dict[str, Any]]:
        """As Triton's statistics: requests that succeeded and failed, and runs of the network."""
        entries = []
        for name in self.interfaces if only is None else [only]:
            runs, items = (self.model.runs, self.model.items) if name == self.model.name else (0, 0)
            entries.append(
                {
                    "name": name,
                    "version": str(self.model.version),
                    "inference_count": items or self._outcomes[name, True],
                    "execution_count": runs or self._outcomes[name, True],
                    "inference_stats": {
                        "success": {"count": self._outcomes[name, True]},
                        "fail": {"count": self._outcomes[name, False]},
                    },
                }
            )
        return entries

    def index(self) -> list[dict[str, str]]:
        """As Triton's index of its repository."""
        return [
            {"name": name, "version": str(self.model.version), "state": "READY"} for name in self.interfaces
        ]

    async def inferred(self, call: InferCall, held: Reservation) -> npt.NDArray[Any]:
        """The output of a KServe v2 request. `held` is the input's memory. Raises: RefusedError."""
        values = call.taken()
        if values.ndim == 4:
            return await self.upscaled_tensor(values, seconds=call.seconds)
        data: list[Buffer] = [memoryview(values[0])]
        del values
        result = await self.upscaled_picture(data, call.format, held, seconds=call.seconds)
        return np.frombuffer(result, np.uint8)[None]

    async def upscaled_tensor(self, batch: Float32Array, *, seconds: float | None = None) -> Float32Array:
        """(N, 3, H, W) -> (N, 3, scale * H, scale * W) float32.

        Where the network takes a tensor as a whole, it runs as a whole, unless that would keep others waiting for long
        on a CPU; else in tiles, as a picture.

        Raises:
            RefusedError: it does not suit the network or the limits; the server is busy or stops.
        """
        n, _, height, width = batch.shape
        if n * height * width > self.limits.max_pixels:
            raise RefusedError(
                400,
                f"input: has {n * height * width} pixels, this server takes {self.limits.max_pixels}; send tiles",
            )

        def work(job: Job) -> Float32Array:
            need = 2 * 4 * CHANNELS * n * height * width * job.model.scale**2
            reservation = self.work.reserve(need)
            try:
                if _runs_whole(job.model, batch.shape):
                    return _whole_output(job, batch)
                return Upscaler(TileRunner(job)).batch(batch, on_tile=_counted(job))
            finally:
                reservation.release()

        return await self._worked(self.model.name, work, Progress(), seconds)

    async def upscaled_picture(
        self,
        data: list[Buffer],
        kind: str,
        held: Reservation,
        *,
        progress: Progress | None = None,
        seconds: float | None = None,
    ) -> bytearray:
        """The file of a picture, upscaled, in a format of `decoders.SUFFIXES`.

        Args:
            data: the file, alone in a list, which is emptied when it has been decoded.
            held: its memory, which is given back then.

        Raises:
            RefusedError: as `upscaled_tensor`; or it is no picture, damaged or too large.
        """
        if kind not in SUFFIXES:
            raise RefusedError(400, f"format is {kind[:40]!r}, expected one of {', '.join(SUFFIXES)}")
        if not len(data[0]):
            raise RefusedError(
                400, "picture: is empty (0 bytes); send a PNG, JPEG, WebP, BMP, TIFF, GIF or PPM"
            )
        progress = progress or Progress()

        def work(job: Job) -> bytearray:
            progress.state, progress.job = "decoding", job
            reservation = self.work.reserve()
            try:
                picture = self._decoded(data[0], kind, job, reservation)
                data.clear()
                held.release()
                progress.state = "working"
                pixels = upscale_array(TileRunner(job), picture.pixels, on_tile=_counted(job))
                job.check()
                progress.state = "encoding"
                return self._twice(lambda: self.pool.encode(pixels, picture.description, kind), job)
            finally:
                data.clear()
                reservation.release()

        try:
            result = await self._worked(self.image_name, work, progress, seconds)
        except BaseException:
            progress.state = "failed"
            raise
        progress.state = "done"
        return result

    async def replace(self, model: Model) -> None:
        """Gives new requests to another model; the one before is closed once its last request has ended."""
        before, self.model = self.model, model
        while any(job.model is before for job in self._open_jobs()):
            await asyncio.sleep(0.05)
        await in_thread(before.close)

    async def keep_tidy(self) -> None:
        """Gives memory of large requests back to the system every second; allocators would keep it."""
        budgets = self.bodies, self.work
        while True:
            await asyncio.sleep(1)
            if max(budget.largest for budget in budgets) > _LARGE_BYTES:
                if not any(budget.held for budget in budgets):
                    for budget in budgets:
                        budget.largest = 0
                    gc.collect()  # errors and the frames that they passed may keep each other
                await in_thread(return_freed_memory)

    def admit(self) -> None:
        """Lets a request begin. Raises: RefusedError when the server stops."""
        if self.draining:
            raise stopping()

    def cancel_all(self, why: BaseException) -> None:
        """Gives up what is under way."""
        for job in self._open_jobs():
            job.cancel(why)

    def _open_jobs(self) -> list[Job]:
        with self._lock:
            return list(self._jobs)

    async def _worked(
        self, name: str, work: Callable[[Job], _T], progress: Progress, seconds: float | None
    ) -> _T:
        job = Job(self.model)
        with self._lock:
            if len(self._jobs) >= self.limits.queue_length:
                raise RefusedError(
                    503, f"the server is busy with {len(self._jobs)} requests; try again later"
                )
            self._jobs.add(job)
        progress.job = job
        most = self.limits.work_time_ms / 1000
        limit = most if seconds is None else min(most, seconds)
        late = RefusedError(408, f"the work took longer than {limit * 1000:.0f} ms; send a smaller picture")
        loop = asyncio.get_running_loop()
        timers = [
            loop.call_later(limit, job.cancel, late),
            loop.call_later(self.limits.queue_time_ms / 1000, self._require_begun, job),
        ]
        future = asyncio.ensure_future(in_thread(lambda: self._run(work, job)))
        succeeded = False
        started = time.perf_counter()
        try:
            result = await asyncio.shield(future)
            succeeded = True
            return result
        except asyncio.CancelledError:
            job.cancel(GoneError())
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        finally:
            for timer in timers:
                timer.cancel()
            self._outcomes[name, succeeded] += 1
            self.metrics.seconds.labels(name).observe(time.perf_counter() - started)

    def _require_begun(self, job: Job) -> None:
        if not job.has_begun:
            seconds = self.limits.queue_time_ms / 1000
            job.cancel(RefusedError(503, f"it waited longer than {seconds:g} s; try again later"))

    def _run(self, work: Callable[[Job], _T], job: Job) -> _T:
        """In a thread: the work, its failures in words for the client."""
        try:
            job.check()
            return work(job)
        except (RefusedError, GoneError):
            raise
        except (OutOfMemoryError, MemoryError) as error:
            log_event("out-of-memory", level=logging.ERROR, why=str(error))
            raise RefusedError(503, "it does not fit in the server's memory now; try again later") from None
        except HspanError as error:
            raise RefusedError(400, str(error)) from None
        except DecoderError as error:
            raise RefusedError(400, f"picture: its decoder failed: {error}") from None
        except Exception as error:  # noqa: BLE001  # the boundary: whatever happens, this request gets an answer
            log_event("unexpected", level=logging.ERROR, why=f"{type(error).__name__}: {error}")
            raise RefusedError(500, f"unexpected {type(error).__name__}") from None
        finally:
            with self._lock:
                self._jobs.discard(job)

    def _decoded(self, data: Buffer, kind: str, job: Job, reservation: Reservation) -> DecodedPicture:
        """The picture; one that is too large is refused by its header, before it is decoded."""
        size = ImageSize(*self._twice(lambda: self.pool.size(data), job))
        if size.pixels > self.limits.max_pixels:
            raise RefusedError(
                400,
                f"picture: has {size} pixels, this server takes {self.limits.max_pixels} in all; send smaller parts",
            )
        scale = job.model.scale
        require_sides(f"picture{SUFFIXES[kind]}", size.scaled(scale))
        reservation.grow(CHANNELS * size.pixels * (1 + 2 * scale**2))
        picture = self._twice(lambda: self.pool.decode(data, pixels=size.pixels), job)
        reservation.grow(picture.pixels.nbytes * (1 + 2 * scale**2))
        return picture

    def _twice(self, ask: Callable[[], _T], job: Job) -> _T:
        """Asks a decoder, and another one if somebody killed the first."""
        try:
            answer = ask()
        except DecoderError as error:
            if not error.killed:
                raise
            answer = ask()
        job.check()
        return answer


def _counted(job: Job) -> Callable[[int, int], None]:
    def on_tile(done: int, total: int) -> None:
        job.done, job.total = done, total
        job.check()

    return on_tile


def _runs_whole(model: Model, shape: tuple[int, ...]) -> bool:
    """Whether a tensor runs as it is; one that is too small for the network does, and is refused there."""
    size = ImageSize(*shape[2:])
    if not model.runner.on_gpu and size.pixels > WHOLE_PIXELS:
        return False
    return any(
        all(limit is None or side <= limit for side, limit in zip(size, high[2:], strict=True))
        for _, high in model.runner.shape_ranges
    )


def _whole_output(job: Job, batch: Float32Array) -> Float32Array:
    model = job.model
    n, channels, *size = batch.shape
    least = batch_limits(model.runner, ImageSize(*size), requested=n)[0]
    count = min(n, model.most(batch.shape))
    model.runner.require_shape((max(count, least), channels, *size), "input")
    parts = [batch[start : start + count] for start in range(0, n, count)]
    job.total = len(parts)
    outputs = []
    for index, output in enumerate(job.results(parts)):
        outputs.append(output)
        job.done = index + 1
    return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)


class Metrics(Collector):
    """What Prometheus reads: counts of requests, and what the service holds at the moment."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "trt_hspan_requests", "Requests by their outcome", ("via", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "trt_hspan_request_seconds",
            "Time that an inference request is worked on or waits for it",
            ("model",),
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
            registry=self._registry,
        )
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> list[GaugeMetricFamily]:
        service = self._service
        figures = {
            "in_flight": ("Inference requests that are worked on or wait", service.in_flight),
            "held_bytes": ("Bytes of requests that are held", service.bodies.held),
            "work_bytes": ("Bytes of pictures and results that are worked on", service.work.held),
            "queued_tiles": ("Tiles that wait for a device", len(service.model.queue)),
            "runs": ("Runs of the network since it was loaded", service.model.runs),
            "tiles": ("Tiles and tensors in these runs", service.model.items),
            "decoders_replaced": ("Decoders that ended before their time", service.pool.replaced),
            "ready": ("Whether the server is ready", int(service.is_ready())),
        }
        return [
            GaugeMetricFamily(f"trt_hspan_{name}", text, value) for name, (text, value) in figures.items()
        ]
