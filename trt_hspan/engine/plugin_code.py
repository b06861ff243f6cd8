"""The machine code of the kernels, as the compiler reports it and as it can be read. Runs nothing on a GPU.

Owns translating our own kernel sources and reading what came out: registers, spills and shared memory out of
`ptxas -v`, threads per block out of the PTX, loops and instructions out of the disassembly. What occupancy follows from
that is plugin_occupancy's.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trt_hspan.engine.plugin_occupancy import Occupancy, occupancy
from trt_hspan.engine.plugin_toolchain import (
    find_host_compiler,
    find_nvcc,
    programs_folder,
    supported_architectures,
)
from trt_hspan.errors import HspanError

#: Everything between Turing and Blackwell that the project compiles for.
ALL_ARCHITECTURES: Final = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)

#: The instructions that a loop is about: matrix products on tensor cores, else fused multiply-adds.
_MATRIX: Final = ("HMMA", "HGMMA", "QGMMA", "UTCHMMA")
_SCALAR: Final = ("FFMA", "FFMA2")

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
class MainLoop:
    """The innermost loop with the most arithmetic of the kernel's kind.

    Attributes:
        instructions: in one turn of the loop, as the code stands.
        matrix: of them, products on tensor cores (HMMA).
        scalar: of them, FP32 fused multiply-adds.
    """

    instructions: int
    matrix: int
    scalar: int

    @property
    def matrix_share(self) -> float:
        """Share of tensor core instructions, 0..1."""
        return self.matrix / self.instructions

    @property
    def scalar_share(self) -> float:
        """Share of FP32 multiply-adds, 0..1."""
        return self.scalar / self.instructions


@dataclass(frozen=True, kw_only=True)
class KernelCode:
    """One kernel on one architecture.

    Attributes:
        source: file name of the kernel's source.
        kernel: its name with template arguments, where c++filt could tell it.
        architecture: compute capability, 86 being 8.6.
        threads: of a block.
        instructions, matrix: of the whole kernel; of them, on tensor cores.
        main_loop: None for a kernel without a loop that multiplies.
    """

    source: str
    kernel: str
    architecture: int
    threads: int
    resources: Resources
    occupancy: Occupancy
    instructions: int
    matrix: int
    main_loop: MainLoop | None


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
    nvcc: str | os.PathLike[str] | None = None,
    disassembler: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    on_progress: Callable[[float, str], None] | None = None,
) -> list[KernelCode]:
    """Translates every kernel source for every architecture it is for, and reads what came out.

    As in the plugin, a source is translated to PTX once, for the least architecture it is for, and assembled for each
    of the others. All warnings are errors.

    Args:
        folder: holds plugins/kernels and plugins/device.
        architectures: compute capabilities; None is ALL_ARCHITECTURES as far as the compiler knows them.
        nvcc, disassembler: the programs; None searches, see `find_nvcc` and `find_disassembler`.
        jobs: compilers at a time.
        on_progress: told the finished fraction and what is at work.

    Raises:
        HspanError: a program is missing, a source does not compile, or an architecture is unknown to the compiler.
    """
    compiler = find_nvcc(nvcc)
    nvdisasm = find_disassembler(disassembler)
    known = supported_architectures(compiler)
    wanted = (
        [each for each in ALL_ARCHITECTURES if each in known] if architectures is None else [*architectures]
    )
    if unknown := [each for each in wanted if each not in known]:
        raise HspanError(
            compiler, f"cannot compile for sm_{unknown[0]}", "choose among " + ", ".join(map(str, known))
        )
    tell = on_progress or (lambda _fraction, _what: None)
    sources = kernel_sources(folder)
    if not sources:
        raise HspanError(folder, "holds no kernel sources", "name a checkout of this project")
    tasks = [(s, a) for s in sources for a in wanted if a >= least_architecture(s)]
    done = 0
    found: dict[tuple[Path, int], list[KernelCode]] = {}
    with tempfile.TemporaryDirectory(prefix="trt-hspan-kernels-") as name, ThreadPoolExecutor(jobs) as pool:
        scratch = Path(name)
        tell(0.0, "to PTX")
        ptx = dict(
            zip(
                sources,
                pool.map(lambda s: _ptx_from_source(compiler, folder, s, scratch), sources),
                strict=True,
            )
        )

        def inspect(task: tuple[Path, int]) -> list[KernelCode]:
            return list(_kernels_from_ptx(compiler, nvdisasm, ptx[task[0]], *task))

        for task, kernels in zip(tasks, pool.map(inspect, tasks), strict=True):
            found[task] = kernels
            done += 1
            tell(done / len(tasks), f"{task[0].name} for sm_{task[1]}")
    return [kernel for task in tasks for kernel in found[task]]


def find_disassembler(named: str | os.PathLike[str] | None = None) -> Path:
    """nvdisasm: the one named, on PATH, of the CUDA toolkit beside nvcc, of the wheel nvidia-cuda-nvdisasm.

    Raises:
        HspanError: there is none, or not where one was named.
    """
    if named is not None:
        if (found := shutil.which(os.fspath(named))) is None:
            raise HspanError("--nvdisasm", f"{named} is no program", "name the program nvdisasm itself")
        return Path(found)
    candidates: list[str | Path | None] = [shutil.which("nvdisasm")]
    with contextlib.suppress(HspanError):
        candidates.append(programs_folder(find_nvcc()) / "nvdisasm")
    for site in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        candidates += sorted(Path(site).glob("nvidia/cu[0-9]*/bin/nvdisasm"), reverse=True)
    for candidate in candidates:
        if candidate is not None and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise HspanError("nvdisasm", "not found", "install it: pip install nvidia-cuda-nvdisasm")


def resources_from_ptxas(text: str) -> dict[str, Resources]:
    """What `ptxas -v` wrote, by mangled kernel name."""
    found: dict[str, Resources] = {}
    for part in re.split(r"(?=Compiling entry function ')", text)[1:]:
        name = re.match(r"Compiling entry function '([^']+)'", part)
        used = re.search(r"Used (\d+) registers", part)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        if name is None or used is None or frame is None:
            raise HspanError("ptxas", "its report reads differently here", "use CUDA 12.4 to 13")
        shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", part)
        found[name[1]] = Resources(
            registers=int(used[1]),
            stack_bytes=int(frame[1]),
            spill_stores_bytes=int(frame[2]),
            spill_loads_bytes=int(frame[3]),
            shared_bytes=int(shared[1]) if shared else 0,
        )
    return found


def threads_from_ptx(text: str) -> dict[str, int]:
    """Threads per block by mangled kernel name: the launch bounds."""
    pattern = r"\.entry\s+(\w+)\([^)]*\)\s*\.maxntid\s+(\d+)(?:,\s*(\d+),\s*(\d+))?"
    return {
        match[1]: int(match[2]) * int(match[3] or 1) * int(match[4] or 1)
        for match in re.finditer(pattern, text, re.DOTALL)
    }


def functions_from_sass(text: str) -> dict[str, list[str]]:
    """Lines of each kernel in nvdisasm's output: opcodes with their operands, and labels such as ".L_x_1:"."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        if section := re.match(r"\s*\.section\s+([^,\s]+)", line):
            name = section[1].strip('"')
            current = found.setdefault(name[6:], []) if name.startswith(".text.") else None
        elif current is not None:
            if label := re.match(r"\s*(\.L_\w+):", line):
                current.append(f"{label[1]}:")
            elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
                current.append(instruction[1])
    return found


