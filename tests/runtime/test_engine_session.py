"""Which profile of an engine takes a shape; what needs a driver is in `test_tensorrt_on_standin`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from trt_hspan.runtime.engine_session import GRAPH_CAPACITY, PIPELINE_SLOTS, EngineSession, SessionMemory


def session(*profiles: tuple[tuple[int, ...], tuple[int, ...]]) -> EngineSession:
    engine = SimpleNamespace(profiles=tuple((low, low, high) for low, high in profiles), where="net.plan")
    return EngineSession(engine, SimpleNamespace())  # type: ignore[arg-type]


SMALL, LARGE = ((1, 3, 4, 4), (2, 3, 8, 8)), ((1, 3, 6, 6), (1, 3, 24, 16))


@pytest.mark.parametrize(
    ("shape", "profile"),
    [
        *[((1, 3, 4, 4), 1), ((2, 3, 8, 8), 1), ((1, 3, 8, 8), 1), ((1, 3, 9, 8), 0), ((1, 3, 24, 16), 0)],
        *[((1, 3, 25, 16), None), ((1, 3, 24, 17), None), ((1, 3, 3, 4), None), ((3, 3, 8, 8), None)],
        *[((1, 3, 4, 9), None), ((2, 3, 9, 8), None), ((1, 3, 8), None)],
    ],
)
def test_the_profile_with_the_smallest_maximum_takes_a_shape(
    shape: tuple[int, ...], profile: int | None
) -> None:
    assert session(LARGE, SMALL).profile_for(shape) == profile


def test_a_session_that_was_not_opened_runs_nothing_and_has_nothing_to_free() -> None:
    closed = session(SMALL)
    with pytest.raises(RuntimeError, match="the runner is not active"):
        closed.run(None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="the runner is not active"):
        list(closed.run_many([None]))  # type: ignore[list-item]
    assert closed.memory == SessionMemory(activation_bytes=0, io_device_bytes=0, pinned_bytes=0)
    assert (closed.graph_count, closed.graph_launches, closed.last_times) == (0, 0, None)
    closed.close()


def test_three_batches_are_in_flight_and_four_shapes_have_graphs_in_each_of_four_slots() -> None:
    assert (PIPELINE_SLOTS, GRAPH_CAPACITY) == (3, 16)
