"""Whose turn it is, and what becomes of a job whose client leaves, whose time is over, or whose run fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.runtime.runner import Float32Array
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.scheduler import DeviceError, Job, Model, RunError, takes_size
from trt_hspan.upscaling.upscaler import upscale_array


class _Stepped(NearestRunner):
    """Runs one batch for each `step`; notes the first value of each item, by which jobs are told apart."""

    def __init__(self, *, on_gpu: bool = False, failure: Exception | None = None) -> None:
        super().__init__(scale=2)
        self.on_gpu = on_gpu
        self.failure = failure
        self.steps = threading.Semaphore(1)  # the model runs once when it is opened
        self.seen: list[list[int]] = []

    def infer(self, batch: Float32Array) -> Float32Array:
        assert self.steps.acquire(timeout=20)
        self.seen.append([int(item[0, 0, 0]) for item in batch])
        if self.failure is not None and len(self.seen) > 1:
            raise self.failure
        return super().infer(batch)

    def step(self, count: int = 1) -> None:
        self.steps.release(count)


@contextmanager
def opened(runner: NearestRunner, **options: object) -> Iterator[Model]:
    model = Model([lambda: runner], name="net", **options)  # type: ignore[arg-type]
    model.open()
    try:
        yield model
    finally:
        if isinstance(runner, _Stepped):
            runner.step(1000)
        model.close()


def tile(value: int, side: int = 8) -> Float32Array:
    return np.full((1, 3, side, side), value, np.float32)


def waiting(model: Model, count: int) -> None:
    deadline = time.monotonic() + 10
    while len(model.queue) != count:
        assert time.monotonic() < deadline, len(model.queue)
        time.sleep(0.001)


def test_small_job_beside_a_large_one_waits_for_one_run_only() -> None:
    runner = _Stepped()
    with opened(runner) as model:
        large, small = Job(model), Job(model)
        results = [large.submit(tile(1)) for _ in range(20)]
        waiting(model, 19)  # one is on the device
        answer = small.submit(tile(2, side=16))
        runner.step(3)
        assert small.result(answer).shape == (1, 3, 32, 32)
        assert sum(result.done() for result in results) <= 2


def test_jobs_take_turns_and_tiles_of_one_shape_run_together() -> None:
    runner = _Stepped()
    with opened(runner) as model:
        first, second, third = Job(model), Job(model), Job(model)
        first.submit(tile(1))
        waiting(model, 0)
        for job, value in ((first, 1), (second, 2), (third, 3)):
            pending = [job.submit(tile(value)) for _ in range(2)]
        runner.step(3)
        third.result(pending[1])
        # On a CPU a job gives one tile to a batch, so that its result does not depend on how many others there are.
        assert runner.seen[1:] == [[1], [1, 2, 3], [1, 2, 3]]
        assert (model.runs, model.items) == (3, 7)


def test_on_a_gpu_a_job_alone_fills_its_batches() -> None:
    runner = _Stepped(on_gpu=True)
    runner.profiles = (((1, 3, 8, 8), (4, 3, 32, 32)),)
    with opened(runner) as model:
        job = Job(model)
        job.submit(tile(1))
        waiting(model, 0)
        pending = [job.submit(tile(1)) for _ in range(6)]
        runner.step(3)
        job.result(pending[-1])
        assert list(map(len, runner.seen[1:])) == [1, 4, 2]


def test_picture_in_tiles_is_what_the_bare_runner_makes_of_it() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8)
    bare = NearestRunner(scale=2)
    with bare, opened(NearestRunner(scale=2), tile=ImageSize(24, 24)) as model:
        actual = upscale_array(Job(model).runner, pixels)
        assert model.items > 4
        np.testing.assert_array_equal(actual, upscale_array(bare, pixels))


def test_cancelled_job_gives_its_tiles_back_at_once() -> None:
    runner = _Stepped()
    with opened(runner) as model:
        job, other = Job(model), Job(model)
        pending = [job.submit(tile(1)) for _ in range(30)]
        waiting(model, 29)
        job.cancel(TimeoutError("too late"))
        assert len(model.queue) == 0
        for result in (pending[-1], pending[0]):
            runner.step()
            with pytest.raises(TimeoutError, match="too late"):
                job.result(result)
        with pytest.raises(TimeoutError, match="too late"):
            job.submit(tile(1))
        answer = other.submit(tile(2))
        runner.step()
        assert other.result(answer).shape == (1, 3, 16, 16)
        assert [2] in runner.seen


def test_failed_run_on_a_cpu_costs_the_jobs_of_that_run_only() -> None:
    runner = _Stepped(failure=HspanError("net", "an illegal instruction"))
    with opened(runner) as model:
        job = Job(model)
        pending = job.submit(tile(1))
        runner.step()
        with pytest.raises(RunError, match="an illegal instruction"):
            job.result(pending)
        runner.failure = None
        pending = job.submit(tile(1))
        runner.step()
        assert job.result(pending).shape == (1, 3, 16, 16)


def test_failed_gpu_is_reported_and_its_requests_are_told() -> None:
    failures: list[DeviceError] = []
    runner = _Stepped(on_gpu=True, failure=HspanError("net.plan", "an illegal address"))
    with opened(runner, on_failure=failures.append) as model:
        job = Job(model)
        pending = job.submit(tile(1))
        runner.step()
        with pytest.raises(DeviceError, match="the GPU failed"):
            job.result(pending)
        deadline = time.monotonic() + 10
        while not failures and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "an illegal address" in str(failures[0])


def test_memory_that_runs_out_is_no_failure_of_the_gpu() -> None:
    failures: list[DeviceError] = []
    runner = _Stepped(on_gpu=True, failure=MemoryError("full"))
    with opened(runner, on_failure=failures.append) as model:
        job = Job(model)
        pending = job.submit(tile(1))
        runner.step()
        with pytest.raises(MemoryError):
            job.result(pending)
    assert not failures


def test_health_is_a_success_within_the_given_time_or_no_question() -> None:
    runner = _Stepped()
    with opened(runner) as model:
        assert model.is_healthy(0.0)
        job = Job(model)
        pending = job.submit(tile(1))
        time.sleep(0.02)
        assert model.is_healthy(60)
        assert not model.is_healthy(0.01)
        runner.step()
        job.result(pending)
        deadline = time.monotonic() + 10
        while not model.is_healthy(0.01) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert model.is_healthy(0.01)


def test_engine_for_larger_batches_gets_the_last_item_repeated() -> None:
    runner = NearestRunner(scale=2)
    runner.profiles = (((3, 3, 8, 8), (4, 3, 32, 32)),)
    with opened(runner) as model:
        job = Job(model)
        batch = np.random.default_rng(0).random((2, 3, 9, 10), np.float32)
        output = job.result(job.submit(batch))
        np.testing.assert_array_equal(output, batch.repeat(2, 2).repeat(2, 3))
        assert runner.calls[-1] == (3, 3, 9, 10)


def test_tiles_are_multiples_of_what_the_network_takes() -> None:
    runner = NearestRunner(scale=2)
    runner.size_multiple = 12
    with opened(runner) as model:
        assert model.tile_ranges == (((1, 3, 12, 12), (4, 3, 60, 60)),)


def test_on_a_cpu_as_many_run_together_as_have_the_pixels_of_one_tile() -> None:
    runner = NearestRunner(scale=2)
    with opened(runner) as model:
        shapes = ((8, 8), (32, 32), (32, 33), (32, 64), (32, 65), (64, 64), (65, 64))
        assert [model.most((1, 3, *shape)) for shape in shapes] == [4, 4, 3, 2, 1, 1, 1]
        assert (model.least((1, 3, 8, 8)), model.window) == (1, 2)
    runner.fixed_shape = (2, 3, None, None)
    with opened(runner) as model:
        assert model.most((1, 3, 8, 8)) == model.least((1, 3, 8, 8)) == 2


def test_on_a_gpu_as_many_run_together_as_the_engine_takes() -> None:
    runner = NearestRunner(scale=2)
    runner.on_gpu = True
    runner.profiles = (((1, 3, 8, 8), (7, 3, 16, 16)), ((2, 3, 8, 8), (3, 3, 64, 96)))
    with opened(runner) as model:
        assert [model.most((1, 3, *shape)) for shape in ((8, 8), (16, 17), (64, 96))] == [7, 3, 3]
        assert [model.least((1, 3, *shape)) for shape in ((8, 8), (16, 17))] == [1, 2]
        assert model.window == 2 * 3  # of the largest shape


def test_a_size_is_taken_within_one_range_and_in_whole_steps() -> None:
    runner = NearestRunner()
    assert takes_size(runner, ImageSize(1, 9999))
    runner.profiles = (((1, 3, 8, 8), (1, 3, 32, 16)), ((1, 3, 8, 8), (1, 3, 16, 32)))
    for height, width, taken in (
        (32, 16, True),
        (16, 32, True),
        (32, 32, False),
        (33, 8, False),
        (1, 1, True),
    ):
        assert takes_size(runner, ImageSize(height, width)) is taken
    runner.size_multiple = 4
    assert [takes_size(runner, ImageSize(*size)) for size in ((8, 12), (8, 10), (10, 8))] == [
        True,
        False,
        False,
    ]


def test_tile_that_does_not_fit_is_refused() -> None:
    runner = NearestRunner()
    runner.profiles = (((1, 3, 8, 8), (4, 3, 32, 32)),)
    with (
        pytest.raises(UsageError, match="64x64 is more than the network takes"),
        opened(runner, tile=ImageSize(64, 64)),
    ):
        pass