def main_loop_from_sass(lines: list[str]) -> MainLoop | None:
    """The main loop of one function of `functions_from_sass`.

    A loop is what lies between a label and the last branch back to it; an innermost one holds no other. Of those the
    main loop has the most instructions on tensor cores, and if none has any, the most FP32 multiply-adds.
    """
    position = {line[:-1]: index for index, line in enumerate(lines) if line.endswith(":")}
    last: dict[int, int] = {}
    for index, line in enumerate(lines):
        target = re.search(r"\bBRA\S*\s.*`\((\.L_\w+)\)", line)
        if target and target[1] in position and position[target[1]] < index:
            last[position[target[1]]] = index
    loops = list(last.items())
    innermost = [
        (start, end)
        for start, end in loops
        if not any((s, e) != (start, end) and s >= start and e <= end for s, e in loops)
    ]
    counted = []
    for start, end in innermost:
        opcodes = Counter(_opcodes(lines[start : end + 1]))
        total = sum(opcodes.values())
        loop = MainLoop(instructions=total, matrix=_count(opcodes, _MATRIX), scalar=_count(opcodes, _SCALAR))
        counted.append(loop)
    best = max(counted, key=lambda loop: (loop.matrix, loop.scalar), default=None)
    return best if best is not None and (best.matrix or best.scalar) else None


