"""A real Ray cluster of two workers on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.command_line import CommandLine

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.jobs.cluster.bundle import bundle_from_network
from trt_hspan.jobs.cluster.job import ClusterJob, ClusterReport, ClusterSpec
from trt_hspan.jobs.cluster.tasks import ClusterJournal, cluster_tasks
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
