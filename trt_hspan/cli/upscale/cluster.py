"""`trt-hspan upscale --cluster`: the same pictures on many workers."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trt_hspan.cli.output import print_json, print_table
from trt_hspan.cli.progress import progress
from trt_hspan.errors import UsageError

if TYPE_CHECKING:
    from trt_hspan.jobs.cluster.job import ClusterReport
    from trt_hspan.jobs.upscale import UpscaleJob


def run_upscale_on_cluster(job: UpscaleJob, address: str, workers: int | None, *, as_json: bool) -> int:
    """Does all of it and prints the result. Returns the exit code.

    Raises:
        HspanError: nothing could be done at all.
        UsageError: options that do not go with a cluster.
    """
    from trt_hspan.jobs.cluster.bundle import bundle_from_network
    from trt_hspan.jobs.cluster.job import ClusterJob, ClusterSpec
    from trt_hspan.jobs.cluster.storage import is_uri
    from trt_hspan.jobs.cluster.tasks import ClusterJournal, cluster_tasks
    from trt_hspan.media.formats import VIDEO_SUFFIXES

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
    tasks = cluster_tasks(job.inputs, job.output, suffix=job.suffix)
    if any(Path(task.source).suffix.lower() in VIDEO_SUFFIXES for task in tasks):
        raise UsageError(
            "--cluster", "takes pictures, and there are videos among the inputs", "upscale them without"
        )
    bundle = bundle_from_network(job.network, replace(job.execution, threads=threads))
    journal = ClusterJournal(job.output, _settings(job, bundle.digest))
    counts = {"done": 0, "skipped": 0, "failed": 0}
    with progress("starting the cluster", total=len(tasks)) as bar:

        def on_end(report: ClusterReport) -> None:
            counts[report.outcome] += 1
            words = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            bar.show(words, sum(counts.values()))

        reports = ClusterJob(
            tasks=tasks,
            bundle=bundle,
            options=job.options,
            writing=job.writing,
            spec=spec,
            journal=journal,
            overwrite=job.overwrite,
            on_end=on_end,
        ).run()
    _print(job, spec.address, counts, reports, as_json=as_json)
    return 1 if counts["failed"] else 0


def _settings(job: UpscaleJob, digest: str) -> dict[str, Any]:
    """What results depend on beside their sources."""
    return {
        "network": digest,
        "res_scale": job.execution.res_scale,
        "precision": job.execution.precision,
        "integer_kernels": job.execution.integer_kernels,
        "options": asdict(job.options),
        "quality": job.writing.quality,
    }


def _print(
    job: UpscaleJob, address: str, counts: dict[str, int], reports: list[ClusterReport], *, as_json: bool
) -> None:
    totals = {
        **counts,
        "cluster": address,
        "workers_used": len({report.worker for report in reports if report.worker}),
        "worker_seconds": round(sum(report.seconds for report in reports), 3),
        "network": str(job.network),
    }
    if as_json:
        files = [
            {"input": r.task.source, "output": r.task.target, "outcome": r.outcome, "error": r.error or None}
            for r in reports
        ]
        print_json({**totals, "files": files})
    else:
        print_table(f"Upscaled to {job.output}", totals)
    for report in reports:
        if report.error:
            typer.echo(f"trt-hspan: error: {report.error}", err=True)
