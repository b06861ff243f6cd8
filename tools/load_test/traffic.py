"""Load for a server, and its outcome: latencies, errors, memory over time.

A closed loop: each client sends its next request when the last one is answered. Every request ends in exactly one
outcome: answered, refused (4xx or busy), left, or lost (no answer at all), which must not happen.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from trt_hspan.errors import HspanError
from trt_hspan.serving.async_client import AsyncUpscaleClient
from trt_hspan.serving.client_protocol import RetryPolicy, ServerUnreachableError, server_url_from_text

SMALL: Final = "small"
LARGE: Final = "large"


class Shot(NamedTuple):
    """One request. `send` ends in "answered", "refused" or "left" (the client went away by itself)."""

    kind: str
    send: Callable[[], Awaitable[str]]


@dataclass
class LoadReport:
    """The outcome of a load.

    Attributes:
        seconds: that it took.
        outcomes: how many requests were answered, refused, left, lost.
        latencies_ms: of the answered ones, in milliseconds.
        small_ms: of the answered small ones, by whether a large one was under way when they were sent.
        memory_bytes: (seconds since the start, resident memory of the server's processes).
        errors: the first few messages of lost requests.
    """

    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    small_ms: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    memory_bytes: list[tuple[float, int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The figures for a table or JSON."""
        figures: dict[str, Any] = {
            "requests": sum(self.outcomes.values()),
            "seconds": round(self.seconds, 1),
            "answered_per_second": round(self.outcomes["answered"] / max(self.seconds, 1e-9), 2),
            **{name: self.outcomes[name] for name in ("answered", "refused", "left", "lost")},
        }
        figures |= _percentiles("latency_ms", self.latencies_ms, (50, 90, 95, 99))
        for name, beside_large in (("small_alone_ms", False), ("small_beside_large_ms", True)):
            if self.small_ms[beside_large]:
                figures |= _percentiles(name, self.small_ms[beside_large], (50, 95))
        if self.memory_bytes:
            figures["memory_mb_over_time"] = [
                [round(moment), round(size / 1e6)] for moment, size in self.memory_bytes
            ]
        if self.errors:
            figures["errors"] = self.errors
        return figures


def _percentiles(name: str, values: list[float], percents: Sequence[int]) -> dict[str, float | None]:
    return {f"{name}_p{p}": round(float(np.percentile(values, p)), 1) if values else None for p in percents}


async def run_load(
    shots: Sequence[Shot],
    *,
    clients: int,
    at_least_seconds: float = 0.0,
    server_pid: int | None = None,
    memory_every_seconds: float = 5.0,
) -> LoadReport:
    """Sends requests from a number of clients.

    Args:
        shots: the requests; taken in order, again from the start when time is left.
        clients: at a time.
        at_least_seconds: goes on for so long, spreading nothing: clients send as fast as they are answered.
        server_pid: process whose memory, its children's included, is noted over time and at the end.
        memory_every_seconds: how often.
    """
    report, started = LoadReport(), time.perf_counter()
    position = 0
    under_way: Counter[str] = Counter()

    async def client() -> None:
        nonlocal position
        while position < len(shots) or time.perf_counter() - started < at_least_seconds:
            shot = shots[position % len(shots)]
            position += 1
            sent, beside_large = time.perf_counter(), under_way[LARGE] > 0
            under_way[shot.kind] += 1
            try:
                outcome = await shot.send()
            except Exception as error:  # noqa: BLE001 - whatever it is, the request was lost, and that is the finding
                outcome = "lost"
                if len(report.errors) < 10:
                    report.errors.append(f"{shot.kind}: {type(error).__name__}: {error}"[:200])
            finally:
                under_way[shot.kind] -= 1
            report.outcomes[outcome] += 1
            if outcome == "answered":
                milliseconds = 1000 * (time.perf_counter() - sent)
                report.latencies_ms.append(milliseconds)
                if shot.kind == SMALL:
                    report.small_ms[beside_large].append(milliseconds)

    async def note_memory(pid: int) -> None:
        size = await asyncio.to_thread(memory_of, pid)
        report.memory_bytes.append((time.perf_counter() - started, size))

    async def watch(pid: int) -> None:
        while True:
            await note_memory(pid)
            await asyncio.sleep(memory_every_seconds)

    watching = None if server_pid is None else asyncio.create_task(watch(server_pid))
    try:
        await asyncio.gather(*(client() for _ in range(clients)))
    finally:
        report.seconds = time.perf_counter() - started
        if watching is not None:
            watching.cancel()
    if server_pid is not None:
        await note_memory(server_pid)  # at the end too, however soon that came
    return report


def memory_of(pid: int) -> int:
    """Bytes that a process and its children keep in memory; what they share with each other counts once."""
    import psutil

    total = 0
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def picture_shots(client: AsyncUpscaleClient, pictures: Sequence[bytes], count: int) -> list[Shot]:
    """Good pictures through the typed client; a server that stays busy has refused."""

    async def send(picture: bytes) -> str:
        try:
            await client.upscale_picture(picture)
        except ServerUnreachableError:
            raise
        except HspanError:
            return "refused"
        return "answered"

    return [Shot("picture", partial(send, pictures[index % len(pictures)])) for index in range(count)]


async def load_server(
    url: str,
    pictures: Sequence[bytes],
    *,
    model: str | None = None,
    requests: int = 100,
    clients: int = 4,
    attempts: int = 1,
    server_pid: int | None = None,
) -> LoadReport:
    """Sends pictures to a server with tritonclient.

    Raises:
        HspanError: no server answers at the URL.
        UsageError: the URL is not one of a server.
    """
    server_url_from_text(url)
    retry = RetryPolicy(attempts=attempts)
    async with AsyncUpscaleClient(url, model=model, retry=retry, connections=clients) as client:
        await client.model_names()
        shots = picture_shots(client, pictures, requests)
        return await run_load(shots, clients=clients, server_pid=server_pid)


def mixed_shots(
    http_url: str,
    small: Sequence[bytes],
    large: Sequence[bytes],
    invalid: Sequence[bytes],
    *,
    count: int,
    seed: int = 0,
) -> list[Shot]:
    """Requests of every kind: good and small or large, broken, huge, slow, cut off, and gone before the answer."""
    import aiohttp

    host, _, port = http_url.removeprefix("http://").rpartition(":")
    timeout = aiohttp.ClientTimeout(total=300)

    async def post(body: Any) -> str:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(f"{http_url}/upscale", data=body) as response,
        ):
            data = await response.read()
            if response.status == 200:
                if data.startswith(b"\x89PNG"):
                    return "answered"
            elif response.status in (400, 408, 413, 429, 503) and b'"error"' in data:
                return "refused"
            raise RuntimeError(f"{response.status}: {data[:100]!r}")

    async def slowly(picture: bytes) -> str:
        async def parts() -> Any:
            step = len(picture) // 4 + 1
            for start in range(0, len(picture), step):
                yield picture[start : start + step]
                await asyncio.sleep(0.1)

        return await post(parts())

    async def raw(sent: bytes, *, stays_seconds: float | None) -> str:
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(sent)
            await writer.drain()
            if stays_seconds is not None:
                await asyncio.sleep(stays_seconds)
                return "left"
            answer = await asyncio.wait_for(reader.read(64), 60)
            if not answer.startswith(b"HTTP/1.1 413"):
                raise RuntimeError(f"{answer!r}")
            return "refused"
        finally:
            writer.close()

    def head(size: int) -> bytes:
        lines = ("POST /upscale HTTP/1.1", f"Host: {host}:{port}", f"Content-Length: {size}")
        return "\r\n".join([*lines, "", ""]).encode()

    def whole(picture: bytes) -> bytes:
        return head(len(picture)) + picture

    dice = random.Random(seed)

    def shot() -> Shot:
        picture, big, broken = dice.choice(small), dice.choice(large), dice.choice(invalid)
        return dice.choices(
            [
                Shot(SMALL, partial(post, picture)),
                Shot(LARGE, partial(post, big)),
                Shot("broken", partial(post, broken)),
                Shot("huge", partial(raw, head(10**11), stays_seconds=None)),
                Shot("slow", partial(slowly, picture)),
                Shot("cut off", partial(raw, whole(picture)[:-20], stays_seconds=0)),
                Shot("leaving", partial(raw, whole(picture), stays_seconds=0)),
                Shot("leaving large", partial(raw, whole(big), stays_seconds=dice.uniform(0, 0.5))),
            ],
            weights=[55, 4, 18, 5, 5, 5, 5, 3],
        )[0]

    return [shot() for _ in range(count)]
