"""What `trt-hspan upscale` does once its options are read: opens the network, runs the tasks, tells of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer

from trt_hspan.cli.output import print_json, print_table
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import check_writable
from trt_hspan.jobs.folders import JobReport, Journal, Task, TaskReport, run_tasks, tasks_from_inputs
from trt_hspan.runtime.opening import open_runner
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.picture_files import Upscaled, WriteOptions, comparison_path, upscale_picture_file
from trt_hspan.upscaling.upscaler import Upscaler
from trt_hspan.upscaling.video import UpscaledVideo, VideoOptions, require_encoder, upscale_video

if TYPE_CHECKING:
    from rich.progress import ProgressColumn
    from rich.progress import Task as Bar

    from trt_hspan.jobs.folders import Task, TaskReport
    from trt_hspan.runtime.runner import Runner


_CONTEXT_NOTE = "attention sees one tile at a time"


@dataclass(frozen=True, kw_only=True)
class UpscaleRequest:
    """The command line's options, checked one by one."""

    inputs: tuple[str, ...]
    output: str
    network: str | Path
    res_scale: float
    precision: str | None
    integer_kernels: bool
    plugin: Path | None
    device: str
    threads: int | None
    options: UpscaleOptions
    writing: WriteOptions
    video: VideoOptions
    suffix: str | None
    overwrite: bool
    json: bool


def run_upscale(request: UpscaleRequest) -> int:
    """Does all of it and prints the result. Returns the exit code.

    Raises:
        HspanError: nothing could be done at all, or the only file failed.
        UsageError: inputs and output do not go together.
    """
    with terminated_as_interrupt():
        output = Path(request.output)
        tasks, is_folder = tasks_from_inputs(
            request.inputs, output, suffix=request.suffix, companion=comparison_path
        )
        if not is_folder:
            require_no_suffix(request)
        check_writable(output / ".any" if is_folder else output)
        require_used(request, tasks)
        if request.writing.compare:
            _require_free_comparisons(tasks)
        runner = runner_for(request)
        companion = comparison_path if request.writing.compare else None
        journal = Journal(output, _settings(request, runner), companion=companion) if is_folder else None
        with at_work(request, runner, tasks) as work:
            if not is_folder:
                result = work.do_only(tasks[0])
                return tell_one(request, work, tasks[0].source.name, result)
            report = run_tasks(
                tasks,
                work.do,
                journal=journal,
                overwrite=request.overwrite,
                on_begin=work.progress.begin,
                on_end=work.progress.end,
            )
        return _tell_all(request, work, report)


@dataclass(frozen=True)
class Work:
    """A network, its options and the progress bar, while tasks are done."""

    request: UpscaleRequest
    runner: Runner
    upscaler: Upscaler
    progress: WorkProgress
    activate: Callable[[], None]

    def do(self, task: Task) -> Upscaled | UpscaledVideo:
        """One picture or video. Raises: HspanError as `upscale_picture_file` and `upscale_video`."""
        self.activate()
        if task.is_video:
            return upscale_video(
                self.upscaler,
                task.source,
                task.target,
                self.request.video,
                on_frame=self.progress.on_frame,
            )
        return upscale_picture_file(
            self.upscaler, task.source, task.target, self.request.writing, on_tile=self.progress.on_tile
        )

    def do_only(self, task: Task) -> Upscaled | UpscaledVideo:
        """The only task. Raises: as `do`."""
        self.progress.begin(task)
        return self.do(task)


@contextmanager
def at_work(request: UpscaleRequest, runner: Runner, tasks: list[Task]) -> Iterator[Work]:
    """The network is loaded when the first task is done, and given back at the end."""
    progress = WorkProgress(tasks)
    upscaler = Upscaler(runner, request.options, on_shrink=progress.note)
    with progress, _activated_when_needed(runner) as activate:
        yield Work(request, runner, upscaler, progress, activate)


def require_no_suffix(request: UpscaleRequest) -> None:
    """Raises: UsageError when --format is given though the output's name says the format."""
    if request.suffix is not None:
        raise UsageError("--format", "is for folders and pipes; OUT's suffix says the format", "leave it out")


