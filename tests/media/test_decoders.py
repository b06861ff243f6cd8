"""Decoders that are killed, hang and grow, and pictures that make them: one request is lost, if any."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.served_pictures import hostile_files, pixels_of, png

from trt_hspan.errors import HspanError
from trt_hspan.media import decoders
from trt_hspan.media.decoders import DecoderError, DecoderPool


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(2, seconds=5)
    yield pool
    children = [psutil.Process(pid) for pid in pool.pids()]
    pool.close()
    assert not any(child.is_running() for child in children)


def test_picture_goes_there_and_back(pool: DecoderPool) -> None:
    data = png(40, 30)
    assert pool.opened(data, pixels=1199) == ((30, 40), None)
    size, picture = pool.opened(data)
    assert size == (30, 40)
    assert picture is not None
    np.testing.assert_array_equal(picture.pixels, pixels_of(data))
    again = pool.encode(picture.pixels, picture.description, ".webp")
    np.testing.assert_array_equal(pixels_of(bytes(again)), pixels_of(data))


@pytest.mark.parametrize("kind", hostile_files())
def test_hostile_file_costs_no_process(pool: DecoderPool, kind: str) -> None:
    before = pool.pids()
    with pytest.raises(HspanError):
        pool.decode(hostile_files()[kind], pixels=100_000)
    assert pool.pids() == before


def test_picture_of_more_pixels_than_its_header_promised_is_refused(pool: DecoderPool) -> None:
    with pytest.raises(HspanError, match="30x40 pixels, more than 100 in all"):
        pool.decode(png(40, 30), pixels=100)


def test_process_that_was_killed_is_replaced(pool: DecoderPool) -> None:
    data = png(16, 16)
    pool.opened(data)
    for pid in pool.pids():
        os.kill(pid, signal.SIGKILL)
    before = pool.replaced
    deadline = time.monotonic() + 5
    while any(process.is_alive() for process in pool._all):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert pool.opened(data)[0] == (16, 16)
    assert pool.replaced > before


def test_process_that_hangs_costs_its_request_only() -> None:
    pool = DecoderPool(2, seconds=60)  # a process that is starting takes its time on a busy machine
    try:
        pool.opened(png(8, 8))
        pool._seconds = 0.7
        (pid,) = pool.pids()
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(DecoderError, match="took longer"):
            pool.opened(png(8, 8))
        assert not psutil.pid_exists(pid)
    finally:
        pool.close()


def test_picture_whose_process_is_killed_at_work_goes_to_another(pool: DecoderPool) -> None:
    pool.opened(png(8, 8))
    process, before = pool._idle.queue[-1], pool.replaced
    os.kill(process.pid, signal.SIGSTOP)
    sizes: list[tuple[int, int]] = []
    asking = threading.Thread(target=lambda: sizes.append(pool.opened(png(8, 8))[0]))
    asking.start()
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    asking.join(10)
    assert sizes == [(8, 8)]
    assert pool.replaced == before + 1


def test_picture_whose_process_crashes_is_refused_with_the_code(pool: DecoderPool) -> None:
    pool.opened(png(8, 8))
    process = pool._idle.queue[-1]
    os.kill(process.pid, signal.SIGSTOP)
    crash = threading.Timer(0.1, lambda: os.kill(process.pid, signal.SIGSEGV))
    crash.start()
    resume = threading.Timer(0.2, lambda: os.kill(process.pid, signal.SIGCONT))
    resume.start()
    with pytest.raises(DecoderError, match="it ended with code -11") as refused:
        pool.opened(png(8, 8))
    assert not refused.value.killed
    assert pool.opened(png(8, 8))[0] == (8, 8)
    crash.join()
    resume.join()


def test_picture_that_takes_more_memory_than_its_size_allows_is_refused(
    pool: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels are honest, so the room beside them is taken away, and more: what is left is not enough."""
    data = png(3000, 1000)
    pixels = 3_000_000
    assert pool.decode(data, pixels=pixels).pixels.shape == (1000, 3000, 3)
    ask = decoders._Process.ask

    def stingy(self: object, header: dict[str, object], *words: object, **options: object) -> object:
        return ask(self, {**header, "memory": -(180 << 20)}, *words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(decoders._Process, "ask", stingy)
    with pytest.raises((HspanError, DecoderError)):
        pool.decode(data, pixels=pixels)
    monkeypatch.undo()
    assert pool.decode(data, pixels=pixels).pixels.shape == (1000, 3000, 3)


def test_large_pictures_leave_a_process_to_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "LARGE_PIXELS", 100)
    pool = DecoderPool(2)
    try:
        large = png(40, 40)
        with pool._large:  # one is at work
            waiting = threading.Thread(target=pool.decode, args=(large,), kwargs={"pixels": 1600})
            waiting.start()
            time.sleep(0.1)
            assert waiting.is_alive()
            assert pool.opened(png(8, 8), pixels=64)[0] == (8, 8)
        waiting.join(20)
        assert not waiting.is_alive()
    finally:
        pool.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02[]",
        b'\0\0\0\x0d{"sizes":[-1]}'[:17],
        b"\0\0\0\x14" + b'{"sizes": [99999999]}'[:20],
        b"\0\0\0\x05nonsense",
        b"",
    ],
)
def test_server_believes_nothing_of_a_process_that_was_taken_over(reply: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(reply)
        theirs.close()
        with pytest.raises((ValueError, EOFError, OSError)):
            decoders._receive(ours.makefile("rb"), 1000)


def test_processes_ignore_the_signals_that_stop_the_server_and_end_with_it(pool: DecoderPool) -> None:
    pool.opened(png(8, 8))
    for pid in pool.pids():
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    before = pool.pids()
    assert pool.opened(png(8, 8))[0] == (8, 8)
    assert pool.pids() == before
    for pid in before:
        opened = [link for link in os.listdir(f"/proc/{pid}/fd") if int(link) > 2]  # noqa: PTH208
        kinds = {str(Path(f"/proc/{pid}/fd/{link}").readlink()).partition(":")[0] for link in opened}
        assert "socket" in kinds
        assert len(opened) <= 4, kinds
