"""`trt-hspan jetson build|reference|validate|bench`: what is done on the board itself, without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_hspan.cli.options import MinPsnr
from trt_hspan.errors import HspanError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trt_hspan.engine.manifest import EngineManifest
    from trt_hspan.evaluation.speed.bench import Measurement
    from trt_hspan.jetson.advice import Advice
    from trt_hspan.jetson.board_build import BoardBuild
    from trt_hspan.jetson.boards import Detection
    from trt_hspan.jetson.reference import ReferenceReport
    from trt_hspan.machine.jetson import DeviceFacts
    from trt_hspan.sizes import ImageSize

BoardOption = Annotated[
    str, typer.Option(help="auto is the board that this runs on; `trt-hspan jetson boards` lists all names.")
]
PluginOption = Annotated[
    Path | None,
    typer.Option(
        metavar="LIBRARY",
        help="The plugin library.",
        show_default="TRT_HSPAN_PLUGIN, or that of the .deb under /opt/hspan",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def build(
    onnx: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An ONNX file of trt-hspan export.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="NAME.plan",
            help="The engine; NAME.onnx and NAME.json are written beside it.",
        ),
    ],
    board: BoardOption = "auto",
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Of the pictures or frames that are to go in; what does not fit is cut into tiles.",
            show_default="256x256, or the model's own",
        ),
    ] = None,
    plugin: PluginOption = None,
    opt_level: Annotated[
        int | None,
        typer.Option(help="0 (fast build) to 5 (fast engine).", show_default="TensorRT's"),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Build an engine on the board, within its memory."""
    from trt_hspan.cli.output import print_json, print_table
    from trt_hspan.cli.progress import progress
    from trt_hspan.engine.build import build_engine
    from trt_hspan.jetson.board_build import board_build, require_builder
    from trt_hspan.jetson.boards import chosen_board
    from trt_hspan.machine import jetson as device
    from trt_hspan.sizes import image_size_from_text

    facts = device.this_device()
    found = chosen_board(board, facts)
    request = board_build(
        onnx,
        output,
        found.board,
        facts,
        size=None if size is None else image_size_from_text(size, option="--size"),
        plugin=plugin,
        optimization_level=opt_level,
    )
    require_builder(found.board)
    advice = told_advice(found, facts)
    with progress(f"building {output.name}") as bar:
        manifest = build_engine(request.spec, on_progress=bar.phases(f"building {output.name}"))
    if json:
        print_json(_build_report(found, request, manifest, advice))
    else:
        print_table(f"Built {output}", _build_table(found, request, manifest))


def reference(
    checkpoint: Annotated[
        str, typer.Argument(help="A .pt, .pth or .safetensors file, or a preset: runs in PyTorch.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="REF.npz", help="For `jetson validate --reference`.")
    ],
    picture: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="A picture to compute, repeatable.", show_default="the two shipped ones"
        ),
    ] = None,
    res_scale: Annotated[
        float, typer.Option(help="Residual scale of the checkpoint, which does not store it.")
    ] = 0.1,
    json: JsonOption = False,
) -> None:
    """Compute reference outputs in PyTorch, to take along to a board."""
    from trt_hspan.cli.output import print_json, print_table
    from trt_hspan.cli.progress import progress
    from trt_hspan.jetson.reference import (
        default_pictures,
        made_reference,
        pictures_from_files,
        require_reference_name,
        write_reference,
    )

    require_reference_name(output)
    pictures = pictures_from_files(picture) if picture else default_pictures()
    with progress(f"running {checkpoint}"):
        made = made_reference(checkpoint, pictures, res_scale=res_scale)
    write_reference(output, made)
    report = {
        "reference": str(output),
        "network": made.network,
        "source_sha256": made.source_sha256,
        "scale": made.scale,
        "res_scale": made.res_scale,
        "made_by": made.made_by,
        "pictures": {one.name: list(one.picture.shape[:2]) for one in made.pictures},
        "size_bytes": output.stat().st_size,
    }
    if json:
        print_json(report)
    else:
        print_table(f"Wrote {output}", report)


