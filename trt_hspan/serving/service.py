"""What the server does with a request, whichever protocol brought it: admits it, has it computed, keeps count.

A request that was admitted has a thread, which cuts and joins tiles; its work is given back when the client leaves,
when its time is over, or when the server stops.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import gc
import logging
import time
from collections import Counter as Tally
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

from trt_hspan.machine.memory import return_freed_memory
from trt_hspan.media.decoders import Buffer, DecodedPicture, DecoderPool
from trt_hspan.media.formats import require_sides
from trt_hspan.runtime.runner import CHANNELS, Float32Array
from trt_hspan.serving.admission import (
    Budget,
    RefusedError,
    Reservation,
    gone,
    refusal_from_error,
    stopping,
    suffix_from_format,
)
from trt_hspan.serving.events import log_event
from trt_hspan.serving.limits import ServerLimits
from trt_hspan.serving.v2 import PICTURES, SERVER_METADATA, TENSORS, InferCall, Interface
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.scheduler import Job, Model
from trt_hspan.upscaling.upscaler import Upscaler, upscale_array

_T = TypeVar("_T")
# Without requests, until memory is given back: the next one has to take its pages again.
_QUIET_SECONDS: Final = 10.0
#: Requests whose progress is remembered.
_REMEMBERED: Final = 256
# Requests that say no more than that the server is alive are logged only when they fail.
_QUIET: Final = ("/v2/health/", "/metrics", "/progress/", "ServerLive", "ServerReady", "ModelReady")


def in_thread(call: Callable[[], _T]) -> asyncio.Future[_T]:
    """What a call gives, made in a thread of its own, which the end of the process does not wait for."""
    future: Future[_T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001  # raised where it is awaited
            error.__context__ = None  # frames, and what they refer to, are as large as the request
            future.set_exception(error.with_traceback(None))
        else:
            future.set_result(result)

    result = asyncio.wrap_future(future)
    _thread.start_new_thread(run, ())  # `threading` would wait until it runs
    return result


@dataclass
class Outcome:
    """What the log and the metrics say about a request."""

    status: str = ""
    bytes_out: int = 0
    why: str | None = None


class Service:
    """The network, the decoders and the budgets, and the requests that are under way.

    Args:
        model: open.
        pool: the decoders; closed by whoever made it.

    Attributes:
        bodies: the budget of what clients send, over all protocols.
        work: the budget of pictures and results.
        draining: whether new requests are refused, because the server stops.
        under_way: requests of any kind, from their first byte to the last of their answer.
        metrics: what Prometheus reads.
        remembered: jobs of requests that named themselves.
    """

    def __init__(self, model: Model, pool: DecoderPool, limits: ServerLimits) -> None:
        self.model, self.pool, self.limits = model, pool, limits
        self.bodies = Budget(limits.held_bytes, "requests")
        self.work = Budget(limits.work_bytes, "pictures and results")
        self.draining = False
        self.under_way = 0
        self.image_name = f"{model.name}_image"
        self._interfaces = {model.name: TENSORS, self.image_name: PICTURES}
        self._outcomes: Tally[tuple[str, bool]] = Tally()
        self._jobs: set[Job] = set()
        self.remembered: OrderedDict[str, Job] = OrderedDict()
        self.metrics = CollectorRegistry()
        self._add_metrics()

    def _add_metrics(self) -> None:
        self._requests = Counter(
            "trt_hspan_requests", "Requests by their outcome", ("via", "status"), registry=self.metrics
        )
        self._seconds = Histogram(
            "trt_hspan_request_seconds",
            "Time that an inference request is worked on or waits for it",
            ("model",),
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
            registry=self.metrics,
        )
        for name in self._interfaces:
            self._seconds.labels(name)
        figures: dict[str, tuple[str, Callable[[], float]]] = {
            "in_flight": ("Inference requests that are worked on or wait", lambda: len(self._jobs)),
            "held_bytes": ("Bytes of requests that are held", lambda: self.bodies.held),
            "work_bytes": ("Bytes of pictures and results that are worked on", lambda: self.work.held),
            "queued_tiles": ("Tiles that wait for a device", lambda: len(self.model.queue)),
            "runs": ("Runs of the network since it was loaded", lambda: self.model.runs),
            "tiles": ("Tiles and tensors in these runs", lambda: self.model.items),
            "decoders_replaced": ("Decoders that ended before their time", lambda: self.pool.replaced),
            "ready": ("Whether the server is ready", lambda: self.is_ready()),  # noqa: PLW0108
        }
        for name, (text, figure) in figures.items():
            Gauge(f"trt_hspan_{name}", text, registry=self.metrics).set_function(figure)
        ProcessCollector(registry=self.metrics)

    @contextlib.contextmanager
    def request(self, via: str, name: str, peer: str | None, **facts: str) -> Iterator[Outcome]:
        """Counts a request of any kind while it is under way, and logs it at its end."""
        outcome, started = Outcome(), time.perf_counter()
        self.under_way += 1

        def note() -> None:
            self.under_way -= 1
            self._requests.labels(via, outcome.status).inc()
            log_event(
                "request",
                level=logging.DEBUG if name.startswith(_QUIET) and outcome.why is None else logging.INFO,
                via=via,
                **facts,
                status=outcome.status,
                bytes_out=outcome.bytes_out,
                ms=1000 * (time.perf_counter() - started),
                peer=peer,
                why=outcome.why,
            )

        try:
            yield outcome
        finally:
            asyncio.get_running_loop().call_soon(note)  # gRPC sends the answer after this

    def is_ready(self) -> bool:
        """Whether requests are taken, and an inference succeeded within the last minute or none was asked for."""
        return not self.draining and self.model.is_healthy()

    def interface(self, name: str, version: str = "") -> Interface:
        """Of a model. Raises: RefusedError, 404."""
        interface = self._interfaces.get(name)
        if interface is None or version not in ("", str(self.model.version)):
            what = f"{name[:100]!r} {version[:20]}".rstrip()
            raise RefusedError(404, f"no such model: {what}; see /v2/repository/index")
        return interface

    def answer(self, question: str, name: str = "", version: str = "") -> dict[str, Any]:
        """The answer to a question of the v2 protocol other than ModelInfer, by its gRPC name.

        Raises:
            RefusedError: 404 for a model that there is not.
        """
        models = [name] if name or question in ("ModelReady", "ModelMetadata") else list(self._interfaces)
        interface = self.interface(models[0], version)
        if question == "ServerLive":
            return {"live": True}
        if question in ("ServerReady", "ModelReady"):
            return {"ready": self.is_ready()}
        if question == "ServerMetadata":
            return SERVER_METADATA
        if question == "ModelMetadata":
            return interface.metadata(models[0], self.model.version)
        if question == "ModelStatistics":
            return {"model_stats": [self._statistics(each) for each in models]}
        assert question == "RepositoryIndex"
        facts = {"version": str(self.model.version), "state": "READY"}
        return {"models": [{"name": each, **facts} for each in models]}

    def _statistics(self, name: str) -> dict[str, Any]:
        """As Triton's: requests that succeeded and failed, and runs of the network."""
        succeeded, failed = (self._outcomes[name, outcome] for outcome in (True, False))
        runs, items = (self.model.runs, self.model.items) if name == self.model.name else (0, 0)
        return {
            "name": name,
            "version": str(self.model.version),
            "inference_count": items or succeeded,
            "execution_count": runs or succeeded,
            "inference_stats": {"success": {"count": succeeded}, "fail": {"count": failed}},
        }

    def job(self, identifier: str | None = None) -> Job:
        """A request's, remembered for those who ask for its progress if it names itself."""
        job = Job(self.model)
        if identifier:
            self.remembered.pop(identifier, None)
            self.remembered[identifier] = job
            if len(self.remembered) > _REMEMBERED:
                self.remembered.popitem(last=False)
        return job

    async def inferred(self, call: InferCall, held: Reservation) -> npt.NDArray[Any]:
        """The output of a KServe v2 request. `held` is the input's memory. Raises: RefusedError."""
        values = call.taken()
        if values.ndim == 4:
            return await self._upscaled_tensor(values, call.seconds)
        data: list[Buffer] = [memoryview(values[0])]
        del values
        result = await self.upscaled_picture(data, call.format, held, self.job(), call.seconds)
        return np.frombuffer(result, np.uint8)[None]

    async def _upscaled_tensor(self, batch: Float32Array, seconds: float | None) -> Float32Array:
        """(N, 3, H, W) -> (N, 3, scale * H, scale * W) float32.

        Where the network takes a tensor as a whole, it runs as a whole, unless that would keep others waiting for long
        on a CPU; else in tiles, as a picture.
        """
        job, (n, _, height, width) = self.job(), batch.shape
        self._require_pixels("input", n * height * width, "send tiles")

        def work() -> Float32Array:
            model, size = job.model, ImageSize(height, width)
            with self.work.reserve(2 * 4 * CHANNELS * n * size.pixels * model.scale**2):
                if not model.runs_whole(size):
                    return Upscaler(job.runner).batch(batch, on_tile=job.on_tile)
                count = min(n, model.most(batch.shape))
                model.require_shape((count, *batch.shape[1:]))
                outputs = list(job.results(batch[start : start + count] for start in range(0, n, count)))
                return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

        return await self._worked(self.model.name, job, work, seconds)

    async def upscaled_picture(
        self, data: list[Buffer], kind: str, held: Reservation, job: Job, seconds: float | None = None
    ) -> Buffer:
        """The file of a picture, upscaled; `kind` is as for `suffix_from_format`.

        Args:
            data: the file, alone in a list, which is emptied when it has been decoded.
            held: its memory, which is given back then.
            job: of this request.
            seconds: that it may take; None is the server's limit.

        Raises:
            RefusedError: it is no picture, damaged or too large; the server is busy or stops.
        """
        suffix = suffix_from_format(kind)
        if not len(data[0]):
            what = "is empty (0 bytes); send a PNG, JPEG, WebP, BMP, TIFF, GIF or PPM"
            raise RefusedError(400, f"picture: {what}")

        def work() -> Buffer:
            job.state = "decoding"
            try:
                with self.work.reserve() as reservation:
                    picture = self._decoded(data[0], suffix, job, reservation)
                    data.clear()
                    held.release()
                    job.state = "working"
                    pixels = upscale_array(job.runner, picture.pixels, on_tile=job.on_tile)
                    job.state = "encoding"
                    return self.pool.encode(pixels, picture.description, suffix)
            finally:
                data.clear()

        return await self._worked(self.image_name, job, work, seconds)

    def _decoded(self, data: Buffer, suffix: str, job: Job, reservation: Reservation) -> DecodedPicture:
        """The picture; one that is too large is refused by its header."""
        sides, picture = self.pool.opened(data)
        size, results = ImageSize(*sides), 1 + 2 * job.model.scale**2
        job.check()
        self._require_pixels("picture", size.pixels, f"send parts of its {size}")
        require_sides(f"picture{suffix}", size.scaled(job.model.scale))
        reservation.grow(CHANNELS * size.pixels * results)
        if picture is None:
            picture = self.pool.decode(data, pixels=size.pixels)
            job.check()
        reservation.grow(picture.pixels.nbytes * results)
        return picture

    def _require_pixels(self, what: str, pixels: int, next_step: str) -> None:
        most = self.limits.max_pixels
        if pixels > most:
            raise RefusedError(400, f"{what}: has {pixels} pixels, this server takes {most}; {next_step}")

    async def replace(self, model: Model) -> None:
        """Gives new requests to another model; the one before is closed once its last request has ended."""
        before, self.model = self.model, model
        while any(job.model is before for job in list(self._jobs)):
            await asyncio.sleep(0.05)
        await in_thread(before.close)

    async def keep_tidy(self) -> None:
        """Gives memory back to the system after a while without requests; allocators would keep it."""
        tidied = seen = 0
        while True:
            await asyncio.sleep(_QUIET_SECONDS)
            before, seen = seen, sum(self._outcomes.values())
            if before == seen != tidied and not self._jobs:
                tidied = seen
                gc.collect()  # errors and the frames that they passed may keep each other
                await in_thread(return_freed_memory)

    def admit(self) -> None:
        """Lets a request begin. Raises: RefusedError when the server stops."""
        if self.draining:
            raise stopping()

    def cancel_all(self, why: BaseException) -> None:
        """Gives up what is under way."""
        for job in list(self._jobs):
            job.cancel(why)

    async def _worked(self, name: str, job: Job, work: Callable[[], _T], seconds: float | None) -> _T:
        """What the work gives, made in a thread within the limits of waiting and of time."""
        limits, count = self.limits, len(self._jobs)
        if count >= limits.queue_length:
            raise RefusedError(503, f"the server is busy with {count} requests; try again later")
        job.model = self.model
        self._jobs.add(job)

        def run() -> _T:
            try:
                job.check()
                return work()
            except Exception as error:  # noqa: BLE001  # the boundary: whatever happens, there is an answer
                raise refusal_from_error(error) from None
            finally:
                self._jobs.discard(job)

        def require_begun() -> None:
            if not job.has_begun:
                waited = f"it waited longer than {limits.queue_time_ms / 1000:g} s; try again later"
                job.cancel(RefusedError(503, waited))

        limit = min(limits.work_time_ms / 1000, seconds or float("inf"))
        late = RefusedError(408, f"the work took longer than {limit * 1000:g} ms; send a smaller picture")
        loop, started = asyncio.get_running_loop(), time.perf_counter()
        timers = [
            loop.call_later(limit, job.cancel, late),
            loop.call_later(limits.queue_time_ms / 1000, require_begun),
        ]
        future = in_thread(run)
        succeeded = False
        try:
            result = await asyncio.shield(future)
            succeeded = True
            return result
        except asyncio.CancelledError:
            job.cancel(gone())
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        finally:
            for timer in timers:
                timer.cancel()
            job.state = "done" if succeeded else "failed"
            self._outcomes[name, succeeded] += 1
            self._seconds.labels(name).observe(time.perf_counter() - started)
