"""`trt-hspan plugin`: compile the TensorRT plugin, and tell what a compiled one is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_hspan.errors import UsageError

if TYPE_CHECKING:
    from trt_hspan.native.plugin import PluginInfo
    from trt_hspan.native.progress import BuildProgress

app = typer.Typer(
    help="Compile the TensorRT plugin; tell what a compiled one is.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("build")
def build(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The library to write.",
            show_default="TRT_HSPAN_PLUGIN, or build/plugin/ of a checkout, or the cache folder",
        ),
    ] = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="86",
            help="A compute capability to compile for, repeatable; newer GPUs are served through PTX.",
            show_default="75 80 86 89 120 and the GPU at hand",
        ),
    ] = None,
    nvcc: Annotated[
        Path | None,
        typer.Option(metavar="PROGRAM", help="The CUDA compiler.", show_default="searched for"),
    ] = None,
    tensorrt_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="TensorRT, for its headers.", show_default="searched for, else fetched"
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", help="Compilations at a time.", show_default="all processors"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compile everything again.")] = False,
    cpu: Annotated[
        bool,
        typer.Option(
            "--cpu", help="Compile the CPU attention library instead: needs a C++ compiler, no CUDA."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what the library is as JSON.")] = False,
) -> None:
    """Compile the plugin library, unless it is up to date."""
    if cpu:
        if arch or nvcc is not None or tensorrt_root is not None:
            raise UsageError(
                "--cpu", "needs no GPU architecture, nvcc or TensorRT", "leave those options out"
            )
        _build_cpu_library(output, jobs=jobs, force=force, as_json=json)
        return
    from trt_hspan.native.build import build_plugin
    from trt_hspan.native.plugin import plugin_info_from_library

    with _compile_progress("the plugin") as on_progress:
        result = build_plugin(
            output,
            architectures=arch,
            nvcc=nvcc,
            tensorrt_root=tensorrt_root,
            jobs=jobs,
            force=force,
            on_progress=on_progress,
        )
    _print(plugin_info_from_library(result.path), as_json=json, compiled=result.compiled)


@contextmanager
def _compile_progress(name: str) -> Iterator[Callable[[BuildProgress], None]]:
    from trt_hspan.cli.progress import progress

    with progress(f"compiling {name}", total=1.0) as bar:
        yield lambda state: bar.update(
            bar.task_ids[0], completed=state.fraction, description=f"compiling {name}: {state.phase}"
        )


def _build_cpu_library(output: Path | None, *, jobs: int | None, force: bool, as_json: bool) -> None:
    from trt_hspan.cli.output import print_json, print_table
    from trt_hspan.native.build import build_cpu_library
    from trt_hspan.native.cpu_attention import NativeLibrary

    with _compile_progress("the CPU attention library") as on_progress:
        result = build_cpu_library(output, jobs=jobs, force=force, on_progress=on_progress)
    library = NativeLibrary(result.path)
    report = {
        "path": str(library.path),
        "source_sha256": library.source_sha256,
        "instruction_sets": list(library.instruction_sets),
        "compiled": result.compiled,
    }
    if as_json:
        print_json(report)
        return
    report["instruction_sets"] = ", ".join(library.instruction_sets)
    report["compiled"] = "now" if result.compiled else "not needed, it was up to date"
    print_table("", report)


@app.command("info")
def info(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="PATH", help="The library.", show_default="that of trt-hspan plugin build"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what a plugin library is and which GPUs it serves. None of its code runs."""
    from trt_hspan.native.plugin import default_plugin_path, plugin_info_from_library

    _print(plugin_info_from_library(path if path is not None else default_plugin_path()), as_json=json)


def _print(plugin: PluginInfo, *, as_json: bool, **more: bool) -> None:
    from dataclasses import asdict

    from trt_hspan.cli.output import print_json, print_table
    from trt_hspan.files import sha256_from_file

    report = asdict(plugin) | {"path": str(plugin.path), "sha256": sha256_from_file(plugin.path)} | more
    if as_json:
        print_json(report)
        return
    report["cubin_architectures"] = ", ".join(f"sm_{number}" for number in plugin.cubin_architectures)
    report["ptx_architectures"] = ", ".join(f"compute_{number}" for number in plugin.ptx_architectures)
    if "compiled" in more:
        report["compiled"] = "now" if more["compiled"] else "not needed, it was up to date"
    print_table("", report)
