"""The kernels, compiled and read: registers, spills and shared memory from `ptxas -v`, threads per block from the PTX.

The disassembly is read by `plugin_loops`; the occupancy that follows is computed by `plugin_occupancy`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from tools.kernel_report.plugin_loops import (
    Loop,
    functions_from_sass,
    main_loop_from_sass,
    opcode_counts,
    product_loops_from_sass,
)
from tools.kernel_report.plugin_occupancy import Occupancy, occupancy
from trt_hspan.errors import HspanError
from trt_hspan.native.toolchain import (
    find_host_compiler,
    find_nvcc,
    supported_architectures,
)

#: Everything between Turing and Blackwell that the project compiles for.
ALL_ARCHITECTURES: Final = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)

#: How machine code comes about, see `inspect_kernels`.
Compilation = Literal["plugin", "direct", "both"]

_LEAST: Final = 75
_TOOL_SECONDS: Final = 600
_WARNINGS: Final = ("-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What ptxas says of one kernel; sizes in bytes, registers of one thread."""

    registers: int
    spill_stores_bytes: int
    spill_loads_bytes: int
    stack_bytes: int
    shared_bytes: int


@dataclass(frozen=True, kw_only=True)
class KernelCode:
    """One kernel on one architecture.

    Attributes:
        source: file name of the kernel's source.
        kernel: its name with template arguments, where c++filt gives it.
        architecture: compute capability, 86 being 8.6.
        ptx_architecture: whose PTX was assembled for it; the same where it was compiled for `architecture` directly.
        threads: of a block.
        instructions, matrix: of the whole kernel; of them, on tensor cores.
        main_loop: the innermost loop with the most products; None for a kernel without a loop that multiplies.
        product_loops: all loops that multiply, in the order of the code.
    """

    source: str
    kernel: str
    architecture: int
    ptx_architecture: int
    threads: int
    resources: Resources
    occupancy: Occupancy
    instructions: int
    matrix: int
    main_loop: Loop | None
    product_loops: tuple[Loop, ...]


class _Task(NamedTuple):
    source: Path
    architecture: int
    ptx_architecture: int


def kernel_sources(folder: Path) -> list[Path]:
    """The CUDA sources under `folder`/plugins/kernels, by name."""
    return sorted((folder / "plugins" / "kernels").glob("*.cu"))


def least_architecture(source: Path) -> int:
    """The lowest compute capability that a source is for: the number in `name_sm80.cu`, else 75."""
    match = re.search(r"_sm(\d+)$", source.stem)
    return int(match[1]) if match else _LEAST


