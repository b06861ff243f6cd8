"""Decoders that are killed, hang and grow, and pictures that make them: one request is lost, if any."""

from __future__ import annotations

import io
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

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


class Answering:
    """In place of a process: notes the questions, and answers them one after the other."""

    made: ClassVar[list[Answering]] = []
    answers: ClassVar[list[Any]] = []
    questions: ClassVar[list[tuple[dict[str, Any], float, int]]] = []

    def __init__(self) -> None:
        self.pid, self.ended = 100 + len(self.made), False
        self.made.append(self)

    def is_alive(self) -> bool:
        return not self.ended

    def ask(self, question: dict[str, Any], data: list[bytes], seconds: float, *, most: int) -> Any:
        self.questions.append((question, seconds, most))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        self.ended = True


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> type[Answering]:
    for name in ("made", "answers", "questions"):
        monkeypatch.setattr(Answering, name, [])
    monkeypatch.setattr(decoders, "_Process", Answering)
    return Answering


def facts(height: object, width: object, channels: object = 3, **more: object) -> dict[str, object]:
    return {"height": height, "width": width, "channels": channels, **more}


def test_a_picture_of_any_depth_comes_with_its_description(answering: type[Answering]) -> None:
    for dtype in (np.uint8, np.uint16):
        pixels = np.arange(18, dtype=dtype).reshape(2, 3, 3)
        deep = {"deep": True} if dtype == np.uint16 else {}
        answering.answers.append((facts(2, 3, **deep), [pixels.tobytes(), b"said"]))
        size, picture = DecoderPool(1).opened(b"12345", pixels=6)
        assert size == (2, 3)
        assert picture is not None
        np.testing.assert_array_equal(picture.pixels, pixels)
        assert (picture.pixels.dtype, picture.description) == (dtype, b"said")


