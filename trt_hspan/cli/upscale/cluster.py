"""`trt-hspan upscale --cluster`: the same pictures on many workers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trt_hspan.cli.output import print_json, print_table
from trt_hspan.cli.progress import progress
from trt_hspan.errors import UsageError

if TYPE_CHECKING:
    from trt_hspan.cli.upscale.job import UpscaleRequest
    from trt_hspan.jobs.cluster.job import ClusterReport


def run_upscale_on_cluster(request: UpscaleRequest, address: str, workers: int | None) -> int:
    """Does all of it and prints the result. Returns the exit code.

    Raises:
        HspanError: nothing could be done at all.
        UsageError: options that do not go with a cluster.
    """
    from trt_hspan.jobs.cluster.bundle import bundle_from_network
    from trt_hspan.jobs.cluster.job import ClusterJob, ClusterSpec
    from trt_hspan.jobs.cluster.storage import is_uri
    from trt_hspan.jobs.cluster.tasks import ClusterJournal, cluster_tasks
    from trt_hspan.jobs.folders import VIDEO_SUFFIXES

    spec = ClusterSpec(address=address, workers=workers, cpus_per_worker=request.threads or 1)
    if "-" in (*request.inputs, request.output):
        raise UsageError("--cluster", "does not go with pipes", "name files, folders or URIs")
    if request.writing.compare or request.writing.tile_effect:
        raise UsageError("--cluster", "does not go with --compare and --tile-effect", "leave them out")
    if not is_uri(request.output) and (Path(request.output).is_file() or Path(request.output).suffix):
        raise UsageError(
            request.output, "is a file's name; a cluster writes to a folder or a URI", "name a folder"
        )
    tasks = cluster_tasks(request.inputs, request.output, suffix=request.suffix)
    if any(Path(task.source).suffix.lower() in VIDEO_SUFFIXES for task in tasks):
        raise UsageError(
            "--cluster", "takes pictures, and there are videos among the inputs", "upscale them without"
        )
    bundle = bundle_from_network(
        request.network,
        res_scale=request.res_scale,
        device=request.device,
        threads=request.threads or 1,
        plugin=request.plugin,
        precision=request.precision,
        integer_kernels=request.integer_kernels,
    )
    journal = ClusterJournal(request.output, _settings(request, bundle.digest))
    counts = {"done": 0, "skipped": 0, "failed": 0}
    with progress("starting the cluster", total=len(tasks)) as bar:
        (task_id,) = bar.task_ids

        def told(report: ClusterReport) -> None:
            counts[report.outcome] += 1
            words = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            bar.update(task_id, advance=1, description=words)

        reports = ClusterJob(
            tasks=tasks,
            bundle=bundle,
            options=request.options,
            writing=request.writing,
            spec=spec,
            journal=journal,
            overwrite=request.overwrite,
            on_end=told,
        ).run()
    _tell(request, spec.address, counts, reports)
    return 1 if counts["failed"] else 0


def _settings(request: UpscaleRequest, digest: str) -> dict[str, Any]:
    """What results depend on beside their sources."""
    return {
        "network": digest,
        "res_scale": request.res_scale,
        "precision": request.precision,
        "integer_kernels": request.integer_kernels,
        "options": asdict(request.options),
        "quality": request.writing.quality,
    }


def _tell(
    request: UpscaleRequest, address: str, counts: dict[str, int], reports: list[ClusterReport]
) -> None:
    totals = {
        **counts,
        "cluster": address,
        "workers_used": len({report.worker for report in reports if report.worker}),
        "worker_seconds": round(sum(report.seconds for report in reports), 3),
        "network": str(request.network),
    }
    if request.json:
        files = [
            {"input": r.task.source, "output": r.task.target, "outcome": r.outcome, "error": r.error or None}
            for r in reports
        ]
        print_json({**totals, "files": files})
    else:
        print_table(f"Upscaled to {request.output}", totals)
    for report in reports:
        if report.error:
            typer.echo(f"trt-hspan: error: {report.error}", err=True)