def require_used(request: UpscaleRequest, tasks: list[Task]) -> None:
    """Raises: UsageError when an option is for files that are not there, or no encoder has that name."""
    videos = sum(task.is_video for task in tasks)
    for option, asked in (("--codec", request.video.codec), ("--crf", request.video.crf)):
        if asked is not None and not videos:
            raise UsageError(option, "is for videos, and there is none", "leave it out")
    for option, given in (
        ("--quality", request.writing.quality is not None),
        ("--compare", request.writing.compare),
        ("--tile-effect", request.writing.tile_effect),
        ("--format", request.suffix is not None),
    ):
        if given and videos == len(tasks):
            raise UsageError(option, "is for pictures, and there is none", "leave it out")
    if videos:
        require_encoder(request.video)


def _require_free_comparisons(tasks: list[Task]) -> None:
    """Raises: UsageError when --compare would replace an input, or a result of the same job."""
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


def runner_for(request: UpscaleRequest) -> Runner:
    """The network that a request names, not loaded yet. Raises: HspanError as `open_runner`."""
    return open_runner(
        request.network,
        device=request.device,
        res_scale=request.res_scale,
        threads=request.threads,
        plugin=request.plugin,
        precision=request.precision,
        integer_kernels=request.integer_kernels,
    )


def _network_digest(network: str | Path) -> str | None:
    """SHA-256 of the ONNX file, an engine's own too: one checkpoint has many, such as two quantizations of it."""
    from trt_hspan.engine.manifest import read_manifest
    from trt_hspan.files import sha256_from_file

    path = Path(network)
    if path.suffix.lower() == ".plan":
        return read_manifest(path).onnx_sha256
    return sha256_from_file(path) if path.suffix.lower() == ".onnx" else None


def _settings(request: UpscaleRequest, runner: Runner) -> dict[str, Any]:
    """What results depend on beside their sources."""
    return {
        "network": _network_digest(request.network) or runner.source_sha256 or runner.where,
        "precision": runner.precision,
        "integer_kernels": request.integer_kernels,
        "res_scale": runner.res_scale,
        "options": asdict(request.options),
        "quality": request.writing.quality,
        "video": asdict(request.video),
        **({"compare": True} if request.writing.compare else {}),
    }


def tell_one(request: UpscaleRequest, work: Work, name: str, result: Upscaled | UpscaledVideo) -> int:
    """Prints what became of the only task. Returns the exit code."""
    report = {
        "input": request.inputs[0],
        "output": request.output,
        **_result_rows(result),
        **_runner_rows(work.runner),
        "out_of_memory": work.upscaler.shrinks or None,
    }
    if request.json:
        print_json(report)
    else:
        print_table(f"Upscaled {name}", _for_people(report))
    return 0


def _tell_all(request: UpscaleRequest, work: Work, report: JobReport) -> int:
    done, skipped, failed = (report.of(outcome) for outcome in ("done", "skipped", "failed"))
    totals = {
        "done": len(done),
        "skipped": len(skipped),
        "failed": len(failed),
        "seconds": round(sum(entry.seconds for entry in done), 3),
        **_runner_rows(work.runner),
        "out_of_memory": work.upscaler.shrinks or None,
    }
    if request.json:
        print_json({**totals, "files": [_file_entry(entry) for entry in report.tasks]})
    else:
        rows = {name: value for name, value in totals.items() if value is not None}
        print_table(f"Upscaled to {request.output}", _for_people(rows))
    for entry in done:
        for line in (*getattr(entry.result, "dropped_streams", ()), *getattr(entry.result, "notes", ())):
            typer.echo(f"trt-hspan: {entry.task.source}: {line}", err=True)
    for entry in failed:
        typer.echo(f"trt-hspan: error: {entry.error}", err=True)
    return 1 if failed else 0


def _file_entry(entry: TaskReport) -> dict[str, Any]:
    rows = {} if entry.result is None else _result_rows(entry.result)
    return {
        "input": str(entry.task.source),
        "output": str(entry.task.target),
        "outcome": entry.outcome,
        "error": entry.error,
        "seconds": round(entry.seconds, 3),
        **rows,
    }


def _result_rows(result: Any) -> dict[str, Any]:
    rows = asdict(result)
    rows.pop("backend")
    if "run_time_seconds" in rows:
        rows["run_time_seconds"] = round(rows["run_time_seconds"], 3)
    if rows.get("comparison") is not None:
        rows["comparison"] = str(rows["comparison"])
    return rows


