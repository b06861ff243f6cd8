"""What a real server survives: floods, and clients that leave."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import numpy as np
from support.serve_process import ServeProcess
from support.served_pictures import hostile_files, png
from support.served_requests import (
    IMAGE,
    ask,
    scraped,
    until,
)
from tritonclient.utils import InferenceServerException


def test_one_bad_picture_among_others_fails_alone(server: ServeProcess, picture: bytes) -> None:
    bad = hostile_files()["truncated"]

    async def together() -> list[Any]:
        import tritonclient.grpc.aio as module

        async with module.InferenceServerClient(server.grpc_address) as client:

            async def one(data: bytes) -> Any:
                values = np.frombuffer(data, np.uint8)[None]
                tensor = module.InferInput("image", list(values.shape), "UINT8")
                tensor.set_data_from_numpy(values)
                return await client.infer(IMAGE, [tensor])

            first = asyncio.create_task(one(png(130, 140)))  # a dozen tiles, behind which the others meet
            await asyncio.sleep(0.05)
            files = [picture, bad, picture, picture, bad, picture, picture, picture]
            results = await asyncio.gather(*map(one, files), return_exceptions=True)
            await first
            return results

    results = asyncio.run(together())
    failed = [isinstance(result, InferenceServerException) for result in results]
    assert failed == [False, True, False, False, True, False, False, False]


def test_full_queue_refuses_at_once_and_loses_nothing(server: ServeProcess) -> None:
    large = png(70, 70)

    async def flood() -> list[tuple[int, float]]:
        import aiohttp

        async with aiohttp.ClientSession() as session:

            async def one() -> tuple[int, float]:
                started = time.monotonic()
                async with session.post(f"{server.http}/upscale", data=large) as response:
                    await response.read()
                    return response.status, time.monotonic() - started

            return await asyncio.gather(*(one() for _ in range(40)))

    answers = asyncio.run(flood())
    refused = [seconds for status, seconds in answers if status == 503]
    assert {status for status, _ in answers} == {200, 503}
    assert len(refused) >= 40 - 2 * 16 - 4
    assert sorted(refused)[len(refused) // 2] < 2.0, "a refusal must not wait for the others' work"


def test_body_in_a_hundred_thousand_pieces_is_harmless(server: ServeProcess) -> None:
    """Each costs time, whatever it contains."""
    host, _, port = server.http_address.rpartition(":")
    path = f"/v2/models/{IMAGE}/infer".encode()
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 4")
    assert ask(server, "GET", "/v2/health/ready")[0] == 200


def test_clients_that_leave_cost_nothing(server: ServeProcess, picture: bytes) -> None:
    host, _, port = server.http_address.rpartition(":")
    head = f"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
    seen = len(server.events)
    for _ in range(10):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(head + picture)
    until(
        lambda: [e for e in server.events[seen:] if e.get("path") == "/upscale" and e["status"] == "499"],
        lambda left: len(left) == 10,
        30,
    )
    until(lambda: scraped(server), lambda text: "trt_hspan_in_flight 0.0\n" in text, 30)
    assert "trt_hspan_held_bytes 0.0\n" in scraped(server)
    assert ask(server, "POST", "/upscale", picture)[0] == 200