def _opcodes(lines: Iterable[str]) -> Iterator[str]:
    """Base names: "@!P0 HMMA.16816.F32 R4, ..." is HMMA."""
    for line in lines:
        if not line.endswith(":"):
            opcode = re.sub(r"^@!?U?P\w+\s+", "", line).split()[0].split(".")[0]
            if opcode != "NOP":  # padding behind the code
                yield opcode


def _count(opcodes: Counter[str], names: tuple[str, ...]) -> int:
    return sum(opcodes[name] for name in names)


def _ptx_from_source(nvcc: Path, folder: Path, source: Path, scratch: Path) -> Path:
    output = scratch / f"{source.stem}.ptx"
    command: list[str | Path] = [nvcc, "--ptx", "-std=c++17", "-O3", "-DNDEBUG", *_WARNINGS]
    command += ["-ccbin", find_host_compiler(), "-I", folder / "plugins" / "device" / "cuda"]
    command += [f"-arch=compute_{least_architecture(source)}", "-o", output, source]
    _run(command, source)
    return output


def _kernels_from_ptx(
    nvcc: Path, nvdisasm: Path, ptx: Path, source: Path, architecture: int
) -> Iterator[KernelCode]:
    cubin = ptx.with_name(f"{ptx.stem}_{architecture}.cubin")
    ptxas = programs_folder(nvcc) / "ptxas"
    assembled = _run([ptxas, "-v", "-O3", f"--gpu-name=sm_{architecture}", "-o", cubin, ptx], source)
    resources = resources_from_ptxas(assembled)
    threads = threads_from_ptx(ptx.read_text())
    functions = functions_from_sass(_run([nvdisasm, "-c", cubin], source))
    cubin.unlink()
    for mangled, used in resources.items():
        opcodes = Counter(_opcodes(functions[mangled]))
        yield KernelCode(
            source=source.name,
            kernel=_demangled(mangled),
            architecture=architecture,
            threads=threads[mangled],
            resources=used,
            occupancy=occupancy(
                architecture,
                threads=threads[mangled],
                registers=used.registers,
                shared_bytes=used.shared_bytes,
            ),
            instructions=sum(opcodes.values()),
            matrix=_count(opcodes, _MATRIX),
            main_loop=main_loop_from_sass(functions[mangled]),
        )


def _demangled(name: str) -> str:
    if (program := shutil.which("c++filt")) is None:
        return name
    text = _run([program, "-p", name], name).strip()
    return re.sub(r"\b\w+::|\((?:int|unsigned int|bool)\)", "", text)


def _run(command: list[str | Path], where: object) -> str:
    """Both outputs of a program that must succeed."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TOOL_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HspanError(command[0], f"does not run: {error}", "install it again") from error
    text = done.stdout + done.stderr
    if done.returncode != 0:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        told = next(
            (line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)), lines[-1:] or ""
        )
        raise HspanError(where, f"{Path(command[0]).name} fails: {told}", None)
    return text
