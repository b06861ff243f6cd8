"""`trt-hspan upscale --cluster`: the same pictures on many workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_hspan.cli.progress import progress
from trt_hspan.cli.upscale.job import print_files

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
    totals = {
        **counts,
        "left_out": on_cluster.left_out,
        "cluster": address,
        "workers_used": len({report.worker for report in reports if report.worker}),
        "worker_seconds": round(sum(report.seconds for report in reports), 3),
        "network": str(job.network),
    }
    files = [
        {"input": r.task.source, "output": r.task.target, "outcome": r.outcome, "error": r.error or None}
        for r in reports
    ]
    return print_files(job, totals, files, as_json=as_json)
