"""Builds the programs of tests/ptx: the kernels as nvcc compiles them, run instruction by instruction on this CPU.

Objects are kept in build/ptx under a hash of their source, of all that it includes, and of the compiler's options: a
source that has not changed is not compiled again, whichever folder it is in.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from tools.kernel_report.plugin_code import kernel_sources, least_architecture
from trt_hspan.errors import HspanError
from trt_hspan.files import atomic_path, locked_folder
from trt_hspan.native.toolchain import find_host_compiler, find_nvcc

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD: Final = ROOT / "build" / "ptx"
_SOURCES: Final = ROOT / "tests" / "ptx"

#: "run_cases" holds the kernels to a reference, "count" counts what they execute on given tensors; "library" is
#: libhspan_cuda.so on host memory, for ctypes.
Program = Literal["run_cases", "count", "library"]
_MAIN: Final[dict[Program, str]] = {"run_cases": "main.cpp", "count": "count.cpp"}
_ONLY_OF_CASES: Final = ("inputs.cpp", "lists.cpp", "reference.cpp", "run_case.cpp")

# -no-compress: the interpreter reads the PTX as text out of the object.
_KERNEL_OPTIONS: Final = (
    *("-std=c++17", "-O3", "-DNDEBUG", "-cudart", "none", "-no-compress"),
    *("-Xcompiler", "-fPIC,-fvisibility=hidden"),
)
_PRODUCT_OPTIONS: Final = ("-std=c++17", "-O2", "-Xcompiler", "-fPIC,-fvisibility=hidden")
# Sums and products stay apart unless the interpreter itself fuses them.
_HOST_OPTIONS: Final = (
    "-std=c++20",
    "-O3",
    "-Xcompiler",
    "-Wall,-Wextra,-Werror,-march=native,-ffp-contract=off,-fno-math-errno,-fPIC,-fvisibility=hidden",
)
# The C functions' calls of the launcher go to tests/ptx/library, which watches them.
_LAUNCH: Final = "_ZN5hspan24launchSparsemaxAttentionERKNS_16AttentionProblemEiPKvS4_S4_PvS5_P11CUstream_st"
_LIBRARY_LINK: Final = ("-shared", "-Wl,--no-undefined", f"-Wl,--wrap={_LAUNCH}")
_KEEP_SECONDS: Final = 7 * 24 * 3600
_TOOL_SECONDS: Final = 600


def missing_for_interpreter() -> str | None:
    """What this machine lacks, as a sentence; None: the interpreter can be built and run."""
    with suppress(OSError):
        flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
        if not flags >= {"avx2", "f16c", "fma"}:
            return "this processor has no AVX2, F16C and FMA"
        try:
            find_nvcc()
        except HspanError as error:
            return str(error)
        return None
    return "no /proc/cpuinfo says what this processor is"


def build_program(
    program: Program, target: int, *, replaced: Mapping[str, Path] = MappingProxyType({}), jobs: int = 2
) -> Path:
    """The program, or the shared library, with the kernels compiled to the PTX of a compute capability.

    Args:
        target: 80 is compute_80. Kernels for 8.0 and newer are compiled for 80 where it is lower.
        replaced: by the name of a kernel's source, another folder like plugins/ to take it from, and what it includes.
        jobs: compilers at a time.

    Raises:
        HspanError: nvcc is missing, or something does not compile.
    """
    nvcc = find_nvcc()
    tasks: list[tuple[Path, tuple[str, ...], tuple[Path, ...]]] = [
        (source, _HOST_OPTIONS, (_SOURCES / "interpreter", ROOT / "plugins" / "kernels"))
        for source in _host_sources(program)
    ]
    for source in _product_sources(program):
        plugins = replaced.get(source.name, ROOT / "plugins")
        options: tuple[str, ...] = _PRODUCT_OPTIONS
        if source.suffix == ".cu":
            own = max(target, least_architecture(source))
            options = (*_KERNEL_OPTIONS, f"-gencode=arch=compute_{own},code=compute_{own}")
        folders = (plugins / "device" / "cuda", plugins / "kernels")
        tasks.append((plugins / source.parent.name / source.name, options, folders))
    with locked_folder(BUILD):
        _forget_unused(BUILD)
        with ThreadPoolExecutor(jobs) as pool:
            objects = list(pool.map(lambda task: _compiled(nvcc, *task), tasks))
        name = hashlib.sha256("\n".join(path.name for path in objects).encode()).hexdigest()[:16]
        executable = BUILD / f"{program}-{target}-{name}"
        if not executable.exists():
            with atomic_path(executable) as temporary:
                link = _LIBRARY_LINK if program == "library" else ()
                _run([find_host_compiler(), *link, *objects, "-o", temporary], executable)
            executable.chmod(0o755)
        os.utime(executable)
    return executable


def _host_sources(program: Program) -> list[Path]:
    """Those of tests/ptx."""
    if program == "library":
        folders = [_SOURCES / "interpreter", _SOURCES / "library"]
        return sorted(source for folder in folders for source in folder.glob("*.cpp"))
    left_out = {name for name in _MAIN.values() if name != _MAIN[program]}
    if program == "count":
        left_out.update(_ONLY_OF_CASES)
    host = [*(_SOURCES / "interpreter").glob("*.cpp"), *(_SOURCES / "cases").glob("*.cpp")]
    return sorted(source for source in host if source.name not in left_out)


def _product_sources(program: Program) -> list[Path]:
    """Those of plugins/."""
    plugins = ROOT / "plugins"
    own = [plugins / "cuda" / "hspan_cuda.cpp"] if program == "library" else []
    return [*own, plugins / "kernels" / "sparsemax_attention.cpp", *kernel_sources(ROOT)]


def _compiled(nvcc: Path, source: Path, options: tuple[str, ...], includes: tuple[Path, ...]) -> Path:
    """The object of a source, compiled unless it is there."""
    digest = hashlib.sha256("\0".join((str(nvcc), *options)).encode())
    for path in sorted(_with_includes(source, includes), key=lambda path: path.name):
        digest.update(path.read_bytes())
    target = BUILD / f"{source.stem}-{digest.hexdigest()[:16]}.o"
    if not target.exists():
        command: list[str | Path] = [nvcc, *options, "-ccbin", find_host_compiler()]
        with atomic_path(target) as temporary:
            _run([*command, *(f"-I{folder}" for folder in includes), "-c", source, "-o", temporary], source)
    os.utime(target)
    return target


def _with_includes(source: Path, folders: tuple[Path, ...]) -> set[Path]:
    """A source and the files of these folders that it includes, directly or not."""
    files, pending = {source}, [source]
    while pending:
        current = pending.pop()
        for name in re.findall(r'^#include [<"]([^>"]+)[>"]', current.read_text(), re.MULTILINE):
            for folder in (current.parent, *folders):
                if (path := folder / name).is_file():
                    if path not in files:
                        files.add(path)
                        pending.append(path)
                    break
    return files


def _run(command: list[str | Path], where: Path) -> None:
    process = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=False)
    if process.returncode != 0:
        lines = (process.stderr + process.stdout).splitlines()
        first = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise HspanError(where, f"does not compile: {first}", None)


def _forget_unused(folder: Path) -> None:
    """Deletes what no build of the last days has used: objects of earlier sources."""
    for path in folder.iterdir():
        if path.name != ".lock" and path.stat().st_mtime < time.time() - _KEEP_SECONDS:
            path.unlink()