def validate(
    engine: Annotated[
        Path, typer.Argument(metavar="ENGINE", help="A .plan with its manifest beside it, or an .onnx file.")
    ],
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="REF.npz",
            help="Of `trt-hspan jetson reference`.",
            show_default="what is shipped for hspan-tiny-x2 and -x4",
        ),
    ] = None,
    min_psnr: MinPsnr = None,
    device: Annotated[str, typer.Option(help="auto, cpu, gpu, or gpu:1.")] = "auto",
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Compare an engine with stored outputs of PyTorch. Exit code 1 below the bar."""
    from dataclasses import asdict

    from trt_hspan.cli.output import print_json
    from trt_hspan.cli.progress import progress
    from trt_hspan.evaluation.metrics import require_bar
    from trt_hspan.jetson.board_build import device_plugin
    from trt_hspan.jetson.reference import compared_with_reference, reference_for
    from trt_hspan.runtime.opening import open_runner

    require_bar(min_psnr)
    is_engine = engine.suffix.lower() == ".plan"
    if not is_engine and engine.suffix.lower() != ".onnx":
        raise UsageError(engine, "is neither an engine nor an ONNX file", "name a .plan or an .onnx file")
    if not is_engine and plugin is not None:
        raise UsageError("--plugin", "is for engines", "leave it out")
    runner = open_runner(engine, device=device, plugin=(plugin or device_plugin()) if is_engine else None)
    stored = reference_for(runner, reference)
    with progress("comparing", total=len(stored.pictures)) as bar:
        report = compared_with_reference(runner, stored, min_psnr_db=min_psnr, on_picture=bar.advance)
    if json:
        print_json(asdict(report))
    else:
        _print_comparison(report)
    if not report.passed:
        name, worst = report.worst
        if worst.nan_count:
            raise HspanError(
                engine,
                f"{worst.nan_count} values are NaN or infinite on {name}",
                "export it with --precision fp32",
            )
        raise HspanError(
            engine,
            f"agrees with PyTorch to {worst.psnr_db:.2f} dB on {name}, the bar is {report.min_psnr_db:g} dB",
            "use another precision, or lower --min-psnr",
        )


def bench(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="A .plan with its manifest beside it.")],
    board: BoardOption = "auto",
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HxW",
            help="Of the input, repeatable.",
            show_default="what the engine is tuned for",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, gpu, or gpu:1.")] = "auto",
    seconds: Annotated[float, typer.Option(help="Time of sampling for each figure.")] = 3.0,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Time an engine beside the least time that the board could take, with power mode and clocks."""
    from dataclasses import asdict

    from trt_hspan.cli.output import print_json, print_rows, print_table
    from trt_hspan.cli.progress import progress
    from trt_hspan.engine.manifest import verify_manifest
    from trt_hspan.evaluation.speed.bench import BenchSpec, run_bench
    from trt_hspan.jetson.board_build import device_plugin
    from trt_hspan.jetson.boards import chosen_board
    from trt_hspan.jetson.plan import floors_for_sizes
    from trt_hspan.machine import jetson as edge_device
    from trt_hspan.machine.gpu import gpu_architectures
    from trt_hspan.sizes import ImageSize, image_size_from_text

    facts = edge_device.this_device()
    found = chosen_board(board, facts)
    manifest = verify_manifest(engine)
    requested = dict.fromkeys(image_size_from_text(text, option="--size") for text in size or ())
    sizes = tuple(requested) or (manifest.largest_profile.sizes[1],)
    for input_size in sizes:
        _require_in_profile(engine, manifest, input_size)
    floors = floors_for_sizes(engine.parent / manifest.onnx_file, found.board, sizes)
    spec = BenchSpec(
        sources=(str(engine),), sizes=sizes, device=device, seconds=seconds, plugin=plugin or device_plugin()
    )
    advice = told_advice(found, facts)
    with progress("opening") as bar:
        report = run_bench(spec, on_step=bar.show)
    if json:
        print_json(
            {
                **_board_report(found, advice),
                "floors_ms": {str(key): value for key, value in floors.items()},
                **asdict(report),
            }
        )
        return
    columns = ["network", "size", "p50 ms", "p95", "images/s", "floor ms", "x floor"]
    on_board = gpu_architectures()[:1] == (f"sm_{found.board.rates.architecture}",)
    rows = [
        _bench_row(measurement, floors[ImageSize(measurement.height, measurement.width)], on_board=on_board)
        for measurement in report.measurements
    ]
    print_rows("Latency of one run, host to host", columns, rows)
    notes = _board_notes(found, facts)
    notes["floor"] = f"arithmetic or traffic at published peaks of the {found.board.title}, not a measurement"
    if any(measurement.emulated for measurement in report.measurements):
        notes["measured on"] = f"this machine, not the board: {report.picked[str(engine)]}"
    print_table("", notes)


def _require_in_profile(engine: Path, manifest: EngineManifest, size: ImageSize) -> None:
    """Raises: HspanError for a size that the engine does not take, or not as a single picture."""
    shape = (3, *size)
    taking = [
        profile.min[0]
        for profile in manifest.profiles
        if all(a <= b <= c for a, b, c in zip(profile.min[1:], shape, profile.max[1:], strict=True))
    ]
    if 1 in taking:
        return
    if taking:
        raise HspanError(
            engine,
            f"takes at least {min(taking)} pictures of {size} in one run, and the floor is that of one",
            "build the engine for single pictures, or time it with trt-hspan bench",
        )
    least, _, most = manifest.largest_profile.sizes
    raise HspanError(
        f"--size {size}",
        f"{engine} takes {least} to {most}",
        "give a size in between, or build the engine with another --size",
    )


