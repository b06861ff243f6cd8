"""`trt-hspan upscale --cluster`: the same pictures on many workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from trt_hspan.cli.output import print_report
from trt_hspan.cli.progress import progress

if TYPE_CHECKING:
    from trt_hspan.jobs.cluster.job import ClusterReport
    from trt_hspan.jobs.upscale import UpscaleJob


def run_upscale_on_cluster(job: UpscaleJob, address: str, workers: int | None, *, as_json: bool) -> int:
    """Does all of it and prints the result. Returns the exit code."""
    from trt_hspan.jobs.cluster.upscale import cluster_job

    counts = {"done": 0, "skipped": 0, "failed": 0}
    with progress("starting the cluster") as bar:

        def on_end(report: ClusterReport) -> None:
            counts[report.outcome] += 1
            words = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            bar.show(words, sum(counts.values()), len(on_cluster.tasks))

        on_cluster = cluster_job(job, address, workers, on_end)
        reports = on_cluster.run()
    _print(job, address, counts, reports, as_json=as_json)
    return 1 if counts["failed"] else 0


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
    files = [
        {"input": r.task.source, "output": r.task.target, "outcome": r.outcome, "error": r.error or None}
        for r in reports
    ]
    print_report(f"Upscaled to {job.output}", {**totals, "files": files}, totals, as_json=as_json)
    for report in reports:
        if report.error:
            typer.echo(f"trt-hspan: error: {report.error}", err=True)
