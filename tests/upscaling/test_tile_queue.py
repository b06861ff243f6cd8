"""The queue in which the tiles of all requests wait, without a network."""

from __future__ import annotations

import numpy as np

from trt_hspan.upscaling.scheduler import (
    Job,
    TileQueue,
    Unit,
)


def unit(job: Job, count: int = 1, side: int = 8) -> Unit:
    return Unit(job=job, batch=np.zeros((count, 3, side, side), np.float32))


def taken(queue: TileQueue, most: int, *, several: bool = False) -> list[Unit]:
    return queue.take(lambda shape: most, several=several)


def test_whoever_gave_a_tile_waits_for_all_others() -> None:
    queue, jobs = TileQueue(), [Job(None) for _ in range(3)]  # type: ignore[arg-type]
    a, b, c = jobs
    first, second, third, large = unit(a), unit(a), unit(b), unit(c, side=16)
    queue.put([first, second, third, large])
    assert len(queue) == 4
    assert not any(job.has_begun for job in jobs)
    assert taken(queue, 2) == [first, third]
    assert [job.has_begun for job in jobs] == [True, True, False]
    assert taken(queue, 2) == [large]
    assert taken(queue, 2) == [second]
    assert len(queue) == 0
    assert first.result.running()


def test_a_run_has_no_more_items_than_the_network_takes_but_for_one_job_alone() -> None:
    queue, jobs = TileQueue(), [Job(None) for _ in range(4)]  # type: ignore[arg-type]
    units = [unit(job, count) for job, count in zip(jobs, (3, 2, 1, 9), strict=True)]
    queue.put(units)
    assert taken(queue, 4) == [units[0], units[2]]
    assert taken(queue, 4) == [units[1]]
    assert taken(queue, 4) == [units[3]]


def test_of_one_job_several_run_together_where_that_is_allowed() -> None:
    queue, a, b = TileQueue(), Job(None), Job(None)  # type: ignore[arg-type]
    units = [unit(a), unit(a), unit(a), unit(b)]
    queue.put(units)
    assert taken(queue, 3, several=True) == [units[0], units[3], units[1]]
    assert taken(queue, 3, several=True) == [units[2]]


def test_a_closed_queue_gives_what_waits_and_then_nothing() -> None:
    queue, job, other = TileQueue(), Job(None), Job(None)  # type: ignore[arg-type]
    queue.put([unit(job), unit(other), unit(job)])
    queue.drop(other)
    queue.close()
    assert [len(taken(queue, 1)) for _ in range(3)] == [1, 1, 0]
    queue.drop(other)