def told_advice(found: Detection, facts: DeviceFacts) -> list[Advice]:
    """What stands in the way, also on stderr as notes with the commands that mend it."""
    from trt_hspan.jetson.advice import advice_for_board

    advice = advice_for_board(found.board, facts)
    for one in advice:
        typer.echo(f"trt-hspan: note: {one.what}", err=True)
        for command in one.commands:
            typer.echo(f"    {command}", err=True)
    return advice


def _board_report(found: Detection, advice: Sequence[Advice]) -> dict[str, Any]:
    from dataclasses import asdict

    return {"board": found.board.name, "board_found": found.why, "advice": [asdict(one) for one in advice]}


def _build_report(
    found: Detection, request: BoardBuild, manifest: EngineManifest, advice: Sequence[Advice]
) -> dict[str, Any]:
    import json

    spec = request.spec
    return {
        **_board_report(found, advice),
        "plan": str(spec.output),
        "planned_memory_bytes": request.plan.memory.total,
        "workspace_limit_mib": spec.workspace_mib,
        "tactic_memory_limit_mib": spec.tactic_dram_mib,
        **json.loads(manifest.as_json()),
    }


def _build_table(found: Detection, request: BoardBuild, manifest: EngineManifest) -> dict[str, Any]:
    spec, plan = request.spec, request.plan
    largest = manifest.largest_profile
    least, best, most = largest.sizes
    reported = largest.activation_memory_bytes
    plugin = "-" if manifest.plugin is None else f"{manifest.plugin.file} {manifest.plugin.sha256[:12]}"
    return {
        "board": f"{found.board.name}: {found.why}",
        "engine": f"{spec.output} ({manifest.plan_size_bytes / 1e6:,.1f} MB)",
        "manifest": spec.manifest_output,
        "TensorRT": f"{manifest.flavor} {manifest.tensorrt_version}, {', '.join(manifest.targets)}",
        "precision": manifest.precision,
        "plugin": plugin,
        "sizes": f"{least} to {most}, tuned for {best}",
        "larger pictures": "are cut into tiles",
        "memory planned": f"{plan.memory.total / 1e9:.2f} of {plan.board.memory_bytes / 1e9:.2f} GB, of them "
        f"{plan.memory.reserved / 1e9:.2f} GB for the system",
        "activation memory": None
        if reported is None
        else f"{reported / 1e6:,.1f} MB, as TensorRT reports it",
        "limits of the build": f"workspace {spec.workspace_mib} MiB, trial runs {spec.tactic_dram_mib} MiB",
        "build time": f"{manifest.build_time_seconds:.1f} s",
    }


def _print_comparison(report: ReferenceReport) -> None:
    from trt_hspan.cli.output import print_rows, print_table

    rows = [
        [
            name,
            f"{one.psnr_db:.2f}",
            f"{one.max_abs_error:.2e}",
            f"{one.mean_abs_error:.2e}",
            str(one.nan_count),
        ]
        for name, one in report.agreements.items()
    ]
    columns = ["picture", "PSNR dB", "max error", "mean error", "NaN"]
    print_rows(f"{report.candidate}, against stored outputs", columns, rows)
    worst = report.worst[1].psnr_db
    notes = {
        "result": f"{'passed' if report.passed else 'FAILED'}: worst {worst:.2f} dB, bar {report.min_psnr_db:g} dB",
        "reference": report.reference,
    }
    if report.emulated:
        notes["executed"] = "emulated on CPU" + (f": {report.why_emulated}" if report.why_emulated else "")
    print_table("", notes)


def _bench_row(found: Measurement, floor_ms: float, *, on_board: bool) -> list[str]:
    graph = {None: "", True: ", graph", False: ", no graph"}[found.cuda_graph]
    latency = found.latency
    # What another machine takes is no multiple of the board's floor.
    times = f"{latency.p50_ms / floor_ms:.1f}" if on_board and not found.emulated else "-"
    return [
        f"{found.network}{graph}",
        f"{found.height}x{found.width}",
        f"{latency.p50_ms:.2f}{'' if latency.stable else ' *'}",
        f"{latency.p95_ms:.2f}",
        f"{found.images_per_second:.2f}",
        f"{floor_ms:.2f}",
        times,
    ]


def _board_notes(found: Detection, facts: DeviceFacts) -> dict[str, Any]:
    clock = facts.gpu_clock
    notes: dict[str, Any] = {
        "board": f"{found.board.name}: {found.why}",
        "power mode": None if facts.power_mode is None else str(facts.power_mode),
        "GPU clock": None,
    }
    if clock is not None:
        how = "fixed" if clock.is_fixed else "follows the load"
        limits = f"{clock.min_hz / 1e6:.0f} to {clock.max_hz / 1e6:.0f} MHz"
        notes["GPU clock"] = f"{limits}, {how}; the floor is for {found.board.gpu_mhz:.0f} MHz"
    return notes
