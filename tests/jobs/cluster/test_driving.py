"""Who drives a job, and what becomes of it when the cluster is lost; without a cluster."""

from __future__ import annotations

import threading
import time
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
from trt_hspan.jobs.cluster.worker import UpscaleWorker
from trt_hspan.runtime.opening import RunnerOptions
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.pictures import WriteOptions

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytest.importorskip("ray.data")


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
    while driver._answers.qsize() < 8:  # seven, and the end
        time.sleep(0.001)
    assert list(taken(driver, 3)) == [[0, 1, 2], [3, 4, 5], [6]]
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


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A cluster in this process, to which there is a connection; and the actors that were ended in it."""

    def remote(**options: int) -> Any:
        assert options == {"num_cpus": 0}  # the driver only waits, and takes no place of a worker
        return lambda driver: SimpleNamespace(remote=lambda job: Actor(driver(job)))

    class Actor:
        def __init__(self, driver: _Driver) -> None:
            self.take = SimpleNamespace(remote=driver.take)

    ended: list[object] = []
    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray, "kill", ended.append)
    monkeypatch.setattr(ray.util.client.ray, "is_connected", lambda: True)
    return ended


def test_answers_come_in_parts_of_a_thousand_and_then_the_driver_ends(
    killed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[int] = []
    take = _Driver.take

    def noted(driver: _Driver, most: int) -> list[dict[str, Any]]:
        while not driver._ended and driver._answers.qsize() < most and not all_came.is_set():
            time.sleep(0.001)
        parts.append(len(answers := take(driver, most)))
        return answers

    class Noting(JobDouble):
        def answers(self) -> Iterator[dict[str, Any]]:
            yield from super().answers()
            all_came.set()

    all_came = threading.Event()
    monkeypatch.setattr(_Driver, "take", noted)
    answers = list(answers_through_client(Noting(2500)))  # type: ignore[arg-type]
    assert [answer["index"] for answer in answers] == list(range(2500))
    assert parts[:2] == [1000, 1000]
    assert parts[-1] == 0
    assert len(killed) == 1


def test_an_error_of_the_job_passes_and_ends_the_driver(killed: list[object]) -> None:
    with pytest.raises(OSError, match="disk"):
        list(answers_through_client(JobDouble(2, OSError("disk"))))  # type: ignore[arg-type]
    assert len(killed) == 1


@pytest.mark.parametrize(("pictures", "blocks", "workers"), [(3, 3, 3), (20_001, 20_000, 4)])
def test_ray_data_gets_rows_workers_and_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: int, blocks: int, workers: int
) -> None:
    given: dict[str, Any] = {}

    class Dataset:
        def map(self, worker: type, **options: Any) -> Dataset:
            given.update(options, worker=worker)
            return self

        def iter_rows(self) -> Iterator[dict[str, Any]]:
            yield from ({"index": row["index"]} for row in given["rows"])

    def from_items(rows: list[dict[str, Any]], **options: Any) -> Dataset:
        given.update(options, rows=rows)
        return Dataset()

    context = SimpleNamespace(enable_progress_bars=True, max_errored_blocks=0)
    monkeypatch.setattr(ray.data, "from_items", from_items)
    monkeypatch.setattr(ray.data.DataContext, "get_current", lambda: context)
    monkeypatch.setattr(ray.data, "ActorPoolStrategy", lambda **sizes: sizes)
    template = cluster_job(tmp_path)
    job = DataJob(
        rows=[{"index": index} for index in range(pictures)],
        bundle=template.bundle,
        options=template.options,
        writing=template.writing,
        attempts=3,
        concurrency=4,
        cpus=2,
        gpus=None,
    )
    assert [row["index"] for row in job.answers()] == list(range(pictures))
    assert given["worker"] is UpscaleWorker
    assert given["fn_constructor_args"] == (template.bundle, template.options, template.writing, 3)
    assert given["override_num_blocks"] == blocks
    # While a worker does one picture the next one waits at it.
    assert given["compute"] == {"size": workers, "max_tasks_in_flight_per_actor": 2}
    assert (given["num_cpus"], given["num_gpus"]) == (2, None)
    # As often as it takes a worker is started again; a picture has three attempts in all.
    assert given["ray_remote_args_fn"]() == {"max_restarts": -1, "max_task_retries": 2}
    # Any number of pictures may kill their workers.
    assert (context.enable_progress_bars, context.max_errored_blocks) == (False, -1)
