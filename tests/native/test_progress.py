"""Nested phases become one number that never falls, and a cancelled build hears of it at its next step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trt_hspan.native.progress import BuildProgress, PhaseTracker


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


def test_nothing_has_begun_at_first() -> None:
    assert PhaseTracker().progress == BuildProgress(fraction=0.0, phase="")


def test_steps_count_once_and_never_backward() -> None:
    tracker = PhaseTracker()
    tracker.start("build", None, 4)
    for index, fraction in ((1, 0.5), (0, 0.5), (1, 0.5), (2, 0.75), (9, 1.0)):
        assert tracker.step("build", index)
        assert tracker.progress.fraction == fraction


def test_a_phase_without_steps_has_one() -> None:
    tracker = PhaseTracker()
    tracker.start("build", None, 2)
    tracker.start("empty", "build", 0)
    tracker.step("empty", 0)
    assert tracker.progress.fraction == 0.5


def test_of_phases_side_by_side_the_furthest_counts() -> None:
    tracker = PhaseTracker()
    tracker.start("build", None, 2)
    for name, steps in (("slow", 10), ("fast", 2), ("slower", 20)):
        tracker.start(name, "build", steps)
        tracker.step(name, 0)
    assert tracker.progress.fraction == 0.5 / 2
    tracker.start("other", None, 5)
    tracker.step("other", 1)
    assert tracker.progress.fraction == 0.4


def test_a_phase_whose_parent_has_ended_or_is_unknown_stands_for_itself() -> None:
    tracker = PhaseTracker()
    tracker.finish("unknown")
    tracker.start("orphan", "unknown", 4)
    tracker.step("orphan", 0)
    assert tracker.progress == BuildProgress(fraction=0.25, phase="orphan")


def test_after_the_outermost_phase_its_name_stays() -> None:
    tracker = PhaseTracker()
    tracker.start("build", None, 1)
    tracker.finish("build")
    assert tracker.progress.phase == "build"


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
