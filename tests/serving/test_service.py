"""What a server does with requests, whichever protocol brought them: with a network in numpy and no ports."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.runner_doubles import NearestRunner
from support.served_pictures import pixels_of, png
from support.service_double import HeldRunner, service_of, until

from trt_hspan.media.decoders import DecodedPicture
from trt_hspan.runtime.runner import Float32Array
from trt_hspan.serving import service as module
from trt_hspan.serving.admission import RefusedError, gone
from trt_hspan.serving.service import Service, in_thread
from trt_hspan.serving.v2 import PICTURES, TENSORS, InferCall
from trt_hspan.upscaling.scheduler import Model


@pytest.fixture
def service() -> Iterator[Service]:
    with service_of(max_pixels=200, queue_length=2) as made:
        yield made


def inferred(service: Service, batch: np.ndarray, seconds: float | None = None) -> np.ndarray:
    call = InferCall(identifier="", values=batch, seconds=seconds)
    with service.bodies.reserve(batch.nbytes) as held:
        output: np.ndarray = asyncio.run(service.inferred(call, held))
    return output


def refused(service: Service, *words: Any) -> tuple[int, str]:
    with pytest.raises(RefusedError) as caught:
        inferred(service, *words)
    return caught.value.status, caught.value.message


def test_a_tensor_is_computed_and_counted(service: Service) -> None:
    batch = np.random.default_rng(0).random((3, 3, 6, 8), np.float32)
    np.testing.assert_array_equal(inferred(service, batch), batch.repeat(2, 2).repeat(2, 3))
    own, pictures = service.answer("ModelStatistics")["model_stats"]
    assert (own["name"], own["version"], pictures["name"]) == ("net", "5", "net_image")
    assert (own["inference_count"], own["execution_count"]) == (3, service.model.runs)
    assert own["inference_stats"] == {"success": {"count": 1}, "fail": {"count": 0}}
    assert (pictures["inference_count"], pictures["execution_count"]) == (0, 0)
    assert service.bodies.held == service.work.held == 0


def test_as_many_pixels_are_taken_as_the_limit_says(service: Service) -> None:
    assert inferred(service, np.zeros((2, 3, 10, 10), np.float32)).shape == (2, 3, 20, 20)
    status, message = refused(service, np.zeros((1, 3, 3, 67), np.float32))
    assert (status, message) == (400, "input: has 201 pixels, this server takes 200; send tiles")
    status, message = refused(service, np.zeros((3, 3, 1, 67), np.float32))
    assert (status, message) == (400, "input: has 201 pixels, this server takes 200; send tiles")


def test_a_failure_is_counted_as_one(service: Service) -> None:
    service.model.runner.factor = 3  # type: ignore[attr-defined]  # an output of another size
    status, message = refused(service, np.zeros((1, 3, 4, 4), np.float32))
    assert (status, message) == (500, "the network failed on this input; the server's log says why")
    assert service.answer("ModelStatistics", "net")["model_stats"][0]["inference_stats"]["fail"] == {
        "count": 1
    }


def test_more_requests_than_may_wait_are_refused(service: Service) -> None:
    waiting = {service.job(), service.job()}
    service._jobs |= waiting
    batch = np.zeros((1, 3, 4, 4), np.float32)
    assert refused(service, batch) == (503, "the server is busy with 2 requests; try again later")
    service._jobs.pop()
    assert inferred(service, batch).shape == (1, 3, 8, 8)


def test_questions_of_the_protocol_have_answers(service: Service) -> None:
    assert service.answer("ServerLive") == {"live": True}
    assert service.answer("ServerReady") == service.answer("ModelReady", "net", "5") == {"ready": True}
    assert service.answer("ServerMetadata")["name"] == "trt-hspan"
    assert service.answer("ModelMetadata", "net") == TENSORS.metadata("net", 5)
    assert service.answer("ModelMetadata", "net_image", "5") == PICTURES.metadata("net_image", 5)
    models = service.answer("RepositoryIndex")["models"]
    assert models == [{"name": name, "version": "5", "state": "READY"} for name in ("net", "net_image")]
    assert len(service.answer("ModelStatistics", "net_image")["model_stats"]) == 1
    for question, words in (
        ("ModelReady", ("other",)),
        ("ModelReady", ("", "")),
        ("ModelMetadata", ("net", "4")),
        ("ModelStatistics", ("other",)),
    ):
        with pytest.raises(RefusedError, match="no such model: ") as caught:
            service.answer(question, *words)
        assert caught.value.status == 404


def test_a_server_that_stops_is_not_ready_and_takes_no_request(service: Service) -> None:
    service.admit()
    service.draining = True
    assert service.answer("ServerReady") == {"ready": False}
    with pytest.raises(RefusedError, match="the server stops"):
        service.admit()


def test_the_last_256_requests_that_named_themselves_are_remembered(service: Service) -> None:
    service.job()
    jobs = [service.job(str(number)) for number in range(256)]
    assert list(service.remembered.values()) == jobs
    again = service.job("0")  # the name is now of the newest
    assert list(service.remembered.values()) == [*jobs[1:], again]
    service.job("256")
    assert "1" not in service.remembered
    assert service.remembered["0"] is again


@pytest.mark.parametrize(
    ("name", "why", "level"),
    [
        ("/v2/health/live", None, logging.DEBUG),
        ("ServerReady", None, logging.DEBUG),
        ("/v2/health/live", "it failed", logging.INFO),
        ("/upscale", None, logging.INFO),
    ],
)
def test_a_request_is_counted_while_it_is_under_way_and_logged_at_its_end(
    service: Service, caplog: pytest.LogCaptureFixture, name: str, why: str | None, level: int
) -> None:
    async def requested() -> None:
        with service.request("http", name, "1.2.3.4", method="GET") as outcome:
            assert service.under_way == 1
            outcome.status, outcome.why, outcome.bytes_out = "200", why, 7
        assert not caplog.records  # first the answer leaves
        await asyncio.sleep(0)
        assert service.under_way == 0

    with caplog.at_level(logging.DEBUG, logger="trt_hspan.serving"):
        asyncio.run(requested())
        (record,) = caplog.records
    fields = record.event_fields  # type: ignore[attr-defined]
    assert record.levelno == level
    assert 0 <= fields.pop("ms") < 60_000
    assert fields == {
        "via": "http",
        "method": "GET",
        "status": "200",
        "bytes_out": 7,
        "peer": "1.2.3.4",
        "why": why,
    }


def test_figures_of_the_metrics_are_those_of_the_service(service: Service) -> None:
    def figure(name: str) -> float | None:
        return service.metrics.get_sample_value(f"trt_hspan_{name}")

    inferred(service, np.zeros((2, 3, 4, 4), np.float32))
    assert (figure("runs"), figure("tiles")) == (service.model.runs, service.model.items) != (0, 0)
    assert (figure("decoders_replaced"), figure("ready"), figure("in_flight")) == (3, 1, 0)
    with service.bodies.reserve(5), service.work.reserve(6):
        assert (figure("held_bytes"), figure("work_bytes")) == (5, 6)
    count = service.metrics.get_sample_value("trt_hspan_request_seconds_count", {"model": "net"})
    assert count == 1


def picture_of(service: Service, data: bytes, seconds: float | None = None, kind: str = "png") -> bytes:
    """The file of a picture, upscaled; its memory is given back by then."""

    async def upscaled() -> bytes:
        held = service.bodies.reserve(len(data))
        files: list[Any] = [data]
        result = await service.upscaled_picture(files, kind, held, service.job("its name"), seconds)
        assert (files, service.bodies.held) == ([], 0)
        return bytes(result)

    return asyncio.run(upscaled())


def sizes_of(budget: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is taken of a budget from now on, in order."""
    sizes: list[int] = []
    reserve = budget.reserve

    def reserving(size: int = 0, **options: Any) -> Any:
        reservation = reserve(size, **options)
        grow = reservation.grow
        sizes.append(size)
        reservation.grow = lambda to: (sizes.append(to), grow(to))
        return reservation

    monkeypatch.setattr(budget, "reserve", reserving)
    return sizes


