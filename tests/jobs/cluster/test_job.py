"""A job on a cluster: what is handed out and reported, and a real Ray cluster of two workers on this machine."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.command_line import CommandLine

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.jobs.cluster import driving
from trt_hspan.jobs.cluster import job as job_module
from trt_hspan.jobs.cluster.bundle import NetworkBundle, bundle_from_network
from trt_hspan.jobs.cluster.driving import DataJob
from trt_hspan.jobs.cluster.job import ClusterJob, ClusterReport, ClusterSpec
from trt_hspan.jobs.cluster.tasks import ClusterJournal, ClusterTask, cluster_tasks
from trt_hspan.jobs.folders import JOURNAL_NAME
from trt_hspan.runtime.opening import RunnerOptions
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.pictures import WriteOptions


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for index in range(10):
        place = folder / ("deep" if index % 2 else "") / f"p{index}.png"
        Image.fromarray(draw.integers(0, 256, (20, 24, 3), np.uint8)).save(place)
    return folder


# Without a cluster
# ---------------------------------------------------------------------------------------------------


class Rows:
    """Stands in for the cluster: answers to each schedule, by index; and which were requested."""

    def __init__(self, *answers: dict[int, str]) -> None:
        self.answers = iter(answers)
        self.requested: list[tuple[list[int], int]] = []

    def __call__(self, indices: list[int], concurrency: int) -> Iterator[dict[str, Any]]:
        self.requested.append((list(indices), concurrency))
        for index, error in next(self.answers, {}).items():
            yield {"index": index, "error": error, "seconds": 0.5, "pid": 77, "attempts": 2}


def job_on(folder: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> ClusterJob:
    monkeypatch.setattr(job_module, "_cluster", lambda spec: contextlib.nullcontext(5))
    monkeypatch.setattr(ClusterJob, "_rows", lambda _, indices, concurrency: rows(indices, concurrency))
    names = ("a.png", "b.png", "c.png")
    return ClusterJob(
        tasks=[ClusterTask(source=str(folder / name), target=str(folder / "out" / name)) for name in names],
        bundle=bundle_from_network("hspan-tiny-x2"),
        options=UpscaleOptions(),
        writing=WriteOptions(),
        spec=ClusterSpec(),
        journal=ClusterJournal(str(folder / "out"), {}),
        **changes,
    )


def test_what_got_lost_is_tried_once_more_and_then_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, seen = Rows({2: ""}, {0: "a.png: is broken", 2: "again"}), list[ClusterReport]()
    job = job_on(tmp_path, rows, monkeypatch, on_end=seen.append)
    reports = job.run()
    assert rows.requested == [([0, 1, 2], 5), ([0, 1], 5)]
    assert [report.task for report in reports] == list(job.tasks)
    assert [report.outcome for report in reports] == ["failed", "failed", "done"]
    assert reports[0] == ClusterReport(
        task=job.tasks[0], outcome="failed", error="a.png: is broken", seconds=0.5, worker=77, attempts=2
    )
    assert reports[1].error.endswith("b.png: its worker died each time; try it alone with trt-hspan upscale")
    assert (reports[1].seconds, reports[1].worker, reports[1].attempts) == (0.0, 0, 0)
    assert [report.task for report in seen] == [job.tasks[index] for index in (2, 0, 1)]
    journal = (tmp_path / "out" / JOURNAL_NAME).read_text()
    assert (journal.count('"begin"'), journal.count('"finish"')) == (3, 1)


def test_finished_pictures_are_skipped_and_others_files_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job_on(tmp_path, Rows({0: ""}), monkeypatch)
    first.run()
    for name in ("a.png", "b.png"):
        (tmp_path / "out" / name).touch()
    os.utime(tmp_path / "out" / "b.png", (1, 1))  # it was there before
    rows = Rows({2: ""})
    reports = job_on(tmp_path, rows, monkeypatch).run()
    assert rows.requested == [([2], 5), ([], 5)]
    assert [report.outcome for report in reports] == ["skipped", "failed", "done"]
    assert (reports[0].error, reports[0].attempts) == ("", 0)
    assert "exists and was not written by this command; give --overwrite" in reports[1].error
    rows = Rows({0: "", 1: "", 2: ""})
    overwritten = job_on(tmp_path, rows, monkeypatch, overwrite=True).run()
    assert [report.outcome for report in overwritten] == ["done"] * 3


def test_no_cluster_is_started_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_on(tmp_path, Rows(), monkeypatch)
    monkeypatch.setattr(job_module, "_cluster", None)
    assert replace(job, tasks=[]).run() == []


@pytest.mark.parametrize(
    ("network", "device", "in_cluster", "cpus", "gpus"),
    [
        ("net.plan", "auto", {"GPU": 1.0}, None, 1),
        ("net.plan", "auto", {"GPU": 0.5}, 3, None),
        ("net.plan", "auto", {}, 3, None),
        ("net.plan", "cpu", {"GPU": 1.0}, 3, None),
        ("net.onnx", "auto", {"GPU": 1.0}, 3, None),
    ],
)
@pytest.mark.parametrize("through_client", [False, True])
def test_a_worker_takes_a_gpu_for_an_engine_where_there_is_one_else_processors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: str,
    device: str,
    in_cluster: dict[str, float],
    cpus: int | None,
    gpus: int | None,
    through_client: bool,
) -> None:
    import ray

    jobs: list[DataJob] = []

    def answers(job: DataJob) -> Iterator[dict[str, Any]]:
        jobs.append(job)
        yield {"index": 0}

    def unused(job: DataJob) -> Iterator[dict[str, Any]]:
        raise AssertionError("the other way was taken")

    monkeypatch.setattr(ray, "cluster_resources", lambda: in_cluster)
    monkeypatch.setattr(ray.util.client.ray, "is_connected", lambda: through_client)
    monkeypatch.setattr(driving, "answers_through_client", answers if through_client else unused)
    monkeypatch.setattr(DataJob, "answers", unused if through_client else answers)
    job = ClusterJob(
        tasks=[ClusterTask(source=name, target=f"out/{name}") for name in ("a.png", "b.png")],
        bundle=NetworkBundle(name=network, options=RunnerOptions(device=device)),
        options=UpscaleOptions(),
        writing=WriteOptions(),
        spec=ClusterSpec(cpus_per_worker=3),
        journal=ClusterJournal(str(tmp_path), {}),
    )
    assert list(job._rows([], 7)) == []
    assert list(job._rows([1], 7)) == [{"index": 0}]
    (given,) = jobs
    assert given.rows == [{"index": 1, "source": "b.png", "target": "out/b.png"}]
    assert (given.cpus, given.gpus, given.concurrency, given.attempts) == (cpus, gpus, 7, 3)


@pytest.fixture
def ray_calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A cluster that is joined or started without a process; "init" becomes the arguments."""
    import ray

    calls: dict[str, Any] = {"resources": {"CPU": 8.0}, "is_initialized": False, "shutdowns": 0}

    def shutdown() -> None:
        calls["shutdowns"] += 1

    monkeypatch.setattr(ray, "init", lambda **options: calls.update({"init": options}))
    monkeypatch.setattr(ray, "is_initialized", lambda: calls["is_initialized"])
    monkeypatch.setattr(ray, "cluster_resources", lambda: calls["resources"])
    monkeypatch.setattr(ray, "shutdown", shutdown)
    monkeypatch.setattr(job_module, "require_ray", lambda address: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    return calls


@pytest.mark.parametrize(
    ("spec", "resources", "processors", "workers"),
    [
        (ClusterSpec(), {"CPU": 8.0}, None, 8),
        (ClusterSpec(workers=2, cpus_per_worker=3), {"CPU": 6.0}, 6, 2),
        (ClusterSpec(workers=9), {"CPU": 9.0}, 9, 9),
        (ClusterSpec(cpus_per_worker=8), {"CPU": 8.0}, None, 1),
        (ClusterSpec(cpus_per_worker=3), {"CPU": 8.0, "GPU": 4.0}, None, 4),
        (ClusterSpec(workers=3), {"CPU": 3.0, "GPU": 4.0}, 3, 3),
        (ClusterSpec(workers=30), {"CPU": 8.0}, 30, 8),
    ],
)
def test_a_cluster_of_this_machine_has_a_worker_for_each_gpu_or_share_of_processors(
    ray_calls: dict[str, Any],
    spec: ClusterSpec,
    resources: dict[str, float],
    processors: int | None,
    workers: int,
) -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = True
    ray_calls["resources"] = resources
    with job_module._cluster(spec) as concurrency:
        assert concurrency == workers
        assert ray_calls["shutdowns"] == 0
    assert ray_calls["init"] == {
        "num_cpus": processors,
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    assert ray_calls["shutdowns"] == 1
    assert not ray.data.DataContext.get_current().enable_progress_bars


def test_another_cluster_is_joined_and_one_that_was_joined_before_is_left_alone(
    ray_calls: dict[str, Any],
) -> None:
    with job_module._cluster(ClusterSpec(address="auto")) as concurrency:
        assert concurrency == 8
    assert ray_calls.pop("init") == {
        "address": "auto",
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    ray_calls["is_initialized"] = True
    for address in ("auto", "local"):
        with job_module._cluster(ClusterSpec(address=address)):
            pass
    assert "init" not in ray_calls
    assert ray_calls["shutdowns"] == 1


@pytest.mark.parametrize(
    ("spec", "resources"),
    [
        (ClusterSpec(cpus_per_worker=9), {"CPU": 99.0}),
        (ClusterSpec(address="auto", cpus_per_worker=4), {"CPU": 3.0}),
    ],
)
def test_a_cluster_without_processors_for_one_worker_is_refused(
    ray_calls: dict[str, Any], spec: ClusterSpec, resources: dict[str, float]
) -> None:
    ray_calls["resources"] = resources
    with pytest.raises(HspanError, match="too few processors for a worker"), job_module._cluster(spec):
        pass


def test_a_cluster_that_cannot_be_reached_is_one_line(
    ray_calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def refused(**_: object) -> None:
        raise ConnectionError("nobody\nthere")

    monkeypatch.setattr(ray, "init", refused)
    with (
        pytest.raises(
            HspanError, match="auto: the cluster cannot be reached: nobody there; check it with ray"
        ),
        job_module._cluster(ClusterSpec(address="auto")),
    ):
        pass


def test_without_ray_a_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module.importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(HspanError, match=r"--cluster: Ray is not installed; pip install .*\[cluster\]"),
        job_module._cluster(ClusterSpec()),
    ):
        pass


# With one
# ---------------------------------------------------------------------------------------------------


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def test_every_picture_comes_out_once_although_a_worker_is_killed(
    run: CommandLine, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "bad.png").write_bytes(b"no picture")
    alone, together = tmp_path / "alone", tmp_path / "together"
    network = ("--checkpoint", "hspan-tiny-x2", "--device", "cpu", "--threads", "1")
    assert run("upscale", pictures, "-o", alone, *network).code == 1
    killed: list[int] = []
    seen: list[ClusterReport] = []

    def kill_the_first_worker(report: ClusterReport) -> None:
        seen.append(report)
        if report.outcome == "done" and not killed:
            killed.append(report.worker)
            os.kill(report.worker, signal.SIGKILL)

    job = ClusterJob(
        tasks=cluster_tasks([str(pictures)], str(together)).tasks,
        bundle=bundle_from_network("hspan-tiny-x2", RunnerOptions(device="cpu", threads=1)),
        options=UpscaleOptions(),
        writing=WriteOptions(),
        spec=ClusterSpec(workers=2),
        journal=ClusterJournal(str(together), {}),
        on_end=kill_the_first_worker,
    )
    reports = job.run()
    assert killed
    assert {report.worker for report in reports} - {0, *killed}, "the others did nothing"
    assert sorted(report.task.source for report in seen) == sorted(task.source for task in job.tasks)
    assert [report.outcome for report in reports].count("done") == 10
    (failed,) = [report for report in reports if report.outcome == "failed"]
    assert "not a picture" in failed.error
    assert failed.attempts == 3
    assert _contents(together) == _contents(alone)
    assert len(_contents(together)) == 10


def test_the_command_prints_clean_json_and_goes_on_where_it_stopped(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "upscale",
        str(pictures / "deep"),
        "-o",
        str(out),
        "--checkpoint",
        "hspan-tiny-x2",
        "--device",
        "cpu",
    ]
    words += ["--cluster", "local", "--workers", "1", "--json"]
    command = [sys.executable, "-m", "trt_hspan", *words]
    first = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["done"] == 5
    journal = (out / ".trt-hspan-journal.jsonl").read_text()
    assert journal.count('"finish"') == 5
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert json.loads(again.stdout)["skipped"] == 5  # and no cluster was started for that


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--cluster", "somewhere"), "local, auto or ray://"),
        (("--workers", "2"), "is for --cluster"),
        (("--cluster", "local", "--compare"), "does not go with --compare"),
    ],
)
def test_wrong_usage_is_one_line(
    run: CommandLine, pictures: Path, tmp_path: Path, words: tuple[str, ...], part: str
) -> None:
    done = run("upscale", pictures, "-o", tmp_path / "out", *words)
    assert done.code == 2
    assert part in done.error_line


def test_a_file_is_no_output_for_a_cluster(run: CommandLine, pictures: Path, tmp_path: Path) -> None:
    done = run("upscale", pictures / "p0.png", "-o", tmp_path / "out.png", "--cluster", "local")
    assert done.code == 2
    assert "name a folder" in done.error_line


def test_a_spec_that_makes_no_sense_is_refused() -> None:
    for arguments in ({"address": "http://x"}, {"workers": 0}, {"cpus_per_worker": 0}):
        with pytest.raises(UsageError):
            ClusterSpec(**arguments)  # type: ignore[arg-type]


def test_a_cluster_too_small_for_a_worker_is_reported(pictures: Path, tmp_path: Path) -> None:
    job = ClusterJob(
        tasks=cluster_tasks([str(pictures)], str(tmp_path / "out")).tasks,
        bundle=bundle_from_network("hspan-tiny-x2", RunnerOptions(device="cpu")),
        options=UpscaleOptions(),
        writing=WriteOptions(),
        spec=ClusterSpec(cpus_per_worker=10_000),
        journal=ClusterJournal(str(tmp_path / "out"), {}),
    )
    with pytest.raises(HspanError, match="too few processors for a worker"):
        job.run()
