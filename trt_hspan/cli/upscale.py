"""`trt-hspan upscale`: picture in, picture out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trt_hspan.errors import UsageError


def upscale(
    picture: Annotated[
        Path, typer.Argument(metavar="IN", help="The picture: PNG, JPEG, WebP, BMP, TIFF, GIF, PPM.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The picture to write.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="A .pt, .pth or .safetensors file, or a preset: runs in PyTorch.")
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option(help="An .onnx file: runs under ONNX Runtime on the CPU.")
    ] = None,
    engine: Annotated[
        Path | None,
        typer.Option(help="A .plan: runs on the GPU, or where there is none its ONNX file on the CPU."),
    ] = None,
    res_scale: Annotated[
        float | None,
        typer.Option(help="Residual scale of --checkpoint, which does not store it.", show_default="0.1"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Up-scale one picture as a whole."""
    source = _one_source(checkpoint, onnx, engine)
    if res_scale is not None and checkpoint is None:
        raise UsageError(
            "--res-scale", "is for --checkpoint; ONNX files and engines hold theirs", "leave it out"
        )
    from trt_hspan.cli.output import print_json, print_table, progress
    from trt_hspan.engine.output_set import check_writable
    from trt_hspan.runtime.images import require_writable_suffix
    from trt_hspan.runtime.opening import open_runner
    from trt_hspan.runtime.picture_files import upscale_file

    require_writable_suffix(output)
    check_writable(output)
    runner = open_runner(source, res_scale=0.1 if res_scale is None else res_scale)
    with progress(f"up-scaling {picture.name}"):
        result = upscale_file(runner, picture, output)
    report = {
        "input": str(picture),
        "input_height": result.input_height,
        "input_width": result.input_width,
        "output": str(output),
        "output_height": result.output_height,
        "output_width": result.output_width,
        "backend": result.backend,
        "emulated": runner.emulated,
        "why_emulated": runner.why_emulated,
        "precision": runner.precision,
        "run_time_seconds": round(result.run_time_seconds, 3),
    }
    if json:
        print_json(report)
    else:
        print_table(f"Up-scaled {picture.name}", report)


def _one_source(checkpoint: str | None, onnx: Path | None, engine: Path | None) -> str | Path:
    given: dict[str, str | Path] = {
        option: value
        for option, value in (("--checkpoint", checkpoint), ("--onnx", onnx), ("--engine", engine))
        if value is not None
    }
    if len(given) != 1:
        raise UsageError(
            " ".join(given) or "upscale",
            "expected exactly one of --checkpoint, --onnx and --engine",
            "say which network is to run",
        )
    for option, suffix in (("--onnx", ".onnx"), ("--engine", ".plan")):
        if option in given and Path(given[option]).suffix.lower() != suffix:
            raise UsageError(option, f"got {given[option]}, expected a file that ends in {suffix}")
    ((option, value),) = given.items()
    if option == "--checkpoint" and Path(value).suffix.lower() in (".onnx", ".plan"):
        raise UsageError(option, f"got {value}, which is no checkpoint", "use --onnx or --engine for it")
    return value
