"""What requests share and what they hear: who holds memory, who gives way, and which error becomes which answer."""

from __future__ import annotations

import logging

import pytest

from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.media.decoders import DecoderError
from trt_hspan.serving.admission import (
    Budget,
    RefusedError,
    gone,
    refusal_from_error,
    stopping,
    suffix_from_format,
    too_slow,
)
from trt_hspan.upscaling.scheduler import DeviceError, RunError


def status_of(budget: Budget, size: int) -> int:
    with pytest.raises(RefusedError) as refused:
        budget.reserve(size)
    return refused.value.status


def test_memory_is_held_until_it_is_released() -> None:
    budget = Budget(10, "pictures")
    assert budget.held == 0
    with budget.reserve(4) as first:
        second = budget.reserve(6)
        assert (budget.held, first.size, second.size) == (10, 4, 6)
        assert status_of(budget, 1) == 503
        assert status_of(budget, 11) == 413
        second.grow(5)
        assert budget.held == 9
        budget.reserve(1)
    assert (budget.held, first.size) == (6, 0)


def test_growing_counts_what_is_held_already_once() -> None:
    budget = Budget(10, "pictures")
    reservation = budget.reserve(6)
    reservation.grow(10)
    assert (budget.held, reservation.size) == (10, 10)
    with pytest.raises(RefusedError, match="takes 11 bytes of pictures, this server has 10"):
        reservation.grow(11)
    assert budget.held == 10


def test_the_largest_of_the_old_gives_way_and_no_more_than_must() -> None:
    budget, dropped = Budget(10, "pictures"), list[str]()
    small, large = (
        budget.reserve(size, on_drop=lambda name=name: dropped.append(name), after=-1)
        for size, name in ((3, "small"), (5, "large"))
    )
    with budget.reserve(4) as third:
        assert dropped == ["large"]
        assert (small.dropped, large.dropped, third.dropped) == (False, True, False)
        assert (budget.held, large.size, third.size) == (7, 0, 4)
        with pytest.raises(RefusedError) as refused:
            large.grow(1)
        assert refused.value.status == 408
        large.release()
        assert budget.held == 7
    budget.reserve(7)
    assert dropped == ["large"]


def test_what_is_young_or_settled_or_cannot_be_dropped_stays() -> None:
    budget, dropped = Budget(10, "pictures"), list[int]()
    budget.reserve(3, on_drop=lambda: dropped.append(0), after=60)
    budget.reserve(3, after=-1)
    settled = budget.reserve(2, on_drop=lambda: dropped.append(1), after=-1)
    settled.settle(3)
    assert budget.held == 9
    assert status_of(budget, 2) == 503
    assert (budget.held, dropped) == (9, [])


@pytest.mark.parametrize(
    ("error", "status", "words", "logged"),
    [
        (RefusedError(418, "a\n  b"), 418, "a b", False),
        (HspanError("a.png", "damaged", "give another"), 400, "a.png: damaged; give another", False),
        (OutOfMemoryError("a.png", "too large", "give another"), 503, "does not fit", True),
        (MemoryError(), 503, "does not fit", True),
        (DecoderError("it ended"), 400, "picture: its decoder failed: it ended", False),
        (DeviceError("secret"), 503, "the GPU failed; the server ends", True),
        (RunError("secret"), 500, "the network failed on this input", True),
        (KeyError("secret"), 500, "unexpected KeyError", True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_error_has_its_answer_and_the_log_what_a_client_must_not_see(
    caplog: pytest.LogCaptureFixture, error: Exception, status: int, words: str, logged: bool
) -> None:
    with caplog.at_level(logging.DEBUG):
        refused = refusal_from_error(error)
    assert (refused.status, "secret" in refused.message) == (status, False)
    assert words in refused.message
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * logged


def test_each_reason_to_end_has_a_status() -> None:
    assert [refused().status for refused in (stopping, too_slow, gone)] == [503, 408, 499]


def test_results_are_written_in_the_formats_that_pictures_have() -> None:
    assert suffix_from_format("webp") == ".webp"
    with pytest.raises(RefusedError, match=r"format is 'gif', expected one of .*png") as refused:
        suffix_from_format("gif")
    assert refused.value.status == 400


def test_a_request_gives_way_from_a_second_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    budget, dropped = Budget(10, "pictures"), list[int]()
    budget.reserve(10, on_drop=lambda: dropped.append(1))
    clock[0] = 101.0
    assert status_of(budget, 1) == 503
    clock[0] = 101.01
    budget.reserve(1)
    assert (dropped, budget.held) == ([1], 1)


def test_a_reservation_begins_with_nothing() -> None:
    budget = Budget(10, "pictures")
    with budget.reserve() as reservation:
        assert (reservation.size, reservation.dropped, budget.open) == (0, False, {reservation})
    assert budget.open == set()


def test_what_a_client_asked_for_is_shown_in_part() -> None:
    with pytest.raises(RefusedError, match=f"format is '{'x' * 40}', expected"):
        suffix_from_format("x" * 41)
