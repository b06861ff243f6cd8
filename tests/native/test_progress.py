"""Nested phases become one number that never falls, and a cancelled build hears of it at its next step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trt_hspan.native.progress import PhaseTracker


def test_steps_of_a_phase_divide_the_step_of_its_parent() -> None:
    tracker = PhaseTracker()
    tracker.start("build", None, 2)
    tracker.step("build", 0)
    tracker.start("tune", "build", 4)
    tracker.step("tune", 0)
    assert tracker.progress.fraction == 0.5 + 0.25 / 2
    assert tracker.progress.phase == "tune"


def test_a_phase_that_ends_early_counts_as_whole() -> None:
    tracker = PhaseTracker()
    tracker.start("build", None, 2)
    tracker.start("tune", "build", 4)
    tracker.finish("tune")
    assert tracker.progress.fraction == 0.5
    assert tracker.progress.phase == "build"


def test_the_end_of_the_outermost_phase_is_the_end() -> None:
    tracker = PhaseTracker()
    tracker.start("build", None, 3)
    tracker.finish("build")
    assert tracker.progress.fraction == 1.0


def test_steps_go_on_until_the_build_is_cancelled() -> None:
    tracker = PhaseTracker()
    tracker.start("build", None, 3)
    assert tracker.step("build", 0)
    tracker.cancel()
    assert not tracker.step("build", 1)
    assert not tracker.step("unknown phase", 0)


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("start"),
                st.sampled_from("abc"),
                st.sampled_from([None, "a", "b"]),
                st.integers(-1, 5),
            ),
            st.tuples(st.just("step"), st.sampled_from("abc"), st.none(), st.integers(0, 9)),
            st.tuples(st.just("finish"), st.sampled_from("abc"), st.none(), st.none()),
        )
    )
)
def test_the_fraction_never_falls_and_stays_in_its_range(
    events: list[tuple[str, str, str | None, int]],
) -> None:
    tracker = PhaseTracker()
    before = 0.0
    for kind, name, parent, number in events:
        if kind == "start" and parent != name:
            tracker.start(name, parent, number)
        elif kind == "step":
            tracker.step(name, number)
        else:
            tracker.finish(name)
        now = tracker.progress.fraction
        assert before <= now <= 1.0
        before = now
