"""Whose turn it is, and what becomes of a job whose client leaves, whose time is over, or whose run fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.runtime.runner import Float32Array
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling import scheduler
from trt_hspan.upscaling.scheduler import (
    DeviceError,
    Job,
    Model,
    RunError,
    TileRunner,
    Unit,
    takes_size,
)
from trt_hspan.upscaling.upscaler import upscale_array

UNLUCKY = 13  # no run succeeds that has an item of this value


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
        if UNLUCKY in self.seen[-1]:
            raise HspanError("net", "unlucky")
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
    assert str(failures[0]) == "nearest: the GPU failed: net.plan: an illegal address"


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
    runner.profiles = (((4, 3, 8, 8), (4, 3, 32, 32)),)
    with opened(runner) as model:
        job = Job(model)
        batch = np.random.default_rng(0).random((2, 3, 9, 10), np.float32)
        output = job.result(job.submit(batch))
        np.testing.assert_array_equal(output, batch.repeat(2, 2).repeat(2, 3))
        assert runner.calls == [(4, 3, 8, 8), (4, 3, 9, 10)]
        model.require_shape((1, 3, 9, 10))
        with pytest.raises(HspanError, match="input: is 5x3x9x10"):
            model.require_shape((5, 3, 9, 10))


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


def test_tiles_of_a_network_without_limits_are_those_of_a_cpu() -> None:
    with opened(NearestRunner(scale=2)) as model:
        assert model.tile_ranges == (((1, 3, 8, 8), (4, 3, 64, 64)),)
        assert (model.version, model.runs, model.items) == (1, 0, 0)
    with opened(NearestRunner(scale=2), tile=ImageSize(40, 4)) as model:
        assert model.tile_ranges == (((1, 3, 8, 8), (4, 3, 40, 8)),)


def test_tiles_of_an_engine_are_its_own_unless_smaller_ones_are_requested() -> None:
    runner = NearestRunner(scale=2)
    runner.profiles = (((1, 3, 16, 24), (2, 3, 128, 96)), ((1, 3, 32, 32), (3, 3, 32, 32)))
    with opened(runner) as model:
        assert model.tile_ranges == runner.profiles
    with opened(runner, tile=ImageSize(48, 20)) as model:
        assert model.tile_ranges == (
            ((1, 3, 16, 24), (2, 3, 48, 24)),
            ((1, 3, 32, 32), (3, 3, 32, 32)),
        )


def test_on_a_cpu_each_instance_has_a_runner_of_its_own_and_on_gpus_each_device() -> None:
    for on_gpu, openers, instances, count in ((False, 1, 3, 3), (False, 2, 1, 1), (True, 2, 3, 2)):
        runners: list[NearestRunner] = []

        def opener(on_gpu: bool = on_gpu, runners: list[NearestRunner] = runners) -> NearestRunner:
            runners.append(NearestRunner(scale=2))
            runners[-1].on_gpu = on_gpu
            return runners[-1]

        model = Model([opener] * openers, name="net", cpu_instances=instances)
        model.open()
        assert len(runners) == count
        assert model.window == 2 * count * (4 if on_gpu else 1)
        assert {runner.where for runner in runners} == {"net"}
        assert [runner.calls for runner in runners] == [[(1, 3, 8, 8)]] * count
        model.close()
        assert not any(runner.active for runner in runners)


def test_a_runner_that_does_not_open_is_what_open_raises() -> None:
    def broken() -> NearestRunner:
        raise HspanError("a.onnx", "is broken")

    with pytest.raises(HspanError, match=r"a\.onnx: is broken"):
        Model([broken], name="net").open()


def test_a_job_takes_batches_as_it_gives_results() -> None:
    """As many are in the queue as keep devices busy, and no more are made."""

    def put(units: list[Unit]) -> None:
        for each in units:
            each.result.set_result(each.batch)

    model, made = SimpleNamespace(window=3, put=put), []

    def batches() -> Iterator[Float32Array]:
        for value in range(5):
            made.append(value)
            yield tile(value)

    results = Job(model).results(batches())  # type: ignore[arg-type]
    seen = []
    for result in results:
        seen.append((int(result.max()), len(made)))
    assert seen == [(0, 3), (1, 4), (2, 5), (3, 5), (4, 5)]


def test_a_job_is_given_up_for_the_first_reason() -> None:
    with opened(NearestRunner(scale=2)) as model:
        job = Job(model)
        assert (job.state, job.done, job.total) == ("receiving", 0, 0)
        job.on_tile(2, 5)
        assert (job.done, job.total) == (2, 5)
        job.cancel(TimeoutError("too late"))
        job.cancel(ValueError("too many"))
        for call in (job.check, lambda: job.on_tile(3, 5)):
            with pytest.raises(TimeoutError, match="too late"):
                call()


def test_what_fails_together_is_run_alone_and_one_fails() -> None:
    runner = _Stepped()
    with opened(runner) as model:
        jobs = [Job(model) for _ in range(4)]
        jobs[0].submit(tile(1))
        waiting(model, 0)
        results = [job.submit(tile(value)) for job, value in zip(jobs, (1, UNLUCKY, 3), strict=False)]
        runner.step(5)
        assert int(jobs[0].result(results[0]).max()) == 1
        with pytest.raises(RunError, match=r"^HspanError: net: unlucky$"):
            jobs[1].result(results[1])
        assert int(jobs[2].result(results[2]).max()) == 3
        assert runner.seen[1:] == [[1], [1, UNLUCKY, 3], [1], [UNLUCKY], [3]]
        assert (model.runs, model.items) == (3, 3)


def test_the_memory_of_a_tile_that_runs_elsewhere_is_that_of_its_result() -> None:
    runner = TileRunner("net", 2, (((1, 3, 8, 8), (4, 3, 64, 64)),), iter)
    assert runner.memory_bytes((2, 3, 10, 20)) == 4 * 2 * 3 * 20 * 40
    assert (runner.size_multiple, runner.emulated, runner.on_gpu) == (1, False, False)


def test_batches_never_exceed_what_the_engine_takes() -> None:
    runner = _Stepped(on_gpu=True)
    runner.profiles = (((1, 3, 8, 8), (4, 3, 32, 32)),)
    with opened(runner) as model:
        first, second = Job(model), Job(model)
        first.submit(tile(1))
        waiting(model, 0)
        pending = [
            job.submit(np.concatenate([tile(value)] * count))
            for job, value, count in ((first, 1, 3), (first, 1, 3), (second, 2, 1), (second, 2, 2))
        ]
        runner.step(4)
        results = [result.result(10) for result in pending]
        assert [len(result) for result in results] == [3, 3, 1, 2]
        assert runner.seen[1:] == [[1], [1, 1, 1, 2], [1, 1, 1], [2, 2]]


def test_a_tile_of_another_shape_waits_for_the_next_run() -> None:
    runner = _Stepped()
    with opened(runner) as model:
        first, second = Job(model), Job(model)
        first.submit(tile(1))
        waiting(model, 0)
        pending = [
            job.submit(tile(value, side=side))
            for job, value, side in ((first, 2, 8), (second, 3, 16), (second, 4, 8))
        ]
        runner.step(4)
        assert [result.result(10).shape[2] for result in pending] == [16, 32, 16]
        assert runner.seen[1:] == [[1], [2], [3], [4]]


def test_health_is_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(scheduler, "time", SimpleNamespace(monotonic=lambda: now))
    runner = _Stepped()
    with opened(runner) as model:
        job = Job(model)

        def ends() -> None:
            pending = model._pending
            runner.step()
            while model._pending == pending:
                time.sleep(0.001)

        for value in (1, 1, UNLUCKY):
            job.submit(tile(value))
        now = 1060.0
        assert model.is_healthy()
        now = 1061.0
        assert not model.is_healthy()
        ends()  # a success, and others wait since
        now = 1121.0
        assert model.is_healthy()
        now = 1122.0
        assert not model.is_healthy()
        ends()
        now = 1180.0
        ends()  # a failure, after which nobody asks any more
        assert model.is_healthy()
        job.submit(tile(UNLUCKY))
        now = 1183.0
        assert not model.is_healthy()
        ends()
        now = 1240.0
        assert not model.is_healthy()
        now = 1241.0
        assert model.is_healthy()
        job.submit(tile(1))
        waiting(model, 0)
        other = Job(model)
        other.submit(tile(2))
        now = 1302.0
        assert not model.is_healthy()
        other.cancel(TimeoutError())
        assert not model.is_healthy()  # the other one still runs
        ends()
        assert model.is_healthy()
    model, now = Model([], name="net"), 2000.0
    job = Job(model)
    job.submit(tile(1))
    now = 2050.0
    job.submit(tile(1))
    now = 2061.0
    assert not model.is_healthy()
    job.cancel(TimeoutError())
    assert model.is_healthy()


def test_on_a_cpu_a_large_tensor_does_not_run_in_one_piece() -> None:
    runner = NearestRunner(scale=2)
    runner.profiles = (((1, 3, 8, 8), (4, 3, 500, 500)),)
    sizes = [ImageSize(*size) for size in ((160, 160), (100, 256), (161, 160), (500, 500), (10, 501))]
    with opened(runner) as model:
        assert [model.runs_whole(size) for size in sizes] == [True, True, False, False, False]
        runner.on_gpu = True
        assert [model.runs_whole(size) for size in sizes] == [True, True, True, True, False]
