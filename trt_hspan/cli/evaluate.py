"""`trt-hspan evaluate`: the published tables, for any network: PSNR-Y and SSIM on benchmark sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from trt_hspan.cli import options
from trt_hspan.cli.output import print_rows, print_table
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import argument, flag, option, refuse_options, takes_request
from trt_hspan.errors import UsageError
from trt_hspan.sizes import tile_from_text

if TYPE_CHECKING:
    from trt_hspan.evaluation.benchmark import BenchmarkPicture, BenchmarkReport, BenchmarkSet
    from trt_hspan.upscaling.options import UpscaleOptions


class SeveralSets(TyperCommand):
    """Reads `--sets Set5 Set14` as `--sets Set5 --sets Set14`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(_repeated("--sets", args)))


def _repeated(name: str, words: list[str]) -> Iterator[str]:
    """Puts the option's name before each of its values but the first; words that begin with - end them."""
    values = None
    for word in words:
        values = 0 if word == name else None if word.startswith("-") or values is None else values + 1
        if values is not None and values > 1:
            yield name
        yield word


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    network: str = argument(
        "A .pt, .pth or .safetensors file, a preset, an ONNX file, or an engine.", "NETWORK"
    )
    data: Path = option(
        "The folder of the sets: DATA/Set5/HR/NAME.png and DATA/Set5/LR_bicubic/X4/NAMEx4.png, in it or in its "
        "benchmark folder. Of a set with HR alone, the input is computed by bicubic interpolation as MATLAB's.",
        "DATA",
        default=...,
    )
    sets: tuple[str, ...] = option(
        "These sets; the network is named before them.", "NAME...", default=(), shown="all there are"
    )
    protocol: str = option(
        "official: quarters with hard seams, as the official code's --chop cuts them for its published figures. "
        "whole: no cuts. tiles: as trt-hspan upscale.",
        "official|whole|tiles",
        default="official",
    )
    tile: str = option("For --protocol tiles: their size.", "auto|HxW", default="auto")
    self_ensemble: bool = flag("Mean over the 8 flips and turns: 8 times the work.")
    res_scale: float | None = options.res_scale()
    engine: options.EngineOptions
    json: Path | None = option(
        "Write the figures there after each picture; run again, it goes on where it stopped.", "FILE"
    )
    markdown: Path | None = option("Write the tables there.", "FILE")

    def upscaling(self) -> UpscaleOptions:
        """Raises: UsageError for options that make no sense."""
        from trt_hspan.upscaling.options import UpscaleOptions

        if Path(self.network).suffix.lower() in (".onnx", ".plan"):
            refuse_options(
                {"--res-scale": self.res_scale}, "is for checkpoints; ONNX files and engines have theirs"
            )
        if self.json is not None and self.json == self.markdown:
            raise UsageError("--markdown", f"{self.markdown} is the file of --json", "name another")
        self.engine.require_plugin_for([self.network])
        tile = tile_from_text(self.tile)
        if self.protocol != "tiles" and tile != "auto":
            raise UsageError("--tile", "is for --protocol tiles", "leave out one of them")
        if self.protocol == "official":
            return UpscaleOptions(protocol="official", self_ensemble=self.self_ensemble)
        if self.protocol not in ("whole", "tiles"):
            raise UsageError("--protocol", f"got {self.protocol!r}, expected official, whole or tiles")
        return UpscaleOptions(
            tile="none" if self.protocol == "whole" else tile, self_ensemble=self.self_ensemble
        )


@takes_request
def evaluate(request: EvaluateRequest) -> None:
    """Measure a network on benchmark sets as the published tables do: PSNR-Y and SSIM beside bicubic, and time."""
    from trt_hspan.evaluation.benchmark import evaluate as evaluated
    from trt_hspan.files import check_writable, write_text
    from trt_hspan.runtime.opening import open_runner

    upscaling, engine = request.upscaling(), request.engine
    if request.markdown is not None:
        check_writable(request.markdown)
    with progress("opening the network") as bar:
        runner = open_runner(
            request.network,
            device=engine.device,
            plugin=engine.plugin,
            res_scale=request.res_scale,
        )
        sets = tuple(dict.fromkeys(request.sets))
        report = evaluated(
            runner, request.data, sets, options=upscaling, results=request.json, on_progress=bar.show
        )
    tables = [_means(report), *(_pictures(report, measured.name) for measured in report.sets)]
    remarks = [f"{p.set}/{p.remark}" for p in report.pictures if p.remark is not None]
    if request.markdown is not None:
        parts = [f"{_title(report)}.", *(_markdown(*table) for table in tables)]
        write_text(request.markdown, "\n\n".join([*parts, *(f"- {remark}" for remark in remarks)]) + "\n")
    for head, rows in reversed(tables):
        print_rows("", head, rows)
    notes = {"network": _title(report)}
    print_table("", notes | {f"remark {number}": remark for number, remark in enumerate(remarks, 1)})


def _title(report: BenchmarkReport) -> str:
    ensemble = ", self-ensemble" if report.self_ensemble else ""
    cut = {"none": "whole pictures", "auto": "tiles where needed"}.get(report.tile, f"tiles of {report.tile}")
    cut = "protocol official" if report.protocol == "official" else cut
    return f"{report.network} at scale {report.scale}, {report.backend}, {cut}{ensemble}"


def _means(report: BenchmarkReport) -> tuple[list[str], list[list[str]]]:
    rows = [[s.name, str(s.pictures), *_figures(s)] for s in report.sets]
    return ["set", "pictures", *_columns(report)], rows


def _pictures(report: BenchmarkReport, name: str) -> tuple[list[str], list[list[str]]]:
    own = (picture for picture in report.pictures if picture.set == name)
    rows = [[p.name, f"{p.height}x{p.width}", *_figures(p)] for p in own]
    return [name, "size", *_columns(report)], rows


def _columns(report: BenchmarkReport) -> list[str]:
    return ["PSNR-Y", "SSIM", "bicubic" if report.scale > 1 else "input", "its SSIM", "seconds"]


def _figures(measured: BenchmarkPicture | BenchmarkSet) -> list[str]:
    qualities = (measured.quality, measured.bicubic)
    cells = [text for q in qualities for text in (_decibels(q.psnr_y_db), f"{q.ssim_y:.4f}")]
    return [*cells, f"{measured.seconds:.2f}"]


def _decibels(psnr_y_db: float) -> str:
    from trt_hspan.evaluation.metrics import EXACT_DB

    return "exact" if psnr_y_db >= EXACT_DB else f"{psnr_y_db:.3f}"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
