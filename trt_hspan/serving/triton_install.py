"""The tritonserver program: where it is, and how it gets there. Owns its files and environment; starts nothing.

The server comes from NVIDIA's nvidia-pytriton wheel, which carries the `tritonserver` binary, its libraries, the
Python backend and one stub for each Python version. The wheel's Python package is not used, so that neither it nor its
numpy < 2 enters the user's environment: only these files are unpacked, into a folder of their own.
"""

from __future__ import annotations

import ctypes.util
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trt_hspan.downloads import unpack_pinned_wheel
from trt_hspan.errors import HspanError
from trt_hspan.files import cache_folder, error_from_os_error

WHEEL_NAME: Final = "nvidia-pytriton"
WHEEL_VERSION: Final = "0.7.0"
WHEEL_SHA256: Final = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"

_FOLDER_VARIABLE: Final = "TRT_HSPAN_TRITON"
# glibc gives large buffers back after each run and lets the kernel clear them anew for the next, or keeps them, as luck
# has it: *measured*, 42 ms or 51 to 60 ms for one tile. A server keeps up to 256 MB of them in each process.
_MALLOC: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}
_PARTS: Final = ("pytriton/tritonserver/", "nvidia_pytriton.libs/")
_BACKEND_FILES: Final = (
    "libtriton_python.so",
    "triton_python_backend_utils.py",
    "triton_python_backend_stub",
)


@dataclass(frozen=True, kw_only=True)
class TritonInstall:
    """An installed server: its program, its backends' folder, and folders for LD_LIBRARY_PATH."""

    program: Path
    backends: Path
    libraries: tuple[Path, ...]

    def environment(self) -> dict[str, str]:
        """The environment of the server: this process's, with the libraries, and this Python for the stub."""
        result = dict(os.environ)
        folders = [str(folder) for folder in self.libraries]
        if inherited := result.get("LD_LIBRARY_PATH"):
            folders.append(inherited)
        result["LD_LIBRARY_PATH"] = os.pathsep.join(folders)
        # The stub embeds libpython, which finds the virtual environment through the first python3 on PATH.
        result["PATH"] = os.pathsep.join([str(Path(sys.prefix) / "bin"), result.get("PATH", os.defpath)])
        result.pop("PYTHONHOME", None)
        for name, value in _MALLOC.items():
            result.setdefault(name, value)
        return result


def default_install_folder() -> Path:
    """Where the server is unpacked: build/triton of a checkout, else the user's cache folder."""
    from trt_hspan.native.sources import is_checkout

    root = Path(__file__).resolve().parents[2]
    base = root / "build" if is_checkout(root) else cache_folder()
    return base / "triton" / f"{WHEEL_VERSION}-{WHEEL_SHA256[:12]}"


def triton_install(on_progress: Callable[[str], None] | None = None) -> TritonInstall:
    """The server, fetched and unpacked when it is not there yet.

    TRT_HSPAN_TRITON may name the folder of another installation, such as /opt/tritonserver of NVIDIA's image: it
    contains bin/tritonserver and backends/python.

    Raises HspanError: another system than Linux on x86-64, no index, another hash, no stub or library of this Python.
    """
    if named := os.environ.get(_FOLDER_VARIABLE):
        return _named_install(Path(named))
    _require_platform()
    folder = default_install_folder()
    if not (folder / "complete").is_file():
        report = on_progress or (lambda _: None)
        try:
            _set_up(folder, report)
        except OSError as error:
            raise error_from_os_error(folder, error) from error
    libraries = (folder / "nvidia_pytriton.libs", *_python_library_folders(_python_version()))
    return TritonInstall(
        program=folder / "pytriton" / "tritonserver" / "bin" / "tritonserver",
        backends=_backend_folder(folder),
        libraries=libraries,
    )


def _named_install(folder: Path) -> TritonInstall:
    program = folder / "bin" / "tritonserver"
    stub = folder / "backends" / "python" / "triton_python_backend_stub"
    for path in (program, stub):
        if not path.is_file():
            raise HspanError(
                _FOLDER_VARIABLE,
                f"names {folder}, which contains no {path.relative_to(folder)}",
                "correct it",
            )
    library = re.search(rb"libpython(3\.\d+)", stub.read_bytes())
    if library is not None and library[1].decode() != _python_version():
        raise HspanError(
            stub,
            f"is for Python {library[1].decode()}, this is Python {_python_version()}",
            f"install trt-hspan for Python {library[1].decode()}",
        )
    return TritonInstall(
        program=program,
        backends=folder / "backends",
        libraries=(folder / "lib", *_python_library_folders(_python_version())),
    )


def _require_platform() -> None:
    if not sys.platform.startswith("linux") or os.uname().machine != "x86_64":
        raise HspanError(
            "serve",
            f"the packaged tritonserver is for Linux on x86-64, this is {sys.platform} on {os.uname().machine}",
            f"run in NVIDIA's Triton image with {_FOLDER_VARIABLE}=/opt/tritonserver, or use trt-hspan serve export",
        )


def _python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _set_up(folder: Path, report: Callable[[str], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        report(f"fetching {WHEEL_NAME} {WHEEL_VERSION} (55 MB)")
        unpack_pinned_wheel(
            f"{WHEEL_NAME}=={WHEEL_VERSION}",
            WHEEL_SHA256,
            stage,
            place=lambda name: name if name.startswith(_PARTS) else None,
            advice=f"check the network and pip's index settings, or set {_FOLDER_VARIABLE} to an installed Triton",
        )
        triton = stage / "pytriton" / "tritonserver"
        for program in (triton / "bin" / "tritonserver", *triton.glob("python_backend_stubs/*/*_stub")):
            program.chmod(0o755)
        (stage / "complete").write_text(f"{WHEEL_NAME} {WHEEL_VERSION}\n")
        try:
            stage.replace(folder)
        except OSError:
            if not (folder / "complete").is_file():  # another process was quicker
                shutil.rmtree(folder, ignore_errors=True)
                stage.replace(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _backend_folder(folder: Path) -> Path:
    """A backend folder with the stub of this Python version, as links."""
    version = _python_version()
    triton = folder / "pytriton" / "tritonserver"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        have = sorted(path.name for path in (triton / "python_backend_stubs").iterdir())
        raise HspanError(
            "serve",
            f"Triton's Python backend has no stub for Python {version}, only for {', '.join(have)}",
            "use one of these versions",
        )
    backends = folder / f"backends-{version}"
    target = backends / "python"
    if not all((target / name).exists() for name in _BACKEND_FILES):
        target.mkdir(parents=True, exist_ok=True)
        for name in _BACKEND_FILES:
            source = stub if name == stub.name else triton / "backends" / "python" / name
            link = target / f".{name}.{os.getpid()}"
            link.symlink_to(os.path.relpath(source, target))
            link.replace(target / name)
    return backends


def _python_library_folders(version: str) -> tuple[Path, ...]:
    """Where libpython is, when the loader does not find it by itself."""
    name = f"libpython{version}.so.1.0"
    folder = sysconfig.get_config_var("LIBDIR")
    if folder and (Path(folder) / name).is_file():
        return (Path(folder),)
    if ctypes.util.find_library(f"python{version}"):
        return ()
    raise HspanError(
        name,
        "Triton's Python backend needs Python as a shared library, and there is none",
        f"sudo apt-get install libpython{version}, or use a Python built with --enable-shared",
    )
