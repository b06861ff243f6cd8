"""Many files, one after the other: which ones, the outcome of each, and which are finished already.

A task is plain data, doing one is the caller's function, and the journal depends on no network, so that another
scheduler can use any of the three.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import error_from_os_error, locked_folder, remove_abandoned_stages, require_name_fits
from trt_hspan.media.formats import READ_FORMATS, VIDEO_SUFFIXES, WRITE_FORMATS, kind_of_file, kind_of_name

JOURNAL_NAME: Final = ".trt-hspan-journal.jsonl"
#: Of results of videos in formats that are not written: it can contain every codec.
_OTHER_VIDEOS: Final = ".mkv"
Outcome = Literal["done", "skipped", "failed"]

#: Why a target is left as it is, beside "": it is finished.
NOT_OURS: Final = "exists and was not written by this command"
OTHER_SETTINGS: Final = "was written with another network or other options"
_OTHER_SOURCE: Final = "was written from an earlier state of its source"


def refusal_line(target: object, reason: str) -> str:
    """The error line about a target that is left as it is."""
    return str(HspanError(target, reason, "give --overwrite or another folder"))


@dataclass(frozen=True, kw_only=True)
class Task:
    """One file to write from another."""

    source: Path
    target: Path

    @cached_property
    def is_video(self) -> bool:
        return (kind_of_file(self.source) or kind_of_name(self.target)) == "video"


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """The outcome of a task: "done", "skipped" because it was finished before, or "failed"."""

    task: Task
    outcome: Outcome
    result: Any = None  # what the function for the task returned
    error: str | None = None  # one line, of a failed task
    seconds: float = 0.0


class FoundTasks(NamedTuple):
    """Tasks by name, whether they are a job on a folder, and files that are neither pictures nor videos."""

    tasks: list[Task]
    is_folder: bool
    left_out: list[Path]


def tasks_from_inputs(
    inputs: Sequence[str],
    output: Path,
    *,
    suffix: str | None = None,
    companion: Callable[[Path], Path] | None = None,
) -> FoundTasks:
    """The tasks of a command line.

    What a file is, its contents say: `media.formats.kind_of_file`. A folder is searched with its sub-folders, and its
    layout is mirrored in the output folder; a name with *, ? or [ that is no file is a glob pattern. A file among
    several goes into the output folder under its own name, a single one to `output` itself, unless that is a folder or
    has no suffix of a picture or video. Hidden files are left out, and so are results: files in an output folder inside
    the input folder, and, where both are the same, files that the journal lists.

    Args:
        suffix: of pictures; None keeps the source's where it can be written and takes .png elsewhere. A video's is kept
            where it can be written, else it is .mkv.
        companion: returns the name of a file that may be beside a result and belongs to it.

    Raises:
        HspanError: an input does not exist, a pattern matches nothing, or a folder contains no pictures or videos.
        UsageError: several sources for one target; a target that is its own source; a folder for a file's name.
    """
    require_name_fits(output)
    files: list[tuple[Path, Path]] = []  # source, and its name below the output folder
    left_out: list[Path] = []
    single = len(inputs) == 1
    for text in inputs:
        path = Path(text)
        require_name_fits(path)
        if path.is_dir():
            single = False
            media, others = _media_in(path, output)
            files.extend((file, file.relative_to(path)) for file in media)
            left_out += others
        elif not path.exists() and any(sign in text for sign in "*?["):
            single = False
            matching, others = _matches(text, output)
            files.extend(matching)
            left_out += others
        else:
            if not path.exists():
                raise HspanError(path, "no such file or folder", "check the path")
            files.append((path, Path(path.name)))
    if single and not output.is_dir() and output.suffix.lower() in (*WRITE_FORMATS, *VIDEO_SUFFIXES):
        return FoundTasks([_checked(Task(source=files[0][0], target=output))], False, [])
    if not output.is_dir() and (
        output.exists() or output.suffix.lower() in (*WRITE_FORMATS, *VIDEO_SUFFIXES)
    ):
        raise UsageError(output, "is a file's name, but there may be several results", "name a folder")
    if single and output.suffix and not output.is_dir():
        raise UsageError(
            output,
            f"cannot tell the format from {output.suffix!r}",
            f"end it in {', '.join((*WRITE_FORMATS, *VIDEO_SUFFIXES))}, or name a folder",
        )
    tasks = [Task(source=s, target=output / _renamed(s, name, suffix)) for s, name in sorted(files)]
    tasks = [_checked(task) for task in _without_results(tasks, output, companion)]
    require_distinct((task.source, task.target) for task in tasks)
    return FoundTasks(tasks, True, sorted(left_out))


def _without_results(
    tasks: list[Task], output: Path, companion: Callable[[Path], Path] | None
) -> Iterator[Task]:
    """Leaves out what an earlier run wrote into the folder of its sources: results, and what belongs to them."""
    folder = output.resolve()
    results = {folder / name for name in Journal(output, None).targets()}
    companions = set() if companion is None else {companion(path) for path in results}
    for task in tasks:
        source = task.source.resolve()
        if not (source in results and source == task.target.resolve()) and source not in companions:
            yield task


def _media_in(folder: Path, output: Path) -> tuple[list[Path], list[Path]]:
    """Pictures and videos in a folder, and its other files."""
    files: list[Path] = []
    try:
        for root, folders, names in os.walk(folder, onerror=_raise):
            here = Path(root)
            folders[:] = sorted(n for n in folders if not n.startswith(".") and not _same(here / n, output))
            files.extend(here / name for name in sorted(names) if not name.startswith("."))
    except OSError as error:
        raise error_from_os_error(folder, error, action="read") from error
    media, others = _parted(files)
    if not media:
        what = f"contains no pictures or videos{f', {len(others)} other files' if others else ''}"
        raise HspanError(folder, what, f"name a folder with {', '.join(READ_FORMATS)} or videos")
    return media, others


def _parted(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    media: list[Path] = []
    others: list[Path] = []
    for file in files:
        (others if kind_of_file(file) is None else media).append(file)
    return media, others


def _raise(error: OSError) -> None:
    raise error


def _matches(pattern: str, output: Path) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Pictures and videos that a pattern names, each with its name below the pattern's fixed part; and other files."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if any(sign in part for sign in "*?["))
    base = Path(*parts[:fixed])
    in_place = _same(base, output) or _inside(base, output)
    names_hidden = any(part.startswith(".") for part in parts[fixed:])
    media, others = _parted(
        path
        for path in sorted(base.glob(os.path.join(*parts[fixed:])))  # noqa: PTH118  # a pattern is no path
        if path.is_file()
        and (in_place or not _inside(path, output))
        and (names_hidden or not any(part.startswith(".") for part in path.relative_to(base).parts))
    )
    if not media:
        raise HspanError(pattern, "matches no picture or video", "check the pattern, and quote it")
    return [(path, path.relative_to(base)) for path in media], others


def _same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


def _inside(path: Path, folder: Path) -> bool:
    return folder.is_dir() and folder.resolve() in path.resolve().parents


def _renamed(source: Path, name: Path, suffix: str | None) -> Path:
    if kind_of_file(source) == "video":
        return name if name.suffix.lower() in VIDEO_SUFFIXES else name.with_suffix(_OTHER_VIDEOS)
    if suffix is not None:
        return name.with_suffix(suffix)
    return name if name.suffix.lower() in WRITE_FORMATS else name.with_suffix(".png")


def _checked(task: Task) -> Task:
    if task.target.exists() and _same(task.source, task.target):
        raise UsageError(task.target, "is the input itself", "name another output")
    if task.is_video != (task.target.suffix.lower() in VIDEO_SUFFIXES):
        kinds = ("a video", "a picture") if task.is_video else ("a picture", "a video")
        raise UsageError(
            task.target, f"{task.source} is {kinds[0]}, this is {kinds[1]}'s name", f"name {kinds[0]}"
        )
    return task


def require_distinct(tasks: Iterable[tuple[object, object]]) -> None:
    """Raises: UsageError when several sources, the first of each pair, have one target, the second."""
    sources: dict[object, object] = {}
    for source, target in tasks:
        first_source = sources.setdefault(target, source)
        if first_source != source:
            raise UsageError(
                target,
                f"would be written from {first_source} and from {source}",
                "give them different names, or run twice with two output folders",
            )


@contextmanager
def turn_in_folder(folder: Path, on_wait: Callable[[], None]) -> Iterator[bool]:
    """One run at a time writes to a folder. What killed runs left half-written in it, sub-folders included, is removed.

    The folder is created when it is missing, and removed again when it stays empty. Yields whether another run was
    waited for, before which `on_wait` is called.

    Raises:
        HspanError: the folder cannot be written.
    """
    with locked_folder(folder, JOURNAL_NAME, on_wait=on_wait) as waited:
        for root, _, _ in os.walk(folder):
            remove_abandoned_stages(Path(root))
        yield waited


class Journal:
    """Which files of an output folder are finished, from which source and with which settings.

    One line of JSON for each beginning and end, in `.trt-hspan-journal.jsonl` in the output folder, with a hash of
    whatever the results depend on besides their sources. Results are renamed into place whole, so one that began and
    exists is finished even if the process died before it could note that. `companion` returns the name of a file that
    is written along with a picture, before it.
    """

    def __init__(
        self, folder: Path, settings: object, *, companion: Callable[[Path], Path] | None = None
    ) -> None:
        self.path = folder / JOURNAL_NAME
        self._folder = folder
        self._companion = companion
        self._line_break = ""  # what the next line needs before it
        self._settings = settings_digest(settings)
        self._entries = self._read()

    def why_not(self, task: Task) -> str | None:
        """Why a task is not to be done. Empty: it is finished; None: it is to be done."""
        if not task.target.exists():
            return None
        entry = self._entries.get(self._name(task))
        if entry is None or _is_older(task.target, entry):
            return NOT_OURS
        if entry["source"] != _stamp(task.source):
            return _OTHER_SOURCE
        return "" if entry["settings"] == self._settings else OTHER_SETTINGS

    def targets(self) -> Iterable[str]:
        """Names, below the folder, of what was begun or finished."""
        return self._entries.keys()

    def companion_of_others(self, task: Task) -> Path | None:
        """The file that would be written along with a target, if it exists and no run with these settings wrote it."""
        if self._companion is None or task.is_video:
            return None
        path = self._companion(task.target)
        if not os.path.exists(path):  # noqa: PTH110  # a name that is too long is no error here
            return None
        entry = self._entries.get(self._name(task))
        ours = entry is not None and entry["settings"] == self._settings and not _is_older(path, entry)
        return None if ours else path

    def begin(self, task: Task) -> None:
        """Notes that work on a target begins."""
        self._write("begin", task)

    def finish(self, task: Task) -> None:
        """Notes that a target is in place."""
        self._write("finish", task)

    def _name(self, task: Task) -> str:
        return os.path.relpath(task.target, self._folder)

    def _write(self, event: str, task: Task) -> None:
        entry = {
            "event": event,
            "target": self._name(task),
            "source": _stamp(task.source),
            "settings": self._settings,
            "time_ns": time.time_ns() - 10_000_000,  # file systems' clocks lag by up to a tick
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(self._line_break + json.dumps(entry) + "\n")
        except OSError as error:
            raise error_from_os_error(self.path, error) from error
        self._line_break = ""
        self._entries[str(entry["target"])] = entry

    def _read(self) -> dict[str, dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = {}
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return entries
        except OSError as error:
            raise error_from_os_error(self.path, error, action="read") from error
        if text and not text.endswith("\n"):
            self._line_break = "\n"
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                entries[entry["target"]] = {
                    name: entry[name] for name in ("event", "target", "source", "settings", "time_ns")
                }
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a process that was killed
        return entries


def _is_older(path: Path, entry: dict[str, Any]) -> bool:
    """Whether a file is older than the run that noted that it began to write it."""
    return bool(entry["event"] == "begin" and path.stat().st_mtime_ns < entry["time_ns"])


def settings_digest(settings: object) -> str:
    """Sixteen hexadecimal digits that differ where settings do."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _stamp(source: Path) -> list[int]:
    """Size and time of change: enough to notice another file; empty where there is none."""
    try:
        status = source.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def run_tasks(
    tasks: Iterable[Task],
    do: Callable[[Task], Any],
    *,
    journal: Journal | None = None,
    overwrite: bool = False,
    on_begin: Callable[[Task], None] | None = None,
    on_end: Callable[[TaskReport], None] | None = None,
) -> list[TaskReport]:
    """Does tasks one after the other; one that fails does not stop the rest. Returns their reports, in their order.

    Args:
        do: does a task and returns its result; raises HspanError when it fails. Targets must appear whole.
        journal: of earlier runs; None does every task and keeps no record.
        overwrite: repeat finished tasks, and replace files that are not in the journal.
        on_begin, on_end: called before and after each task; for skipped ones only after.
    """
    reports = []
    for task in tasks:
        started = time.perf_counter()
        target, reason = task.target, None
        if journal is not None and not overwrite:
            reason = journal.why_not(task)
            if reason is None and (companion := journal.companion_of_others(task)) is not None:
                target, reason = companion, NOT_OURS
        if reason == "":
            entry = TaskReport(task=task, outcome="skipped")
        elif reason is not None:
            entry = TaskReport(task=task, outcome="failed", error=refusal_line(target, reason))
        else:
            if on_begin is not None:
                on_begin(task)
            entry = _attempt(task, do, journal, started)
        reports.append(entry)
        if on_end is not None:
            on_end(entry)
    return reports


def _attempt(task: Task, do: Callable[[Task], Any], journal: Journal | None, started: float) -> TaskReport:
    try:
        if journal is not None:
            journal.begin(task)
        result = do(task)
        if journal is not None:
            journal.finish(task)
    except HspanError as error:
        line = str(error)
    except Exception as error:  # noqa: BLE001  # one odd file must not stop the other thousand
        line = unexpected_error_line(task.source, error)
    else:
        return TaskReport(task=task, outcome="done", result=result, seconds=time.perf_counter() - started)
    return TaskReport(task=task, outcome="failed", error=line, seconds=time.perf_counter() - started)


def unexpected_error_line(source: object, error: Exception) -> str:
    """The one line about an error that is no HspanError."""
    return f"{source}: unexpected {type(error).__name__}: {' '.join(str(error).split())}"
