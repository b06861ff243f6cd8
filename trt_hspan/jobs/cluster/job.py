"""A job on a Ray cluster: starts or joins it, hands out tasks through Ray Data, and reports the outcome of each.

Ray Data keeps a bounded number of pictures in flight, restarts a worker that died, and repeats its picture;
a picture that kills its worker every time is reported as failed, like any other. Workers read and write the pictures
themselves, so that only names travel through the cluster.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trt_hspan.errors import HspanError, UsageError, reason_from
from trt_hspan.jobs.cluster.address import LOCAL, ray_host_and_port, require_ray
from trt_hspan.jobs.cluster.tasks import ClusterJournal, ClusterTask
from trt_hspan.jobs.folders import Outcome, refusal_line
from trt_hspan.machine.install_advice import install_command

if TYPE_CHECKING:
    from trt_hspan.jobs.cluster.bundle import NetworkBundle
    from trt_hspan.upscaling.options import UpscaleOptions
    from trt_hspan.upscaling.pictures import WriteOptions

_ATTEMPTS: Final = 3
_DIED: Final = "its worker died each time"

# Ray's message when its client server cannot start the process that would serve this client.
_SERVER_FAILURE: Final = "Initialization failure from server"
_FORK_ADVICE: Final = (
    "run the command again; on the head node ray start with GRPC_ENABLE_FORK_SUPPORT=0 avoids it"
)


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """Where: "local" starts a cluster on this machine for the job, "auto" or ray://host:port joins one; and how.

    Workers at one time are one for each GPU, or for each `cpus_per_worker` processors without any, if None.

    Raises:
        UsageError: an address of another form, or a number below 1.
    """

    address: str = LOCAL
    workers: int | None = None
    cpus_per_worker: int = 1

    def __post_init__(self) -> None:
        ray_host_and_port(self.address)
        if self.workers is not None and self.workers < 1:
            raise UsageError("--workers", f"got {self.workers}, expected at least 1")
        if self.cpus_per_worker < 1:
            raise UsageError("--threads", f"got {self.cpus_per_worker}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class ClusterReport:
    """The outcome of one task, as `TaskReport`, and the process and attempts of the worker that finished it."""

    task: ClusterTask
    outcome: Outcome
    error: str = ""
    seconds: float = 0.0
    worker: int = 0
    attempts: int = 0


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """What to do, and how; the results are the same bytes as those of one process.

    Attributes:
        journal: of earlier runs.
        overwrite: repeat finished tasks, and replace files that are not in the journal.
        on_end: called with the report of each task when it ends.
        left_out: what the inputs contain beside pictures.
    """

    tasks: Sequence[ClusterTask]
    bundle: NetworkBundle
    options: UpscaleOptions
    writing: WriteOptions
    spec: ClusterSpec
    journal: ClusterJournal
    overwrite: bool = False
    on_end: Callable[[ClusterReport], None] = lambda report: None
    left_out: tuple[str, ...] = ()

    def run(self) -> list[ClusterReport]:
        """Does all tasks; one that fails does not stop the rest. Returns one report for each, in their order."""
        reports = {index: self._reported(report) for index, report in self._settled()}
        waiting = [index for index in range(len(self.tasks)) if index not in reports]
        try:
            if waiting:
                with _cluster(self.spec) as concurrency:
                    for index in waiting:
                        self.journal.begin(self.tasks[index])
                    self._schedule(waiting, concurrency, reports)
                    # Tasks lost with a worker that died for good are tried once more.
                    self._schedule([i for i in waiting if i not in reports], concurrency, reports)
        finally:
            self.journal.flush()
        for index in (index for index in waiting if index not in reports):
            task = self.tasks[index]
            line = str(HspanError(task.source, _DIED, "try it alone with trt-hspan upscale"))
            reports[index] = self._reported(ClusterReport(task=task, outcome="failed", error=line))
        return [reports[index] for index in range(len(self.tasks))]

    def _settled(self) -> Iterator[tuple[int, ClusterReport]]:
        """Tasks that need no worker: finished before, or refused."""
        for index, task in enumerate(() if self.overwrite else self.tasks):
            reason = self.journal.why_not(task)
            if reason is not None:
                error = refusal_line(task.target, reason) if reason else ""
                yield index, ClusterReport(task=task, outcome="failed" if error else "skipped", error=error)

    def _schedule(self, indices: Sequence[int], concurrency: int, reports: dict[int, ClusterReport]) -> None:
        for row in self._rows(indices, concurrency):
            index = int(row["index"])
            if index not in reports:
                report = ClusterReport(
                    task=self.tasks[index],
                    outcome="failed" if row["error"] else "done",
                    error=str(row["error"]),
                    seconds=float(row["seconds"]),
                    worker=int(row["pid"]),
                    attempts=int(row["attempts"]),
                )
                if report.outcome == "done":
                    self.journal.finish(report.task)
                reports[index] = self._reported(report)

    def _reported(self, report: ClusterReport) -> ClusterReport:
        self.on_end(report)
        return report

    def _rows(self, indices: Sequence[int], concurrency: int) -> Iterator[dict[str, Any]]:
        if not indices:
            return
        import ray

        from trt_hspan.jobs.cluster.driving import DataJob, answers_through_client

        runs_on_gpu = self.bundle.options.device != "cpu" and self.bundle.name.endswith(".plan")
        gpus = 1 if runs_on_gpu and ray.cluster_resources().get("GPU", 0) >= 1 else None
        job = DataJob(
            rows=[
                {"index": i, "source": self.tasks[i].source, "target": self.tasks[i].target} for i in indices
            ],
            bundle=self.bundle,
            options=self.options,
            writing=self.writing,
            attempts=_ATTEMPTS,
            concurrency=concurrency,
            cpus=None if gpus else self.spec.cpus_per_worker,
            gpus=gpus,
        )
        try:
            yield from answers_through_client(job) if ray.util.client.ray.is_connected() else job.answers()
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise HspanError(
                self.spec.address,
                f"the cluster was lost: {type(error).__name__}: {reason_from(error)}",
                "run the command again: what is finished is not done again",
            ) from error


@contextmanager
def _cluster(spec: ClusterSpec) -> Iterator[int]:
    """Joins or starts the cluster; yields the number of workers to run at a time."""
    if importlib.util.find_spec("ray") is None:
        raise HspanError("--cluster", "Ray is not installed", install_command("cluster"))
    require_ray(spec.address)
    import ray

    _silence()
    if spec.address == LOCAL:
        processors = os.cpu_count() or 1
        _require_processors(spec, processors // spec.cpus_per_worker, processors)
    mine = not ray.is_initialized()
    try:
        if mine and spec.address == LOCAL:
            processors_to_use = None if spec.workers is None else spec.workers * spec.cpus_per_worker
            ray.init(
                num_cpus=processors_to_use,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        elif mine:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # what it warns of, it raises too
                ray.init(address=spec.address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # noqa: BLE001  # Ray raises many kinds here
        reason = reason_from(error)
        advice = _FORK_ADVICE if _SERVER_FAILURE in reason else "check it with ray status"
        raise HspanError(spec.address, f"the cluster cannot be reached: {reason}", advice) from None
    try:
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        capacity = gpus or cpus // spec.cpus_per_worker
        _require_processors(spec, capacity, cpus)
        yield min(capacity, spec.workers or capacity)
    finally:
        if mine:
            ray.shutdown()


def _require_processors(spec: ClusterSpec, workers: int, processors: int) -> None:
    if workers < 1:
        raise HspanError(
            spec.address,
            f"too few processors for a worker: each needs {spec.cpus_per_worker}, the cluster has {processors}",
            "give fewer --threads",
        )


def _silence() -> None:
    """Ray logs for its own users; errors reach the reports anyway."""
    import ray.data

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
