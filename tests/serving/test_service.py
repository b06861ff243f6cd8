"""What a server does with requests, whichever protocol brought them: with a network in numpy and no ports."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.serving.admission import RefusedError
from trt_hspan.serving.limits import ServerLimits
from trt_hspan.serving.service import Service
from trt_hspan.serving.v2 import PICTURES, TENSORS, InferCall
from trt_hspan.upscaling.scheduler import Model

LIMITS = ServerLimits(max_pixels=200, queue_length=2)


class NoPool:
    replaced = 3


@pytest.fixture
def service() -> Iterator[Service]:
    model = Model([lambda: NearestRunner(scale=2)], name="net")
    model.version = 5
    model.open()
    pool: Any = NoPool()
    yield Service(model, pool, LIMITS)
    model.close()


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
