"""What it takes to compile the libraries: CMake, a C++ compiler, nvcc, TensorRT's headers, fetched if need be."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trt_hspan.downloads import unpack_pinned_wheel
from trt_hspan.errors import HspanError
from trt_hspan.files import cache_folder, error_from_os_error
from trt_hspan.machine.install_advice import install_command
from trt_hspan.native.compatibility import OLDEST_CUDA, dotted

#: NVIDIA's Apache-2.0 headers of TensorRT 10.14, as one wheel on the Python package index carries them.
HEADER_WHEEL: Final = "kernel-lens==2.0.1"
HEADER_WHEEL_SHA256: Final = "07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0"

OLDEST_CMAKE: Final = (3, 22)
_SYSTEM_NVCC: Final = "/usr/local/cuda/bin/nvcc"
_SYSTEM_PREFIXES: Final = ("/usr", "/usr/local", "/usr/local/tensorrt", "/opt/tensorrt")
_ROOT_VARIABLE: Final = "TensorRT_ROOT"  # CMake's spelling

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """Programs and folders of one build; every path exists.

    Attributes:
        library_path: folder of libcudart_static.a where nvcc does not find it itself (Python wheels), else None.
        host_compiler: the C++ compiler that nvcc calls.
        headers: the folder that contains NvInferRuntime.h; None where TensorRT is not needed.
    """

    nvcc: Path
    cuda_version: str
    library_path: Path | None
    host_compiler: Path
    cmake: Path
    headers: Path | None


def find_toolchain(
    *,
    nvcc: str | os.PathLike[str] | None = None,
    tensorrt_root: str | os.PathLike[str] | None = None,
    for_tensorrt: bool = True,
) -> Toolchain:
    """Everything a build needs. Raises HspanError: something is missing or too old; says what to install."""
    compiler = find_nvcc(nvcc)
    version = _checked_cuda_version(compiler)
    return Toolchain(
        nvcc=compiler,
        cuda_version=version,
        library_path=_wheel_library_path(compiler),
        host_compiler=find_host_compiler(),
        cmake=find_cmake(),
        headers=find_tensorrt_headers(tensorrt_root) if for_tensorrt else None,
    )


def find_nvcc(named: str | os.PathLike[str] | None = None) -> Path:
    """The CUDA compiler: the one named, CUDACXX, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda, Python wheels.

    A compiler that was named, by option or environment, is used or is an error: never silently another one.
    """
    for source, place in (
        ("--nvcc", named),
        ("CUDACXX", os.environ.get("CUDACXX")),
        ("CUDA_HOME", _nvcc_in(os.environ.get("CUDA_HOME"))),
        ("CUDA_PATH", _nvcc_in(os.environ.get("CUDA_PATH"))),
    ):
        if place:
            program = shutil.which(os.fspath(place))
            if program is None:
                raise HspanError(source, f"{place} is no CUDA compiler", "name the program nvcc itself")
            return Path(program).absolute()
    for candidate in (shutil.which("nvcc"), _SYSTEM_NVCC, *_wheel_nvccs()):
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate).absolute()
    raise HspanError(
        "nvcc", "no CUDA compiler found", f"install the CUDA toolkit, or {install_command('nvcc')}"
    )


def find_host_compiler() -> Path:
    """The C++ compiler: CXX, else c++, g++ or clang++ on PATH. Raises: HspanError when there is none."""
    named = os.environ.get("CXX")
    for candidate in (named,) if named else ("c++", "g++", "clang++"):
        if program := shutil.which(candidate):
            return Path(program)
    what = f"CXX names {named}, which is no program" if named else "no C++ compiler found"
    raise HspanError("C++ compiler", what, "install one: apt install g++")


def find_cmake() -> Path:
    """CMake on PATH or beside this Python. Raises: HspanError when there is none or only an old one."""
    cmake = _program("cmake")
    if cmake is None:
        raise HspanError("cmake", "not found", "install it: pip install cmake, or apt install cmake")
    match = re.search(r"(\d+)\.(\d+)", _output([cmake, "--version"]))
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < OLDEST_CMAKE:
        raise HspanError(cmake, f"is version {dotted(version)}, 3.22 or newer is needed", "pip install cmake")
    return cmake


def generator_options() -> list[str]:
    """CMake's options for ninja, on PATH or beside this Python; none where make is to be used."""
    ninja = _program("ninja")
    return [] if ninja is None else ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]


