"""Upscaling files as one job: the checks before the network is opened, and what the results depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from trt_hspan.errors import UsageError
from trt_hspan.files import check_writable, remove_abandoned_stages, require_free, sha256_from_file
from trt_hspan.jobs.folders import (
    FoundTasks,
    Journal,
    Task,
    TaskReport,
    run_tasks,
    tasks_from_inputs,
    turn_in_folder,
)
from trt_hspan.runtime.opening import RunnerOptions
from trt_hspan.runtime.openvino_runner import OpenVinoRunner
from trt_hspan.runtime.runner import Runner
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.pictures import Upscaled, WriteOptions, comparison_path, upscale_picture_file
from trt_hspan.upscaling.upscaler import Upscaler
from trt_hspan.upscaling.video import UpscaledVideo, upscale_video
from trt_hspan.upscaling.video_encoder import VideoOptions, require_encoder


@dataclass(frozen=True, kw_only=True)
class UpscaleJob:
    """Which files to upscale, and how: as `tasks_from_inputs`, `open_runner` and the writers take it.

    `overwrite` replaces files that exist, and does finished ones in folders again.
    """

    inputs: tuple[str, ...]
    output: str
    network: str | Path
    execution: RunnerOptions
    options: UpscaleOptions
    writing: WriteOptions
    video: VideoOptions
    suffix: str | None
    overwrite: bool

    def require_no_suffix(self) -> None:
        """Raises: UsageError when --format is given though the output's name says the format."""
        if self.suffix is not None:
            raise UsageError(
                "--format", "is for folders and pipes; OUT's suffix says the format", "leave it out"
            )

    def require_used(self, tasks: list[Task]) -> None:
        """Raises: UsageError when an option is for files that are not there, or no encoder has that name."""
        videos = sum(task.is_video for task in tasks)
        for option, value, kind, count in (
            ("--codec", self.video.codec, "videos", videos),
            ("--crf", self.video.crf, "videos", videos),
            ("--quality", self.writing.quality, "pictures", len(tasks) - videos),
            ("--compare", self.writing.compare or None, "pictures", len(tasks) - videos),
            ("--tile-effect", self.writing.tile_effect or None, "pictures", len(tasks) - videos),
            ("--format", self.suffix, "pictures", len(tasks) - videos),
        ):
            if value is not None and not count:
                raise UsageError(option, f"is for {kind}, and there is none", "leave it out")
        if videos:
            require_encoder(self.video)


class JobProgress(Protocol):
    """What follows a job while it runs: called for each file, each tile or frame of it, and for notes."""

    def begin(self, task: Task) -> None: ...
    def end(self, report: TaskReport) -> None: ...
    def on_tile(self, done: int, count: int) -> None: ...
    def on_frame(self, done: int, count: int | None) -> None: ...
    def note(self, line: str) -> None: ...


@dataclass(frozen=True)
class Work:
    """A network and its options while tasks are done."""

    job: UpscaleJob
    runner: Runner
    upscaler: Upscaler
    progress: JobProgress
    activate: Callable[[], object]

    def do(self, task: Task) -> Upscaled | UpscaledVideo:
        """One picture or video. Raises: HspanError as `upscale_picture_file` and `upscale_video`."""
        self.activate()
        if task.is_video:
            return upscale_video(
                self.upscaler, task.source, task.target, self.job.video, on_frame=self.progress.on_frame
            )
        return upscale_picture_file(
            self.upscaler, task.source, task.target, self.job.writing, on_tile=self.progress.on_tile
        )

    def do_only(self, task: Task) -> Upscaled | UpscaledVideo:
        self.progress.begin(task)
        return self.do(task)


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """What became of a job: `result` of a single file, or `reports` of a folder's and its files that were left out."""

    work: Work
    result: Upscaled | UpscaledVideo | None = None
    reports: list[TaskReport] | None = None
    left_out: tuple[Path, ...] = ()


