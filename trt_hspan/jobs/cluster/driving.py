"""The Ray Data job itself: rows in, the workers' answers out.

Ray Data must be driven by a member of the cluster; a command that only reaches it through Ray's client server
(ray://) starts an actor there, which drives, and fetches the answers from it.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trt_hspan.jobs.cluster.worker import Row, UpscaleWorker

if TYPE_CHECKING:
    from trt_hspan.jobs.cluster.bundle import NetworkBundle
    from trt_hspan.upscaling.options import UpscaleOptions
    from trt_hspan.upscaling.pictures import WriteOptions

# Above this many pictures several share a block: a row of Ray's bookkeeping for each would cost more than it helps.
_MOST_BLOCKS: Final = 20_000
# Answers that travel at a time through Ray's client server.
_MOST_ANSWERS: Final = 1000


@dataclass(frozen=True, kw_only=True)
class DataJob:
    """What to run, with `concurrency` workers at a time; `cpus` of each are None where GPUs count.

    Rows are {index, source, target} of each picture.
    """

    rows: Sequence[Row]
    bundle: NetworkBundle
    options: UpscaleOptions
    writing: WriteOptions
    attempts: int
    concurrency: int
    cpus: int | None
    gpus: int | None

    def answers(self) -> Iterator[Row]:
        """The workers' answers, in the order in which they come."""
        import ray.data
        from ray.data import ActorPoolStrategy, DataContext

        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # one picture that kills its workers must not end the job
        with warnings.catch_warnings():
            # Ray 2.60 warns that this way of naming actor options goes away in 2.64, and offers no other yet.
            warnings.simplefilter("ignore", DeprecationWarning)
            dataset = ray.data.from_items(
                list(self.rows), override_num_blocks=min(len(self.rows), _MOST_BLOCKS)
            ).map(
                UpscaleWorker,
                fn_constructor_args=(self.bundle, self.options, self.writing, self.attempts),
                compute=ActorPoolStrategy(
                    size=min(self.concurrency, len(self.rows)), max_tasks_in_flight_per_actor=2
                ),
                num_cpus=self.cpus,
                num_gpus=self.gpus,
                ray_remote_args_fn=self._retries,
            )
        yield from dataset.iter_rows()

    def _retries(self) -> dict[str, Any]:
        return {"max_restarts": -1, "max_task_retries": self.attempts - 1}


def answers_through_client(job: DataJob) -> Iterator[Row]:
    """As `DataJob.answers`, with the job driven by an actor in the cluster that this process is a client of."""
    import ray

    driver: Any = ray.remote(num_cpus=0)(_Driver).remote(job)
    ended = False
    try:
        while not ended:
            try:
                answers = ray.get(driver.take.remote(_MOST_ANSWERS))
            except Exception as error:
                if ray.util.client.ray.is_connected():
                    raise
                # Ray says this with an AssertionError, among others.
                raise ConnectionError("Ray's client server is gone") from error
            ended = not answers
            yield from answers
    finally:
        if ray.util.client.ray.is_connected():
            ray.kill(driver)


class _Driver:
    """Drives a job and keeps its answers until they are fetched."""

    def __init__(self, job: DataJob) -> None:
        self._answers: queue.Queue[Row | BaseException | None] = queue.Queue()
        self._ended = False
        threading.Thread(target=self._drive, args=(job,), daemon=True).start()

    def _drive(self, job: DataJob) -> None:
        try:
            for row in job.answers():
                self._answers.put(row)
        except BaseException as error:  # noqa: BLE001 - it is raised where the answers are taken
            self._answers.put(error)
        else:
            self._answers.put(None)

    def take(self, most: int) -> list[Row]:
        """Waits for an answer and returns all that have come; empty at the end."""
        taken: list[Row] = []
        while not self._ended and len(taken) < most and (not taken or not self._answers.empty()):
            answer = self._answers.get()
            if isinstance(answer, BaseException):
                raise answer
            self._ended = answer is None
            if answer is not None:
                taken.append(answer)
        return taken