def test_a_picture_of_as_many_pixels_as_are_taken_is_upscaled(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sizes_of(service.work, monkeypatch)
    data = png(20, 10)
    np.testing.assert_array_equal(
        pixels_of(picture_of(service, data)), pixels_of(data).repeat(2, 0).repeat(2, 1)
    )
    # The picture, and twice the result: its pixels and its file.
    assert sizes == [0, 3 * 200 * 9, 3 * 200 * 9]
    assert service.work.held == 0
    assert service.remembered["its name"].state == "done"
    with pytest.raises(RefusedError) as refused_:
        picture_of_refused(service, png(67, 3))
    line = "picture: has 201 pixels, this server takes 200; send parts of its 3x67"
    assert (refused_.value.status, refused_.value.message) == (400, line)
    assert service.remembered["its name"].state == "failed"
    for data_, words in (
        (b"", r"is empty \(0 bytes\); send a PNG"),
        (b"text", "not a picture that can be read"),
    ):
        with pytest.raises(RefusedError, match=words) as refused_:
            picture_of_refused(service, data_)
        assert refused_.value.status == 400


def picture_of_refused(service: Service, data: bytes) -> None:
    picture_of(service, data)


def test_pictures_of_16_bits_take_twice_the_memory(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sizes_of(service.work, monkeypatch)
    deep = DecodedPicture(pixels=np.zeros((4, 5, 3), np.uint16), description=b"")
    monkeypatch.setattr(service.pool, "opened", lambda _: ((4, 5), None))
    monkeypatch.setattr(service.pool, "decode", lambda _, pixels: deep if pixels == 20 else None)
    monkeypatch.setattr(
        service.pool, "encode", lambda pixels, _, suffix: suffix.encode() + bytes(pixels.shape)
    )
    assert picture_of(service, b"deep", kind="tiff") == b".tiff" + bytes((8, 10, 3))
    assert sizes == [0, 3 * 20 * 9, 2 * 3 * 20 * 9]


def test_a_result_that_its_format_cannot_hold_is_refused_before_the_work() -> None:
    with service_of() as service, pytest.raises(RefusedError, match=r"16383|webp"):
        picture_of(service, png(8200, 1), kind="webp")
    assert service.model.runs == 0


def test_a_tensor_takes_the_memory_of_its_result_twice(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sizes_of(service.work, monkeypatch)
    inferred(service, np.zeros((2, 3, 4, 5), np.float32))
    assert sizes == [2 * (2 * 3 * 8 * 10 * 4)]


@pytest.mark.parametrize(
    ("on_gpu", "sides", "tiles"),
    [(False, (160, 160), False), (False, (160, 161), True), (True, (160, 161), False)],
)
def test_a_tensor_runs_as_a_whole_unless_others_would_wait_for_long(
    on_gpu: bool, sides: tuple[int, int], tiles: bool
) -> None:
    runner = NearestRunner(scale=2)
    runner.on_gpu = on_gpu  # type: ignore[misc]
    with service_of(lambda: runner) as service:
        batch = np.random.default_rng(0).random((3, 3, *sides), np.float32)
        # Where tiles overlap, two products are rounded, and their sum.
        tolerance = 3 * 2**-24 if tiles else 0
        np.testing.assert_allclose(
            inferred(service, batch), batch.repeat(2, 2).repeat(2, 3), rtol=0, atol=tolerance
        )
        assert (max(shape[2] for shape in runner.calls[1:]) < 160) is tiles
        assert service.model.items == sum(shape[0] for shape in runner.calls[1:])


def test_a_tensor_larger_than_the_network_takes_runs_in_tiles() -> None:
    runner = NearestRunner(scale=2)
    runner.profiles = (((1, 3, 8, 8), (2, 3, 16, 16)),)
    with service_of(lambda: runner) as service:
        batch = np.random.default_rng(0).random((3, 3, 16, 16), np.float32)
        np.testing.assert_array_equal(inferred(service, batch), batch.repeat(2, 2).repeat(2, 3))
        assert {shape[2:] for shape in runner.calls[1:]} == {(16, 16)}
        batch = np.random.default_rng(0).random((1, 3, 17, 16), np.float32)
        expected = batch.repeat(2, 2).repeat(2, 3)
        np.testing.assert_allclose(inferred(service, batch), expected, rtol=0, atol=3 * 2**-24)
        with pytest.raises(RefusedError, match="but net takes"):
            inferred(service, np.zeros((1, 3, 7, 16), np.float32))


def held_back(
    limits: dict[str, int], ask: Callable[[Service, HeldRunner], Any], *, seconds: float | None = None
) -> tuple[int, str]:
    """What a picture is refused with that the network keeps waiting while `ask` runs; its job ends all the same."""
    runner = HeldRunner()

    async def work(service: Service) -> RefusedError:
        held = service.bodies.reserve()
        working = asyncio.ensure_future(
            service.upscaled_picture([png(12, 8)], "png", held, service.job("it"), seconds)
        )
        job = service.remembered["it"]
        await until(lambda: runner.has_begun.is_set() or job._why)
        await ask(service, runner)
        await until(lambda: job._why)
        runner.go.set()  # of the tile that was running
        with pytest.raises(RefusedError) as caught:
            await working
        await until(lambda: not service._jobs)
        assert job.state == "failed"
        return caught.value

    with service_of(lambda: runner, **limits) as service:
        refused_ = asyncio.run(work(service))
        (_, pictures) = service.answer("ModelStatistics")["model_stats"]
        assert pictures["inference_stats"] == {"success": {"count": 0}, "fail": {"count": 1}}
    return refused_.status, refused_.message


async def nothing(*_: object) -> None: ...


def test_work_has_the_time_of_the_limit_or_of_the_client() -> None:
    late = "the work took longer than 40 ms; send a smaller picture"
    assert held_back({"work_time_ms": 40}, nothing) == (408, late)
    assert held_back({}, nothing, seconds=0.04) == (408, late)
    assert held_back({"work_time_ms": 40}, nothing, seconds=9.0) == (408, late)


def test_what_is_given_up_ends_with_the_reason() -> None:
    async def give_up(service: Service, _: HeldRunner) -> None:
        assert len(service._jobs) == 1
        service.cancel_all(gone())

    assert held_back({}, give_up) == (499, "the client has left")


def test_what_has_begun_may_wait_longer_than_the_queue() -> None:
    runner = HeldRunner()

    async def work(service: Service) -> list[Any]:
        calls = [InferCall(identifier="", values=np.zeros((1, 3, 4, 4), np.float32)) for _ in range(2)]
        begun = asyncio.ensure_future(service.inferred(calls[0], service.bodies.reserve()))
        await until(runner.has_begun.is_set)
        service.limits = dataclasses.replace(service.limits, queue_time_ms=60)
        with pytest.raises(RefusedError) as waited:
            await service.inferred(calls[1], service.bodies.reserve())
        assert not begun.done()
        runner.go.set()
        return [waited.value, await begun]

    with service_of(lambda: runner) as service:
        refused_, output = asyncio.run(work(service))
    assert (refused_.status, refused_.message) == (503, "it waited longer than 0.06 s; try again later")
    assert output.shape == (1, 3, 8, 8)


def test_a_request_of_a_client_that_leaves_is_cancelled_in_the_queue() -> None:
    runner = HeldRunner()

    async def work(service: Service) -> None:
        call = InferCall(identifier="", values=np.zeros((1, 3, 4, 4), np.float32))
        working = asyncio.ensure_future(service.inferred(call, service.bodies.reserve()))
        await until(runner.has_begun.is_set)
        (job,) = service._jobs
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert job.state == "failed"
        with pytest.raises(RefusedError, match="the client has left"):
            job.check()
        runner.go.set()
        await until(lambda: not service._jobs)

    with service_of(lambda: runner) as service:
        asyncio.run(work(service))
        assert service.answer("ModelStatistics", "net")["model_stats"][0]["inference_stats"]["fail"] == {
            "count": 1
        }


def test_a_new_network_gets_new_requests_and_the_one_before_ends_with_its_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner, closed = HeldRunner(), list[Model]()
    close = Model.close

    def closing(model: Model, seconds: float = 2.0) -> None:
        closed.append(model)
        close(model, seconds)

    async def work(service: Service) -> None:
        before, after = service.model, Model([lambda: NearestRunner(scale=3)], name="net", version=6)
        after.open()
        call = InferCall(identifier="", values=np.zeros((1, 3, 4, 4), np.float32))
        working = asyncio.ensure_future(service.inferred(call, service.bodies.reserve()))
        await until(runner.has_begun.is_set)
        replacing = asyncio.ensure_future(service.replace(after))
        await asyncio.sleep(0.06)
        assert not closed
        other = InferCall(identifier="", values=np.zeros((1, 3, 4, 4), np.float32))
        assert (await service.inferred(other, service.bodies.reserve())).shape == (1, 3, 12, 12)
        runner.go.set()
        assert (await working).shape == (1, 3, 8, 8)
        await replacing
        assert closed == [before]

    monkeypatch.setattr(Model, "close", closing)
    with service_of(lambda: runner) as service:
        asyncio.run(work(service))
        assert service.answer("ModelMetadata", "net")["versions"] == ["6"]


def test_memory_is_given_back_once_after_a_while_without_requests(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, turns = list[int](), list[int]()
    waiting = asyncio.sleep

    async def slept(seconds: float) -> None:
        """Ten seconds; requests come in some of them."""
        assert seconds == 10
        turns.append(len(given))
        if len(turns) in (1, 5):
            service._outcomes["net", True] += 1
        elif len(turns) in (6, 7):
            service._jobs.add(service.job())
        else:
            service._jobs.clear()
        if len(turns) == 10:
            raise asyncio.CancelledError
        await waiting(0)

    monkeypatch.setattr(module.asyncio, "sleep", slept)
    monkeypatch.setattr(module, "return_freed_memory", lambda: given.append(len(turns)))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(service.keep_tidy())
    # The second turn sees nothing new since the first; the sixth and seventh would, and find somebody at work.
    assert given == [2, 8]


def test_what_fails_in_a_thread_fails_where_it_is_awaited() -> None:
    async def work() -> None:
        threads: list[int] = []
        assert await in_thread(lambda: threads.append(threading.get_ident()) or 7) == 7  # type: ignore[func-returns-value]
        assert threads != [threading.get_ident()]
        with pytest.raises(KeyboardInterrupt) as caught:
            await in_thread(interrupted)
        assert caught.value.__context__ is None

    def interrupted() -> Float32Array:
        try:
            raise ValueError("large")
        except ValueError:
            raise KeyboardInterrupt from None

    asyncio.run(work())


def test_statistics_of_a_network_that_has_run_for_others_are_its_own(service: Service) -> None:
    picture_of(service, png(12, 8))
    own, pictures = service.answer("ModelStatistics")["model_stats"]
    assert (own["inference_count"], own["execution_count"]) == (service.model.items, service.model.runs)
    assert service.model.runs > 0
    assert own["inference_stats"]["success"] == {"count": 0}
    assert (pictures["inference_count"], pictures["execution_count"]) == (1, 1)


def test_times_are_counted_in_the_documented_steps(service: Service) -> None:
    inferred(service, np.zeros((1, 3, 4, 4), np.float32))
    samples = [sample for family in service.metrics.collect() for sample in family.samples]
    steps = [
        float(sample.labels["le"])
        for sample in samples
        if sample.name == "trt_hspan_request_seconds_bucket" and sample.labels["model"] == "net"
    ]
    assert steps == sorted(steps)
    assert all(2 < high / low < 4 for low, high in itertools.pairwise(steps[:-1]))
    assert (steps[0], steps[-2], steps[-1]) == (0.01, 300, float("inf"))
    assert [sample for sample in samples if sample.name == "process_open_fds"]
    pictures = {"model": "net_image"}
    assert service.metrics.get_sample_value("trt_hspan_request_seconds_count", pictures) == 0
