"""The tasks of a cluster job, and the journal of those that are finished."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from trt_hspan.errors import HspanError
from trt_hspan.jobs.cluster.storage import (
    exists,
    is_uri,
    joined,
    objects_in,
    read_bytes,
    suffix_of,
    write_bytes,
)
from trt_hspan.jobs.folders import (
    NOT_OURS,
    OTHER_SETTINGS,
    Journal,
    Task,
    require_distinct,
    settings_digest,
    tasks_from_inputs,
)
from trt_hspan.media.formats import READ_SUFFIXES, WRITE_FORMATS

_JOURNAL_FOLDER: Final = ".trt-hspan-journal"
_FLUSH_S: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class ClusterTask:
    """One picture (or, on shared file systems, video): where it is and where its result goes; paths or URIs."""

    source: str
    target: str

    @property
    def local(self) -> Task:
        """The same where both are paths."""
        return Task(source=Path(self.source), target=Path(self.target))


class FoundClusterTasks(NamedTuple):
    """The tasks of a command line, and what folders and prefixes contain beside pictures."""

    tasks: list[ClusterTask]
    left_out: list[str]


def cluster_tasks(inputs: Sequence[str], output: str, *, suffix: str | None = None) -> FoundClusterTasks:
    """The tasks of a command line, as `tasks_from_inputs`; inputs and output may be URIs of objects or prefixes.

    Objects in a store are known by their names alone.
    """
    if not is_uri(output):
        output = str(Path(output).absolute())  # workers have working directories of their own
    local = [text for text in inputs if not is_uri(text)]
    tasks: list[ClusterTask] = []
    left_out: list[str] = []
    if local:
        found = tasks_from_inputs(local, Path("/" if is_uri(output) else output), suffix=suffix)
        left_out += map(str, found.left_out)
        for task in found.tasks:
            target = str(task.target.absolute())
            target = joined(output, target.lstrip("/")) if is_uri(output) else target
            tasks.append(ClusterTask(source=str(task.source.absolute()), target=target))
    for uri in (text for text in inputs if is_uri(text)):
        in_store = _in_store(uri, output, suffix)
        tasks += in_store.tasks
        left_out += in_store.left_out
    require_distinct((task.source, task.target) for task in tasks)
    return FoundClusterTasks(tasks, left_out)


def _in_store(uri: str, output: str, suffix: str | None) -> FoundClusterTasks:
    others: list[str] = []
    if suffix_of(uri) in READ_SUFFIXES:
        names = {uri: uri.rsplit("/", 1)[-1]}
    else:
        objects = [name for name in objects_in(uri) if not name.startswith(".") and "/." not in name]
        pictures = [name for name in objects if suffix_of(name) in READ_SUFFIXES]
        others = [joined(uri, name) for name in objects if suffix_of(name) not in READ_SUFFIXES]
        if not pictures:
            raise HspanError(
                uri, "contains no pictures", f"expected objects that end in {', '.join(READ_SUFFIXES)}"
            )
        names = {joined(uri, name): name for name in pictures}
    tasks = []
    for source, name in names.items():
        kept = suffix_of(name) if suffix_of(name) in WRITE_FORMATS else ".png"
        target = joined(output, str(Path(name).with_suffix(suffix or kept)))
        tasks.append(ClusterTask(source=source, target=target))
    return FoundClusterTasks(tasks, others)


class ClusterJournal:
    """Which targets are finished: the local `Journal`, or for stores, which cannot append, a folder of parts."""

    def __init__(self, output: str, settings: object) -> None:
        self._local = None if is_uri(output) else Journal(Path(output), settings)
        self._settings = settings_digest(settings)
        self._folder = joined(output, _JOURNAL_FOLDER)
        self._part: list[str] = []
        self._part_name = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._flushed = time.monotonic()
        self._entries = {} if self._local is not None else self._read_parts()

    def why_not(self, task: ClusterTask) -> str | None:
        """As `Journal.why_not`."""
        if self._local is not None:
            return self._local.why_not(task.local)
        if not exists(task.target):
            return None
        settings = self._entries.get(task.target)
        return NOT_OURS if settings is None else "" if settings == self._settings else OTHER_SETTINGS

    def begin(self, task: ClusterTask) -> None:
        """Notes that work on a target begins; a store's result counts when it is finished."""
        if self._local is not None:
            self._local.begin(task.local)

    def finish(self, task: ClusterTask) -> None:
        """Notes that a target is in place."""
        if self._local is not None:
            self._local.finish(task.local)
            return
        self._part.append(json.dumps({"target": task.target, "settings": self._settings}))
        if time.monotonic() - self._flushed > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Writes what a store does not have yet."""
        if self._part:
            write_bytes(joined(self._folder, self._part_name), ("\n".join(self._part) + "\n").encode())
        self._flushed = time.monotonic()

    def _read_parts(self) -> dict[str, str]:
        entries: dict[str, str] = {}
        for name in objects_in(self._folder):
            for line in read_bytes(joined(self._folder, name)).decode(errors="replace").splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    entries[entry["target"]] = entry["settings"]
        return entries
