"""Upscaling as a job of a cluster: what goes with one, and what its results depend on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trt_hspan.errors import UsageError
from trt_hspan.jobs.cluster.job import ClusterJob, ClusterReport, ClusterSpec
from trt_hspan.jobs.cluster.tasks import ClusterTask
from trt_hspan.jobs.cluster.upscale import cluster_job
from trt_hspan.jobs.upscale import UpscaleJob
from trt_hspan.runtime.opening import RunnerOptions
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.pictures import WriteOptions
from trt_hspan.upscaling.video_encoder import VideoOptions


@pytest.fixture
def request_of_one(tmp_path: Path) -> UpscaleJob:
    """One picture, and a file that is none."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "in" / "notes.txt").touch()
    return UpscaleJob(
        inputs=(str(tmp_path / "in"),),
        output=str(tmp_path / "out"),
        network="hspan-tiny-x2",
        execution=RunnerOptions(),
        options=UpscaleOptions(),
        writing=WriteOptions(),
        video=VideoOptions(),
        suffix=None,
        overwrite=False,
    )


def job_of(request: UpscaleJob, *, workers: int | None = None) -> ClusterJob:
    def ended(report: ClusterReport) -> None: ...

    return cluster_job(request, "auto", workers, ended)


def test_a_request_becomes_a_job(request_of_one: UpscaleJob, tmp_path: Path) -> None:
    job = job_of(request_of_one, workers=3)
    assert job.tasks == [
        ClusterTask(source=str(tmp_path / "in" / "a.png"), target=str(tmp_path / "out" / "a.png"))
    ]
    assert job.left_out == (str(tmp_path / "in" / "notes.txt"),)
    assert job.spec == ClusterSpec(address="auto", workers=3, cpus_per_worker=1)
    assert job.bundle.options.threads == 1
    assert not job.overwrite
    several = replace(request_of_one, execution=RunnerOptions(threads=4), overwrite=True)
    assert job_of(several).spec.cpus_per_worker == job_of(several).bundle.options.threads == 4
    assert job_of(several).overwrite


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"inputs": ("-",)}, "--cluster: does not go with pipes"),
        ({"output": "-"}, "--cluster: does not go with pipes"),
        ({"writing": WriteOptions(compare=True)}, "--cluster: does not go with --compare"),
        ({"writing": WriteOptions(tile_effect=True)}, "--cluster: does not go with --compare"),
        ({"output": "out.png"}, "out.png: is a file's name"),
        ({"output": "new"}, None),
        ({"output": "memory://out/a.v2"}, None),
    ],
)
def test_what_does_not_go_with_a_cluster_is_wrong_usage(
    request_of_one: UpscaleJob, changes: dict[str, Any], line: str | None
) -> None:
    request = replace(request_of_one, **changes)
    if line is None:
        job_of(request)
        return
    with pytest.raises(UsageError, match=line):
        job_of(request)


def test_a_file_without_a_suffix_is_no_folder(request_of_one: UpscaleJob, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UsageError, match="is a file's name; a cluster writes to a folder or a URI"):
        job_of(request_of_one)


def test_videos_are_refused(request_of_one: UpscaleJob, tmp_path: Path) -> None:
    (tmp_path / "in" / "v.mp4").write_bytes(b"\0\0\0\x08moov")
    with pytest.raises(UsageError, match="takes pictures, and there are videos among the inputs"):
        job_of(request_of_one)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "hspan-tiny-x4"},
        {"execution": RunnerOptions(res_scale=0.2)},
        {"execution": RunnerOptions(device="cpu:openvino")},
        {"options": UpscaleOptions(tile=(16, 16))},
        {"writing": WriteOptions(quality=50)},
    ],
)
def test_other_settings_are_other_results(request_of_one: UpscaleJob, changes: dict[str, Any]) -> None:
    job = job_of(request_of_one)
    (task,) = job.tasks
    Path(task.target).parent.mkdir()
    Path(task.target).touch()
    job.journal.finish(task)
    assert job_of(replace(request_of_one, execution=RunnerOptions(threads=2))).journal.why_not(task) == ""
    assert "other options" in str(job_of(replace(request_of_one, **changes)).journal.why_not(task))
