"""Load for a server, and its outcome: latencies, errors, memory over time.

A closed loop: each client sends its next request when the last one is answered. Every request ends in exactly one
outcome: answered, refused (4xx or busy), or lost (no answer at all), which must not happen.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from trt_hspan.errors import HspanError
from trt_hspan.serving.async_client import AsyncUpscaleClient
from trt_hspan.serving.client_protocol import RetryPolicy, ServerUnreachableError, server_url_from_text

#: One request: sends it and returns "answered", "refused" or "left" (the client went away by itself).
Shot = Callable[[], Awaitable[str]]


@dataclass
class LoadReport:
    """The outcome of a load.

    Attributes:
        seconds: that it took.
        outcomes: how many requests were answered, refused, left, lost.
        latencies_ms: of the answered ones, in milliseconds.
        memory_bytes: (seconds since the start, resident memory of the server's processes).
        errors: the first few messages of lost requests.
    """

    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
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
        for percent in (50, 90, 95, 99):
            value = float(np.percentile(self.latencies_ms, percent)) if self.latencies_ms else None
            figures[f"latency_ms_p{percent}"] = None if value is None else round(value, 1)
        if self.memory_bytes:
            figures["memory_mb_over_time"] = [
                [round(moment), round(size / 1e6)] for moment, size in self.memory_bytes
            ]
        if self.errors:
            figures["errors"] = self.errors
        return figures


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

    async def client() -> None:
        nonlocal position
        while position < len(shots) or time.perf_counter() - started < at_least_seconds:
            shot = shots[position % len(shots)]
            position += 1
            sent = time.perf_counter()
            try:
                outcome = await shot()
            except Exception as error:  # noqa: BLE001 - whatever it is, the request was lost, and that is the finding
                outcome = "lost"
                if len(report.errors) < 10:
                    report.errors.append(f"{type(error).__name__}: {error}"[:200])
            report.outcomes[outcome] += 1
            if outcome == "answered":
                report.latencies_ms.append(1000 * (time.perf_counter() - sent))

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

    def shot(picture: bytes) -> Shot:
        async def send() -> str:
            try:
                await client.upscale_picture(picture)
            except ServerUnreachableError:
                raise
            except HspanError:
                return "refused"
            return "answered"

        return send

    return [shot(pictures[index % len(pictures)]) for index in range(count)]


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
    http_url: str, valid: Sequence[bytes], invalid: Sequence[bytes], *, count: int, seed: int = 0
) -> list[Shot]:
    """Requests of every kind: valid, invalid, too large, slow, cut off half-way, and gone before the answer."""
    import aiohttp

    host, _, port = http_url.removeprefix("http://").rpartition(":")
    timeout = aiohttp.ClientTimeout(total=300)

    async def post(body: Any, headers: dict[str, str] | None = None) -> str:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(f"{http_url}/upscale", data=body, headers=headers) as response,
        ):
            data = await response.read()
            if response.status == 200:
                return "answered" if data.startswith(b"\x89PNG") else "lost"
            return "refused" if response.status in (400, 408, 413, 503) and b'"error"' in data else "lost"

    async def raw(sent: bytes, *, expect: bytes | None) -> str:
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(sent)
            await writer.drain()
            if expect is None:
                return "left"
            answer = await asyncio.wait_for(reader.read(64), 60)
            return "refused" if answer.startswith(expect) else "lost"
        finally:
            writer.close()

    def head(size: int) -> bytes:
        return f"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()

    async def slowly(picture: bytes) -> str:
        async def parts() -> Any:
            for start in range(0, len(picture), len(picture) // 4 + 1):
                yield picture[start : start + len(picture) // 4 + 1]
                await asyncio.sleep(0.1)

        return await post(parts())

    dice = random.Random(seed)
    shots: list[Shot] = []
    for _ in range(count):
        picture, broken, kind = dice.choice(valid), dice.choice(invalid), dice.random()
        if kind < 0.60:
            shots.append(partial(post, picture))
        elif kind < 0.80:
            shots.append(partial(post, broken))
        elif kind < 0.85:
            shots.append(partial(raw, head(10**11), expect=b"HTTP/1.1 413"))
        elif kind < 0.90:
            shots.append(partial(slowly, picture))
        elif kind < 0.95:
            shots.append(partial(raw, head(len(picture)) + picture[:50], expect=None))
        else:
            shots.append(partial(raw, head(len(picture)) + picture, expect=None))
    return shots
