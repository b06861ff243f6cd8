"""`trt-hspan upscale --cluster`: the same pictures on many workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_hspan.cli.output import print_report, say
from trt_hspan.cli.progress import progress
from trt_hspan.cli.upscale.job import for_people, left_out_text, lines_with_counts

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
    _print(job, address, counts, reports, on_cluster.left_out, as_json=as_json)
    return 1 if counts["failed"] else 0


def _print(
    job: UpscaleJob,
    address: str,
    counts: dict[str, int],
    reports: list[ClusterReport],
    left_out: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    totals = {
        **counts,
        "left_out": left_out,
        "cluster": address,
        "workers_used": len({report.worker for report in reports if report.worker}),
        "worker_seconds": round(sum(report.seconds for report in reports), 3),
        "network": str(job.network),
    }
    files = [
        {"input": r.task.source, "output": r.task.target, "outcome": r.outcome, "error": r.error or None}
        for r in reports
    ]
    shown = for_people(totals | {"left_out": left_out_text(left_out)})
    print_report(f"Upscaled to {job.output}", {**totals, "files": files}, shown, as_json=as_json)
    for line in lines_with_counts([(r.task.source, r.task.target, r.error) for r in reports if r.error]):
        say(f"error: {line}")