def upscale_files(
    job: UpscaleJob,
    progress: Callable[[list[Task]], AbstractContextManager[JobProgress]],
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> JobOutcome:
    """Upscales all files; in a folder, one that fails does not stop the rest.

    `progress` makes what follows the tasks, once they are known; `on_wait` is called before waiting for another run
    that writes to the folder.

    Raises:
        HspanError: nothing could be done at all, or the only file failed, or exists and may not be replaced.
        UsageError: inputs and output do not go together.
    """
    output = Path(job.output)
    found = _found(job)
    if found.is_folder:
        with turn_in_folder(output, on_wait) as waited:
            return _upscale_folder(job, _found(job) if waited else found, progress)
    (task,) = found.tasks
    job.require_no_suffix()
    check_writable(task.target)
    remove_abandoned_stages(task.target.parent)
    job.require_used(found.tasks)
    written = [task.target, *([comparison_path(task.target)] if job.writing.compare else [])]
    require_free(written, overwrite=job.overwrite)
    runner = job.execution.open(job.network)
    with progress(found.tasks) as bar, at_work(job, runner, bar) as work:
        return JobOutcome(work=work, result=work.do_only(task))


def _found(job: UpscaleJob) -> FoundTasks:
    found = tasks_from_inputs(job.inputs, Path(job.output), suffix=job.suffix, companion=comparison_path)
    if job.writing.compare:
        _require_free_comparisons(found.tasks)
    return found


def _upscale_folder(
    job: UpscaleJob, found: FoundTasks, progress: Callable[[list[Task]], AbstractContextManager[JobProgress]]
) -> JobOutcome:
    job.require_used(found.tasks)
    runner = job.execution.open(job.network)
    companion = comparison_path if job.writing.compare else None
    journal = Journal(Path(job.output), _settings(job, runner), companion=companion)
    with progress(found.tasks) as bar, at_work(job, runner, bar) as work:
        reports = run_tasks(
            found.tasks, work.do, journal=journal, overwrite=job.overwrite, on_begin=bar.begin, on_end=bar.end
        )
        return JobOutcome(work=work, reports=reports, left_out=tuple(found.left_out))


@contextmanager
def at_work(job: UpscaleJob, runner: Runner, progress: JobProgress) -> Iterator[Work]:
    """The network is loaded when the first task is done, and given back at the end."""
    upscaler = Upscaler(runner, job.options, on_shrink=progress.note)
    with ExitStack() as stack:
        yield Work(job, runner, upscaler, progress, cache(lambda: stack.enter_context(runner)))


def _require_free_comparisons(tasks: list[Task]) -> None:
    taken = {path.resolve(): "an input" for path in (task.source for task in tasks)}
    taken |= {path.resolve(): "another result" for path in (task.target for task in tasks)}
    for task in tasks:
        comparison = comparison_path(task.target)
        if not task.is_video and (what := taken.get(comparison.resolve())) is not None:
            raise UsageError(
                "--compare",
                f"{comparison}, the comparison of {task.source}, is {what} too",
                "rename one of them",
            )


def _settings(job: UpscaleJob, runner: Runner) -> dict[str, Any]:
    """What results depend on beside their sources."""
    return {
        "network": _network_digest(job.network) or runner.source_sha256 or runner.where,
        "precision": runner.precision,
        "library": "OpenVINO" if isinstance(runner, OpenVinoRunner) else None,
        "res_scale": runner.res_scale,
        "options": asdict(job.options),
        "quality": job.writing.quality,
        "video": asdict(job.video),
        **({"compare": True} if job.writing.compare else {}),
    }


def _network_digest(network: str | Path) -> str | None:
    """SHA-256 of the ONNX file, an engine's own too: one checkpoint has many, such as two quantizations of it."""
    from trt_hspan.engine.manifest import read_manifest

    path = Path(network)
    if path.suffix.lower() == ".plan":
        return read_manifest(path).onnx_sha256
    return sha256_from_file(path) if path.suffix.lower() == ".onnx" else None