@pytest.mark.parametrize(
    "answer",
    [
        (facts(2, 3), [bytes(18)]),
        (facts(2, 3), [bytes(17), b""]),
        (facts(2, 3), [bytes(18), b"", b""]),
        (facts(2, 3, deep=True), [bytes(18), b""]),
        (facts(2, 3, deep=1), [bytes(36), b""]),
        (facts(0, 3), []),
        (facts(2, 1 << 31), []),
        (facts(True, 3), []),
        (facts(2, "3"), []),
        ({"height": 2}, []),
        (facts(2, 3, 0), [b"", b""]),
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(answering: type[Answering], answer: Any) -> None:
    answering.answers.append(answer)
    with pytest.raises(DecoderError):
        DecoderPool(1).opened(b"", pixels=6)


def test_sides_go_up_to_what_a_number_can_say(answering: type[Answering]) -> None:
    answering.answers.append((facts((1 << 31) - 1, 1), []))
    assert DecoderPool(1).opened(b"")[0] == ((1 << 31) - 1, 1)


def test_memory_time_and_the_answer_have_limits_that_grow_with_the_pixels(answering: type[Answering]) -> None:
    """A picture takes four channels of 16 bits at most; 2 million pixels stand for another second."""
    answering.answers += [(facts(9, 9), []), (facts(9, 9), []), ({}, [b"file"])]
    pool = DecoderPool(1, seconds=3)
    pool.opened(bytes(100))
    pool.opened(bytes(100), pixels=1 << 22)
    pool.encode(np.zeros((1 << 10, 1 << 11, 3), np.uint16), b"said", ".png")
    (small, large, encoded) = answering.questions
    assert small == ({"do": "decode", "pixels": 1 << 16, "memory": 200 + 24 * (1 << 16)}, 3 + 1 / 32, 8 << 16)
    assert large == ({"do": "decode", "pixels": 1 << 22, "memory": 200 + 24 * (1 << 22)}, 5, 8 << 22)
    count = 3 << 22  # bytes
    assert encoded[0] == {
        **{"do": "encode", "shape": (1 << 10, 1 << 11, 3), "deep": True, "suffix": ".png"},
        "memory": 5 * count,
    }
    assert encoded[1:] == (4, 2 * count + (192 << 20))


@pytest.mark.parametrize("files", [[], [b"one", b"two"]])
def test_not_one_file_is_no_file(answering: type[Answering], files: list[bytes]) -> None:
    answering.answers.append(({}, files))
    with pytest.raises(DecoderError, match="it gave no file"):
        DecoderPool(1).encode(np.zeros((1, 1, 1), np.uint8), b"", ".png")


def test_a_process_that_somebody_killed_is_replaced_and_asked_once_more(answering: type[Answering]) -> None:
    deaths: list[int] = []
    killed = DecoderError("gone", killed=True)
    pool = DecoderPool(2, on_death=deaths.append)
    assert len(answering.made) == 1  # the other one when it is needed
    answering.answers += [killed, (facts(9, 9), [])]
    assert pool.opened(b"")[0] == (9, 9)
    assert (deaths, pool.replaced, pool.pids()) == ([100], 1, [101])
    answering.answers += [killed, killed]
    with pytest.raises(DecoderError, match="gone"):
        pool.opened(b"")
    assert (deaths, pool.replaced) == ([100, 101, 102], 3)
    answering.answers.append(DecoderError("crashed"))
    with pytest.raises(DecoderError, match="crashed"):
        pool.opened(b"")
    assert answering.answers == []
    assert [process.ended for process in answering.made] == [True] * 4 + [False]


def test_after_the_end_nothing_is_started(answering: type[Answering]) -> None:
    deaths: list[int] = []
    pool = DecoderPool(1, on_death=deaths.append)
    pool.close()
    assert [process.ended for process in answering.made] == [True]
    with pytest.raises(DecoderError, match="no more pictures are read"):
        pool.opened(b"")
    assert deaths == []


def test_of_several_processes_all_but_one_take_large_pictures(answering: type[Answering]) -> None:
    for count, large in ((1, 1), (2, 1), (3, 2)):
        assert DecoderPool(count)._large._value == large
    answering.answers += [(facts(9, 9), [])] * 2
    pool = DecoderPool(1)
    with pool._large:
        assert pool.opened(b"", pixels=decoders.LARGE_PIXELS)[0] == (9, 9)
    assert decoders.LARGE_PIXELS == 1 << 20


def test_a_message_has_a_header_and_buffers_of_its_sizes() -> None:
    stream = io.BytesIO()
    decoders._send(stream, {"do": "x"}, [b"ab", b"", memoryview(b"cde")])  # type: ignore[arg-type]
    data = stream.getvalue()
    assert int.from_bytes(data[:4], "big") == data.index(b"}") + 1 - 4
    for most in (5, 6):
        header, buffers = decoders._receive(io.BytesIO(data), most)  # type: ignore[arg-type]
        assert (header["do"], header["sizes"], buffers) == ("x", [2, 0, 3], [b"ab", b"", b"cde"])
    with pytest.raises(ValueError, match="more bytes than were expected"):
        decoders._receive(io.BytesIO(data), 4)  # type: ignore[arg-type]
    with pytest.raises(EOFError):
        decoders._receive(io.BytesIO(data[:-1]), 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"[]", "no sizes"),
        (b'{"sizes": 3}', "no sizes"),
        (b'{"sizes": [-1]}', "no sizes"),
        (b'{"sizes": [true]}', "no sizes"),
        (b" " * 65536 + b"{}", "a header that is too long"),
        (b"x" * 65536, "Expecting value"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(header: bytes, words: str) -> None:
    data = len(header).to_bytes(4, "big") + header
    with pytest.raises(ValueError, match=words):
        decoders._receive(io.BytesIO(data), 1000)  # type: ignore[arg-type]


def test_a_decoder_gives_size_pixels_and_description_of_at_most_so_many_pixels() -> None:
    data = png(4, 3)
    reply, buffers = decoders._decode({"pixels": 12}, [data])
    assert reply == {"height": 3, "width": 4, "channels": 3, "deep": False}
    assert bytes(buffers[0]) == pixels_of(data).tobytes()
    assert decoders._decode({"pixels": 11}, [data]) == ({"height": 3, "width": 4}, [])
    question = {"shape": (3, 4, 3), "deep": False, "suffix": ".png"}
    _, (file,) = decoders._encode(question, buffers)
    np.testing.assert_array_equal(pixels_of(bytes(file)), pixels_of(data))
    deep = np.arange(12, dtype=np.uint16).reshape(3, 4, 1) * 5000
    _, (file,) = decoders._encode(
        {**question, "shape": deep.shape, "deep": True}, [deep.tobytes(), buffers[1]]
    )
    reply, again = decoders._decode({"pixels": 12}, [file])
    assert reply == {"height": 3, "width": 4, "channels": 1, "deep": True}
    assert bytes(again[0]) == deep.tobytes()
