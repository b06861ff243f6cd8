"""`trt-hspan plugin`: compile the TensorRT plugin, and say what a compiled one is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trt_hspan.cli import options
from trt_hspan.cli.output import print_report
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import argument, flag, option, refuse_options, takes_request
from trt_hspan.errors import UsageError

if TYPE_CHECKING:
    from trt_hspan.native.compatibility import CompiledCode
    from trt_hspan.native.cuda_attention import CudaLibrary
    from trt_hspan.native.plugin import PluginInfo

_RUNS = {
    "machine code": "runs, machine code",
    "ptx": "runs, PTX that the driver compiles at the first launch",
}

app = typer.Typer(
    help="Compile the TensorRT plugin; say what a compiled one is.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass(frozen=True, kw_only=True)
class PluginBuildRequest:
    output: Path | None = options.output(
        "PATH",
        "The library to write.",
        default=None,
        shown="TRT_HSPAN_PLUGIN, or build/plugin/ of a checkout, or the cache folder",
    )
    arch: tuple[str, ...] = option(
        "A compute capability to compile for, repeatable; newer GPUs are served through PTX.",
        "86",
        default=(),
        shown="75 80 86 89 90 100 120 and the GPU at hand",
    )
    nvcc: Path | None = option("The CUDA compiler.", "PROGRAM", shown="searched for")
    tensorrt_root: Path | None = option(
        "TensorRT, for its headers.", "DIR", shown="searched for, else fetched"
    )
    jobs: int | None = option(
        "Compilations at a time.",
        names=(
            "--jobs",
            "-j",
        ),
        shown="all processors",
    )
    force: bool = flag("Compile everything again.")
    cpu: bool = flag("Compile the CPU attention library instead: needs a C++ compiler, no CUDA.")
    cuda: bool = flag("Compile the GPU attention library of PyTorch instead: needs nvcc, no TensorRT.")
    json: bool = options.json()


@app.command("build")
@takes_request
def build(request: PluginBuildRequest) -> None:
    """Compile the plugin library, unless it is up to date."""
    if request.cpu and request.cuda:
        raise UsageError("--cuda", "is one library and --cpu another", "compile one after the other")
    if request.cpu:
        _build_cpu_library(request)
        return
    if request.cuda:
        _build_cuda_library(request)
        return
    from trt_hspan.native.build import build_plugin
    from trt_hspan.native.plugin import plugin_info_from_library

    with progress("compiling the plugin") as bar:
        result = build_plugin(
            request.output,
            architectures=request.arch or None,
            nvcc=request.nvcc,
            tensorrt_root=request.tensorrt_root,
            jobs=request.jobs,
            force=request.force,
            on_progress=bar.phases("compiling the plugin"),
        )
    plugin = plugin_info_from_library(result.path)
    here = _verdicts_here(plugin)
    _print(plugin, as_json=request.json, compiled=result.compiled, **({"this_machine": here} if here else {}))


def _build_cpu_library(request: PluginBuildRequest) -> None:
    refuse_options(
        {"--arch": request.arch, "--nvcc": request.nvcc, "--tensorrt-root": request.tensorrt_root},
        "is for the plugin, and --cpu compiles the CPU attention library",
    )
    from trt_hspan.native.build import build_cpu_library
    from trt_hspan.native.cpu_attention import NativeLibrary

    with progress("compiling the CPU attention library") as bar:
        result = build_cpu_library(
            request.output,
            jobs=request.jobs,
            force=request.force,
            on_progress=bar.phases("compiling the CPU attention library"),
        )
    library = NativeLibrary(result.path)
    report = {
        "path": str(library.path),
        "source_sha256": library.source_sha256,
        "instruction_sets": list(library.instruction_sets),
        "compiled": result.compiled,
    }
    sets = {"instruction_sets": ", ".join(library.instruction_sets)}
    print_report("", report, report | sets | _readable(result.compiled), as_json=request.json)


def _build_cuda_library(request: PluginBuildRequest) -> None:
    refuse_options(
        {"--tensorrt-root": request.tensorrt_root}, "is for the plugin, and --cuda needs no TensorRT"
    )
    from trt_hspan.native.build import build_cuda_library
    from trt_hspan.native.cuda_attention import CudaLibrary

    with progress("compiling the GPU attention library") as bar:
        result = build_cuda_library(
            request.output,
            architectures=request.arch or None,
            nvcc=request.nvcc,
            jobs=request.jobs,
            force=request.force,
            on_progress=bar.phases("compiling the GPU attention library"),
        )
    library = CudaLibrary(result.path)
    report = {
        "path": str(library.path),
        "source_sha256": library.source_sha256,
        "cubin_architectures": list(library.cubin_architectures),
        "ptx_architectures": list(library.ptx_architectures),
        "configurations": list(library.configurations),
        "compiled": result.compiled,
    }
    here = _verdicts_here(library.code) if library.code is not None else []
    report |= {"this_machine": here} if here else {}
    words = _architectures(library) | {"configurations": ", ".join(library.configurations)}
    print_report("", report, report | words | _readable(result.compiled, here), as_json=request.json)


@dataclass(frozen=True, kw_only=True)
class PluginInfoRequest:
    path: Path | None = argument("The library.", "PATH", default=None, shown="that of trt-hspan plugin build")
    json: bool = options.json()


@app.command("info")
@takes_request
def info(request: PluginInfoRequest) -> None:
    """Print what a plugin library is and which GPUs it serves. None of its code runs."""
    from trt_hspan.native.plugin import default_plugin_path, plugin_info_from_library

    path = default_plugin_path() if request.path is None else request.path
    _print(plugin_info_from_library(path), as_json=request.json)


def _verdicts_here(plugin: CompiledCode) -> list[str]:
    """For each GPU at hand, how the library runs on it under this driver, or the error with the way out."""
    from trt_hspan.machine.gpu import gpu_driver
    from trt_hspan.native.compatibility import error_from_verdict, verdict
    from trt_hspan.native.plugin import architecture_from_target

    driver, lines = gpu_driver(), []
    for name in dict.fromkeys(driver.architectures):
        question = (plugin, architecture_from_target(name), driver.cuda_version)
        error = error_from_verdict(*question)
        lines.append(
            f"{name}: {_RUNS[verdict(*question)]}" if error is None else f"{name}: does not run: {error}"
        )
    return lines


def _print(plugin: PluginInfo, *, as_json: bool, **more: Any) -> None:
    from trt_hspan.files import sha256_from_file

    report = asdict(plugin) | {"path": str(plugin.path), "sha256": sha256_from_file(plugin.path)} | more
    print_report("", report, report | _architectures(plugin) | _readable(**more), as_json=as_json)


def _architectures(library: PluginInfo | CudaLibrary) -> dict[str, str]:
    return {
        "cubin_architectures": ", ".join(f"sm_{number}" for number in library.cubin_architectures),
        "ptx_architectures": ", ".join(f"compute_{number}" for number in library.ptx_architectures),
    }


def _readable(compiled: bool | None = None, this_machine: list[str] | None = None) -> dict[str, str]:
    words = {} if compiled is None else {"compiled": "now" if compiled else "not needed, it was up to date"}
    return words | ({"this_machine": "\n".join(this_machine)} if this_machine else {})