def find_tensorrt_headers(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder of NvInferRuntime.h: under `root` or TensorRT_ROOT, else in the system, else fetched once."""
    for source, place in (("--tensorrt-root", root), ("TensorRT_ROOT", os.environ.get(_ROOT_VARIABLE))):
        if place:
            for folder in _include_folders(Path(place)):
                if _has_headers(folder):
                    return folder.absolute()
            raise HspanError(
                source, f"{place} contains no NvInferRuntime.h", "name the folder TensorRT was unpacked to"
            )
    for prefix in _SYSTEM_PREFIXES:
        for folder in _include_folders(Path(prefix)):
            if _has_headers(folder):
                return folder
    return _fetched_headers()


def supported_architectures(nvcc: Path) -> tuple[int, ...]:
    """The compute capabilities the compiler makes code for, ascending: 86 is 8.6."""
    return tuple(
        sorted({int(number) for number in re.findall(r"compute_(\d+)\b", _output([nvcc, "--list-gpu-arch"]))})
    )


def _nvcc_in(home: str | None) -> str | None:
    return str(Path(home) / "bin" / "nvcc") if home else None


def _wheel_nvccs() -> Iterator[str]:
    """The compiler inside NVIDIA's Python wheels: nvidia/cu13/bin since CUDA 13, nvidia/cuda_nvcc/bin before."""
    for site in dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path]):
        nvidia = Path(site) / "nvidia"
        yield from map(str, sorted(nvidia.glob("cu[0-9]*/bin/nvcc"), reverse=True))


def _wheel_library_path(nvcc: Path) -> Path | None:
    """Wheels have `lib` where nvcc's own settings say `lib64`."""
    root = nvcc.resolve().parent.parent
    library_path = root / "lib"
    needed = not (root / "lib64").exists() and (library_path / "libcudart_static.a").is_file()
    return library_path if needed else None


def _checked_cuda_version(nvcc: Path) -> str:
    match = re.search(r"release (\d+)\.(\d+)", _output([nvcc, "--version"]))
    if match is None:
        raise HspanError(nvcc, "does not say which CUDA version it is", "name another compiler by --nvcc")
    version = (int(match[1]), int(match[2]))
    if version < OLDEST_CUDA:
        raise HspanError(
            nvcc, f"is CUDA {dotted(version)}, 12.4 or newer is needed", "install a newer CUDA toolkit"
        )
    return dotted(version)


def _program(name: str) -> Path | None:
    path = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    return Path(path) if path else None


def _include_folders(prefix: Path) -> Iterator[Path]:
    multiarch = sysconfig.get_config_var("MULTIARCH")
    yield prefix
    yield prefix / "include"
    yield prefix / "include" / "tensorrt"
    for name in dict.fromkeys(filter(None, (multiarch, "x86_64-linux-gnu", "aarch64-linux-gnu"))):
        yield prefix / "include" / str(name)


def _has_headers(folder: Path) -> bool:
    return (folder / "NvInferRuntime.h").is_file() and (folder / "NvInferVersion.h").is_file()


def _fetched_headers() -> Path:
    """The headers of the pinned wheel, in the user's cache; the folder appears when it is complete."""
    folder = cache_folder() / "headers" / HEADER_WHEEL_SHA256[:16]
    if _has_headers(folder):
        return folder
    _LOG.info("fetching TensorRT headers: %s", HEADER_WHEEL)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            unpack_pinned_wheel(
                HEADER_WHEEL,
                HEADER_WHEEL_SHA256,
                Path(temporary) / folder.name,
                place=_place_of_header,
                advice="install libnvinfer-headers-dev, or name TensorRT's headers by --tensorrt-root",
            )
            if not _has_headers(folder):  # another process may have been quicker
                shutil.rmtree(folder, ignore_errors=True)
                (Path(temporary) / folder.name).replace(folder)
    except OSError as error:
        raise error_from_os_error(folder, error) from error
    return folder


def _place_of_header(name: str) -> str | None:
    match = re.fullmatch(r"kernel_lens/include/tensorrt/(\w+\.h)", name)
    return None if match is None else match[1]


def _output(command: list[str | Path]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except OSError as error:
        raise error_from_os_error(Path(command[0]), error, action="run") from error
    except subprocess.SubprocessError as error:
        raise HspanError(command[0], f"does not run: {error}", "install it again") from error
