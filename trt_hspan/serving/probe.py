"""What a network is, asked in a process of its own, so that PyTorch does not stay in a server's parent for good."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.runtime.runner import ShapeLimit


@dataclass(frozen=True, kw_only=True)
class ProbedSource:
    """Properties of a source that serving depends on.

    `shape_ranges` are the smallest and largest (N, 3, H, W) of each range that one run takes; None is no limit.
    """

    scale: int
    shape_ranges: tuple[tuple[ShapeLimit, ShapeLimit], ...]
    label: str


def probe_source(source: str, *, device: str, res_scale: float, plugin: Path | None) -> ProbedSource:
    """Opens a source as `open_runner` does, without loading it, and describes it."""
    request = {"source": source, "device": device, "res_scale": res_scale, "plugin": plugin and str(plugin)}
    completed = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = completed.stdout.splitlines()
    if completed.returncode != 0 or not lines:
        reason = (completed.stderr.strip().splitlines() or ["it gives no reason"])[-1]
        raise HspanError(source, f"cannot be opened: {reason[:300]}", "run again with --debug")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise (UsageError if answer["usage"] else HspanError)(*answer["error"])
    return ProbedSource(
        scale=answer["scale"],
        shape_ranges=tuple((tuple(low), tuple(high)) for low, high in answer["shape_ranges"]),
        label=answer["label"],
    )


def _answer(request: dict[str, object]) -> dict[str, object]:
    from trt_hspan.runtime.opening import open_runner

    source = request.pop("source")
    try:
        runner = open_runner(source, **request)  # type: ignore[arg-type]
        if runner.scale is None:
            raise HspanError(source, "contains no scale", "export it again with trt-hspan export")
    except HspanError as error:
        return {
            "error": [error.where, error.what, error.next_step],
            "usage": isinstance(error, UsageError),
        }
    return asdict(
        ProbedSource(
            scale=runner.scale,
            shape_ranges=runner.shape_ranges,
            label=runner.label,
        )
    )


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))  # noqa: T201 - the answer to the parent
