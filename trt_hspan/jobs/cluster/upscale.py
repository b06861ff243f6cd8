"""An upscaling job on a cluster: the same files with the same results, done by many workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from trt_hspan.errors import UsageError
from trt_hspan.jobs.cluster.bundle import bundle_from_network
from trt_hspan.jobs.cluster.job import ClusterJob, ClusterReport, ClusterSpec
from trt_hspan.jobs.cluster.storage import is_uri
from trt_hspan.jobs.cluster.tasks import ClusterJournal, cluster_tasks
from trt_hspan.jobs.upscale import UpscaleJob
from trt_hspan.media.formats import kind_of_file
from trt_hspan.runtime.opening import device_from_text


def cluster_job(
    job: UpscaleJob, address: str, workers: int | None, on_end: Callable[[ClusterReport], None]
) -> ClusterJob:
    """The job, ready to run; inputs and output are files, folders or URIs, `execution.threads` are for each worker.

    Raises:
        UsageError: pipes, videos, or options that do not go with a cluster; as `ClusterSpec`.
        HspanError: inputs, network or an earlier journal cannot be read.
    """
    threads = job.execution.threads or 1
    spec = ClusterSpec(address=address, workers=workers, cpus_per_worker=threads)
    if "-" in (*job.inputs, job.output):
        raise UsageError("--cluster", "does not go with pipes", "name files, folders or URIs")
    if job.writing.compare or job.writing.tile_effect:
        raise UsageError("--cluster", "does not go with --compare and --tile-effect", "leave them out")
    if not is_uri(job.output) and (Path(job.output).is_file() or Path(job.output).suffix):
        raise UsageError(
            job.output, "is a file's name; a cluster writes to a folder or a URI", "name a folder"
        )
    tasks, left_out = cluster_tasks(job.inputs, job.output, suffix=job.suffix)
    if any(kind_of_file(Path(task.source)) == "video" for task in tasks):
        raise UsageError(
            "--cluster", "takes pictures, and there are videos among the inputs", "upscale them without"
        )
    bundle = bundle_from_network(job.network, replace(job.execution, threads=threads))
    settings = {
        "network": bundle.digest,
        "res_scale": job.execution.res_scale,
        "precision": job.execution.precision,
        "library": device_from_text(job.execution.device).library,
        "options": asdict(job.options),
        "quality": job.writing.quality,
    }
    return ClusterJob(
        tasks=tasks,
        left_out=tuple(left_out),
        bundle=bundle,
        options=job.options,
        writing=job.writing,
        spec=spec,
        journal=ClusterJournal(job.output, settings),
        overwrite=job.overwrite,
        on_end=on_end,
    )
