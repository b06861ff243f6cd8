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

_RUNS = {
    "machine code": "runs, machine code",
    "ptx": "runs, PTX that the driver compiles at the first launch",
}

app = typer.Typer(
    help="Compile the TensorRT plugin; say what a compiled one is.",
    no_args_is_help=True,
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
    jobs: int | None = option("Compilations at a time.", names=("--jobs", "-j"), shown="all processors")
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
    of_gpus: dict[str, object] = {"--arch": request.arch, "--nvcc": request.nvcc}
    of_plugin: dict[str, object] = {"--tensorrt-root": request.tensorrt_root}
    from trt_hspan.native import build as native

    compiled, what, described = native.build_plugin, "the plugin", _described_plugin
    if request.cpu:
        refuse_options(of_gpus | of_plugin, "is for the plugin, and --cpu compiles the CPU attention library")
        compiled, what, described = (
            native.build_cpu_library,
            "the CPU attention library",
            _described_cpu_library,
        )
    elif request.cuda:
        refuse_options(of_plugin, "is for the plugin, and --cuda needs no TensorRT")
        compiled, what, described = (
            native.build_cuda_library,
            "the GPU attention library",
            _described_cuda_library,
        )
    with progress(f"compiling {what}") as bar:
        result = compiled(
            request.output,
            architectures=request.arch or None,
            nvcc=request.nvcc,
            tensorrt_root=request.tensorrt_root,
            jobs=request.jobs,
            force=request.force,
            on_progress=bar.phases(f"compiling {what}"),
        )
    report, code = described(result.path)
    report["compiled"] = result.compiled
    if code is not None and (here := _verdicts_here(code)):
        report["this_machine"] = here
    _print(report, as_json=request.json)


def _described_plugin(path: Path) -> tuple[dict[str, Any], CompiledCode | None]:
    from trt_hspan.files import sha256_from_file
    from trt_hspan.native.plugin import plugin_info_from_library

    plugin = plugin_info_from_library(path)
    return asdict(plugin) | {"path": str(path), "sha256": sha256_from_file(path)}, plugin


def _described_cpu_library(path: Path) -> tuple[dict[str, Any], CompiledCode | None]:
    from trt_hspan.native.cpu_attention import NativeLibrary

    library = NativeLibrary(path)
    return _fields(library, "source_sha256", "instruction_sets"), None


def _described_cuda_library(path: Path) -> tuple[dict[str, Any], CompiledCode | None]:
    from trt_hspan.native.cuda_attention import CudaLibrary

    library = CudaLibrary(path)
    names = ("source_sha256", "cubin_architectures", "ptx_architectures", "configurations")
    return _fields(library, *names), library.code


def _fields(library: Any, *names: str) -> dict[str, Any]:
    return {"path": str(library.path)} | {name: getattr(library, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class PluginInfoRequest:
    path: Path | None = argument("The library.", "PATH", default=None, shown="that of trt-hspan plugin build")
    json: bool = options.json()


@app.command("info")
@takes_request
def info(request: PluginInfoRequest) -> None:
    """Print what a plugin library is and which GPUs it serves. None of its code runs."""
    from trt_hspan.native.plugin import default_plugin_path

    report, _ = _described_plugin(default_plugin_path() if request.path is None else request.path)
    _print(report, as_json=request.json)


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


def _print(report: dict[str, Any], *, as_json: bool) -> None:
    rows = {name: _words(name, value) for name, value in report.items()}
    print_report("", report, rows, as_json=as_json)


def _words(name: str, value: Any) -> Any:
    if name == "compiled":
        return "now" if value else "not needed, it was up to date"
    if not isinstance(value, (list, tuple)):
        return value
    prefix = {"cubin_architectures": "sm_", "ptx_architectures": "compute_"}.get(name, "")
    return ("\n" if name == "this_machine" else ", ").join(f"{prefix}{item}" for item in value)