def _runner_rows(runner: Runner) -> dict[str, Any]:
    return {
        "network": runner.where,
        "backend": runner.label,
        "emulated": runner.emulated,
        "why_emulated": runner.why_emulated,
        "precision": runner.precision,
    }


def _for_people(report: dict[str, Any]) -> dict[str, Any]:
    """The same with tiles told in words, and without rows that say nothing."""
    rows = {name: value for name, value in report.items() if value not in (None, (), [])}
    tiles = rows.get("tiles")
    if tiles is not None:
        size = f"{rows.pop('tile_height')}x{rows.pop('tile_width')}"
        rows["tiles"] = "1, the whole picture" if tiles == 1 else f"{tiles} of {size}; {_CONTEXT_NOTE}"
    effect = rows.get("tile_effect")
    if effect is not None:
        rows["tile_effect"] = (
            f"{effect['psnr_db']:.2f} dB, at most {effect['max_abs_difference']:.2e}, against the whole picture"
        )
    if not rows.get("streamed", True):
        del rows["streamed"]
    return rows


@contextmanager
def _activated_when_needed(runner: Runner) -> Iterator[Callable[[], None]]:
    """Gives a function that loads the network at its first call: a job that is finished needs none."""
    active = False

    def activate() -> None:
        nonlocal active
        if not active:
            runner.__enter__()
            active = True

    try:
        yield activate
    finally:
        if active:
            runner.__exit__(None, None, None)


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does: what is half-written goes away."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class WorkProgress:
    """One bar for all files; its unit is a million input pixels. Shows nothing where stderr is no terminal.

    Sizes are read from the files' headers when the bar starts. Use it in a `with` block.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self._shown = console.is_terminal
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            _throughput_column(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not self._shown,
        )
        self._sizes = {task.source: _pixels(task) for task in tasks} if self._shown else {}
        self._count, self._index = len(tasks), 0
        self._before = 0.0  # megapixels of the files that are finished
        self._current = 0.0
        self._id = self._bar.add_task("upscaling", total=sum(self._sizes.values()) or None)

    def __enter__(self) -> WorkProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, task: Task) -> None:
        """A file is next."""
        self._index += 1
        self._current = self._sizes.get(task.source, 0.0)
        place = f"{self._index} of {self._count}: " if self._count > 1 else ""
        self._bar.update(self._id, description=f"{place}{task.source.name}")

    def begin_picture(self, name: str, height: int, width: int) -> None:
        """A picture that is no file is next, and the only one."""
        self._current = height * width / 1e6
        self._bar.update(self._id, description=name, total=self._current)

    def end(self, report: TaskReport) -> None:
        """A file is done, skipped or failed."""
        if report.outcome == "skipped":
            self._index += 1
        self._before += self._sizes.get(report.task.source, 0.0)
        self._current = 0.0
        self._bar.update(self._id, completed=self._before)

    def on_tile(self, done: int, count: int) -> None:
        """A tile is done."""
        self._bar.update(self._id, completed=self._before + self._current * done / count)

    def on_frame(self, done: int, count: int | None) -> None:
        """A frame is done."""
        if count:
            self.on_tile(min(done, count), count)

    def note(self, line: str) -> None:
        """Something to be known now, such as a lack of memory."""
        if self._shown:
            self._bar.console.print(f"trt-hspan: {line}", markup=False, highlight=False)
        else:
            typer.echo(f"trt-hspan: {line}", err=True)


def _pixels(task: Task) -> float:
    """Millions of input pixels, by the header; 0 for a file that does not say."""
    from trt_hspan.media.images import size_from_image_file
    from trt_hspan.upscaling.video import video_frames

    if task.is_video:
        frames = video_frames(task.source)
        return 0.0 if frames is None else frames[0] * frames[1] * frames[2] / 1e6
    try:
        height, width = size_from_image_file(task.source)
    except HspanError:
        return 0.0
    return height * width / 1e6


def _throughput_column() -> ProgressColumn:
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Throughput(ProgressColumn):
        """Megapixels a second."""

        def render(self, task: Bar) -> Text:
            speed = task.finished_speed or task.speed
            return Text("- MP/s" if speed is None else f"{speed:.2f} MP/s")

    return Throughput()
