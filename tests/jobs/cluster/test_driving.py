"""Who drives a job, and what becomes of it when the cluster is lost; without a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trt_hspan.errors import HspanError
from trt_hspan.jobs.cluster.bundle import bundle_from_network
from trt_hspan.jobs.cluster.driving import DataJob, _Driver, answers_through_client
from trt_hspan.jobs.cluster.job import ClusterJob, ClusterSpec
from trt_hspan.jobs.cluster.tasks import ClusterJournal, ClusterTask
from trt_hspan.runtime.opening import RunnerOptions
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.pictures import WriteOptions

ray = pytest.importorskip("ray", reason="Ray is not installed")


class JobDouble:
    """Gives some answers, and then an error if there is one."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self._count, self._error = count, error

    def answers(self) -> Iterator[dict[str, Any]]:
        yield from ({"index": index} for index in range(self._count))
        if self._error is not None:
            raise self._error


def taken(driver: _Driver, most: int) -> Iterator[list[int]]:
    while answers := driver.take(most):
        yield [answer["index"] for answer in answers]


def test_driver_gives_every_answer_once_and_then_none() -> None:
    driver = _Driver(JobDouble(7))  # type: ignore[arg-type]
    parts = list(taken(driver, 3))
    assert [index for part in parts for index in part] == list(range(7))
    assert max(map(len, parts)) <= 3
    assert driver.take(3) == []
    assert _Driver(JobDouble(0)).take(3) == []  # type: ignore[arg-type]


def test_error_of_the_job_is_raised_where_answers_are_taken() -> None:
    driver = _Driver(JobDouble(2, OSError("disk")))  # type: ignore[arg-type]
    with pytest.raises(OSError, match="disk"):
        list(taken(driver, 1))


def cluster_job(tmp_path: Path) -> ClusterJob:
    return ClusterJob(
        tasks=[ClusterTask(source="a.png", target=str(tmp_path / "a.png"))],
        bundle=bundle_from_network("hspan-tiny-x2", RunnerOptions(device="cpu")),
        options=UpscaleOptions(),
        writing=WriteOptions(),
        spec=ClusterSpec(address="ray://head"),
        journal=ClusterJournal(str(tmp_path), {}),
    )


def test_lost_cluster_is_one_line_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ConnectionError("gone\nfor good"), ray.exceptions.RayError("its node died")):
        double = JobDouble(0, error)
        monkeypatch.setattr(DataJob, "answers", lambda _, double=double: double.answers())
        with pytest.raises(
            HspanError, match=r"ray://head: the cluster was lost: .*run the command again"
        ) as lost:
            list(cluster_job(tmp_path)._rows([0], 1))
        assert "\n" not in str(lost.value)


def test_client_that_lost_its_server_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own client raises an AssertionError then."""

    def get(_: object) -> None:
        raise AssertionError

    driver = SimpleNamespace(take=SimpleNamespace(remote=lambda most: most))
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: SimpleNamespace(remote=lambda job: driver))
    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(ConnectionError, match="client server is gone"):
        list(answers_through_client(JobDouble(1)))  # type: ignore[arg-type]
