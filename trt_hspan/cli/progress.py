"""Progress of long work, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

    from trt_hspan.engine.manifest import EngineManifest
    from trt_hspan.engine.spec import EngineSpec
    from trt_hspan.graph import Precision
    from trt_hspan.precision.quantize.pipeline import QuantizationRequest, Quantized
    from trt_hspan.precision.quantize.source import Source


def build_with_progress(spec: EngineSpec) -> EngineManifest:
    """Raises: as `build_engine`."""
    from trt_hspan.engine.build import build_engine

    description = f"building {spec.output.name}"
    with progress(description, total=1.0) as bar:
        task = bar.task_ids[0]

        def show(state: Any) -> None:
            phase = f": {state.phase}" if state.phase else ""
            bar.update(task, completed=state.fraction, description=f"{description}{phase}")

        return build_engine(spec, on_progress=show)


@contextmanager
def progress(description: str, *, total: float | None = None) -> Iterator[Progress]:
    """A progress bar on stderr with one task of this description; without a total it only shows life."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        bar.add_task(description, total=total)
        yield bar


def source_with_progress(
    model: str | Path,
    *,
    base: Precision | None,
    res_scale: float | None = None,
    keep_fp32: Sequence[str] = (),
) -> Source:
    """Reads or exports the network. Raises: as `source_from_path`."""
    from trt_hspan.cli.progress import progress
    from trt_hspan.precision.quantize.source import source_from_path

    with progress(f"reading {model}"):
        return source_from_path(model, base=base, res_scale=res_scale, keep_fp32=keep_fp32)


@contextmanager
def step_progress(description: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar that follows `pipeline.OnProgress`."""
    from trt_hspan.cli.progress import progress

    with progress(description) as bar:
        task = bar.task_ids[0]

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{description}: {what}", completed=done, total=total)

        yield show


def quantize_with_progress(source: Source, request: QuantizationRequest) -> Quantized:
    """Raises: as `pipeline.quantize`."""
    from trt_hspan.precision.quantize.pipeline import quantize

    with step_progress(request.precision) as show:
        return quantize(source, request, on_progress=show)