def inspect_kernels(
    folder: Path,
    *,
    architectures: Iterable[int] | None = None,
    compilation: Compilation = "plugin",
    nvcc: str | os.PathLike[str] | None = None,
    disassembler: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    on_progress: Callable[[float, str], None] | None = None,
) -> list[KernelCode]:
    """Translates every kernel source for every architecture it is for, and reads what came out.

    All warnings are errors.

    Args:
        folder: contains plugins/kernels and plugins/device.
        architectures: compute capabilities; None is ALL_ARCHITECTURES as far as the compiler has them.
        compilation: "plugin": a source is translated to PTX once, for the least architecture it is for, and assembled
            for each of the others, as in the plugin. "direct": it is compiled for each architecture by itself, as
            `nvcc -arch=sm_86` does, which can end at other registers. "both": one after the other, where they differ.
        nvcc, disassembler: the programs; None searches, see `find_nvcc` and `find_disassembler`.
        jobs: compilers at a time.
        on_progress: called with the finished fraction and the work at hand.

    Raises:
        HspanError: a program is missing, a source does not compile, or an architecture is unknown to the compiler.
    """
    compiler = find_nvcc(nvcc)
    nvdisasm = find_disassembler(disassembler)
    supported = supported_architectures(compiler)
    requested = (
        [each for each in ALL_ARCHITECTURES if each in supported]
        if architectures is None
        else [*architectures]
    )
    if unknown := [each for each in requested if each not in supported]:
        raise HspanError(
            compiler, f"cannot compile for sm_{unknown[0]}", "choose among " + ", ".join(map(str, supported))
        )
    report = on_progress or (lambda _fraction, _what: None)
    sources = kernel_sources(folder)
    if not sources:
        raise HspanError(folder, "contains no kernel sources", "name a checkout of this project")
    tasks = [
        _Task(source, architecture, ptx_architecture)
        for source in sources
        for architecture in requested
        if architecture >= (least := least_architecture(source))
        for ptx_architecture in {"plugin": [least], "direct": [architecture], "both": [least, architecture]}[
            compilation
        ]
    ]
    tasks = list(dict.fromkeys(tasks))
    with tempfile.TemporaryDirectory(prefix="trt-hspan-kernels-") as name, ThreadPoolExecutor(jobs) as pool:
        translations = {
            translation: pool.submit(_ptx_from_source, compiler, folder, *translation, Path(name))
            for translation in dict.fromkeys((task.source, task.ptx_architecture) for task in tasks)
        }

        def inspect(task: _Task) -> list[KernelCode]:
            ptx = translations[task.source, task.ptx_architecture].result()
            return list(_kernels_from_ptx(compiler, nvdisasm, ptx, task))

        inspections = [pool.submit(inspect, task) for task in tasks]
        finished, total = 0, len(translations) + len(tasks)
        report(0.0, "to PTX")
        try:
            for (source, architecture), translation in translations.items():
                translation.result()
                finished += 1
                report(finished / total, f"{source.name} to PTX for sm_{architecture}")
            kernels: list[KernelCode] = []
            for task, inspection in zip(tasks, inspections, strict=True):
                kernels += inspection.result()
                finished += 1
                report(finished / total, f"{task.source.name} for sm_{task.architecture}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return kernels


def find_disassembler(named: str | os.PathLike[str] | None = None) -> Path:
    """nvdisasm: the one named, on PATH, of the CUDA toolkit beside nvcc, of the wheel nvidia-cuda-nvdisasm.

    Raises:
        HspanError: there is none, or not where one was named.
    """
    if named is not None:
        if (program := shutil.which(os.fspath(named))) is None:
            raise HspanError("--nvdisasm", f"{named} is no program", "name the program nvdisasm itself")
        return Path(program)
    candidates: list[str | Path | None] = [shutil.which("nvdisasm")]
    with contextlib.suppress(HspanError):
        candidates.append(programs_folder(find_nvcc()) / "nvdisasm")
    for site in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        candidates += sorted(Path(site).glob("nvidia/cu[0-9]*/bin/nvdisasm"), reverse=True)
    for candidate in candidates:
        if candidate is not None and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise HspanError("nvdisasm", "not found", "install it: pip install nvidia-cuda-nvdisasm")


def programs_folder(nvcc: Path) -> Path:
    """The folder of the CUDA toolkit's programs, ptxas among them; `nvcc` may be a script that calls the real one."""
    match = re.search(r"_HERE_=(.*)", _outputs([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull]))
    return Path(match[1].strip()) if match else nvcc.resolve().parent


def _outputs(command: list[str | Path]) -> str:
    """Both outputs of a program, whatever its exit code; empty when it does not run."""
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return process.stdout + process.stderr


def resources_from_ptxas(text: str) -> dict[str, Resources]:
    """What `ptxas -v` wrote, by mangled kernel name."""
    resources: dict[str, Resources] = {}
    for part in re.split(r"(?=Compiling entry function ')", text)[1:]:
        name = re.match(r"Compiling entry function '([^']+)'", part)
        used = re.search(r"Used (\d+) registers", part)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        if name is None or used is None or frame is None:
            raise HspanError("ptxas", "its report reads differently here", "use CUDA 12.4 to 13")
        shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", part)
        resources[name[1]] = Resources(
            registers=int(used[1]),
            stack_bytes=int(frame[1]),
            spill_stores_bytes=int(frame[2]),
            spill_loads_bytes=int(frame[3]),
            shared_bytes=int(shared[1]) if shared else 0,
        )
    return resources


def threads_from_ptx(text: str) -> dict[str, int]:
    """Threads per block by mangled kernel name: the launch bounds."""
    pattern = r"\.entry\s+(\w+)\([^)]*\)\s*\.maxntid\s+(\d+)(?:,\s*(\d+),\s*(\d+))?"
    return {
        match[1]: int(match[2]) * int(match[3] or 1) * int(match[4] or 1)
        for match in re.finditer(pattern, text, re.DOTALL)
    }


def _ptx_from_source(nvcc: Path, folder: Path, source: Path, architecture: int, scratch: Path) -> Path:
    output = scratch / f"{source.stem}_{architecture}.ptx"
    command: list[str | Path] = [nvcc, "--ptx", "-std=c++17", "-O3", "-DNDEBUG", *_WARNINGS]
    command += ["-ccbin", find_host_compiler(), "-I", folder / "plugins" / "device" / "cuda"]
    command += [f"-arch=compute_{architecture}", "-o", output, source]
    _run(command, source)
    return output


def _kernels_from_ptx(nvcc: Path, nvdisasm: Path, ptx: Path, task: _Task) -> Iterator[KernelCode]:
    cubin = ptx.with_name(f"{ptx.stem}_{task.architecture}.cubin")
    ptxas = programs_folder(nvcc) / "ptxas"
    command: list[str | Path] = [ptxas, "-v", "-O3", f"--gpu-name=sm_{task.architecture}", "-o", cubin, ptx]
    resources = resources_from_ptxas(_run(command, task.source))
    threads = threads_from_ptx(ptx.read_text())
    functions = functions_from_sass(_run([nvdisasm, "-c", cubin], task.source))
    cubin.unlink()
    for mangled, used in resources.items():
        instructions, matrix, _ = opcode_counts(functions[mangled])
        yield KernelCode(
            source=task.source.name,
            kernel=demangled(mangled),
            architecture=task.architecture,
            ptx_architecture=task.ptx_architecture,
            threads=threads[mangled],
            resources=used,
            occupancy=occupancy(
                task.architecture,
                threads=threads[mangled],
                registers=used.registers,
                shared_bytes=used.shared_bytes,
            ),
            instructions=instructions,
            matrix=matrix,
            main_loop=main_loop_from_sass(functions[mangled]),
            product_loops=product_loops_from_sass(functions[mangled]),
        )


def demangled(name: str) -> str:
    """A kernel's name with its template arguments, without namespaces; the name as it is where c++filt is missing."""
    if (program := shutil.which("c++filt")) is None:
        return name
    text = _run([program, "-p", name], name).strip()
    return re.sub(r"\b\w+::|\((?:int|unsigned int|bool)\)", "", text)


def _run(command: list[str | Path], where: object) -> str:
    """Both outputs of a program that must succeed."""
    try:
        completed = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TOOL_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HspanError(command[0], f"does not run: {error}", "install it again") from error
    text = completed.stdout + completed.stderr
    if completed.returncode != 0:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        reason = next(
            (line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)), lines[-1:] or ""
        )
        raise HspanError(where, f"{Path(command[0]).name} fails: {reason}", None)
    return text
