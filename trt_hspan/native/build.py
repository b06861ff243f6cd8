"""Compiling the plugin library with CMake and nvcc: what to build, whether it must be, and putting it in place."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import atomic_path, error_from_os_error, sha256_from_file
from trt_hspan.native.cmake import progress_from_line, run_logged
from trt_hspan.native.plugin import (
    LIBRARY_NAME,
    architecture_from_target,
    default_plugin_path,
    is_checkout,
    plugin_info_from_library,
    user_cache_folder,
)
from trt_hspan.native.progress import BuildProgress
from trt_hspan.native.toolchain import Toolchain, find_nvcc, find_toolchain, supported_architectures

#: What TensorRT-RTX builds engines for; PTX of the first serves all others that are newer.
DEFAULT_ARCHITECTURES: Final = (75, 80, 86, 89, 120)

#: Of plugins/; the other folders there are other products.
_SOURCE_FOLDERS: Final = ("device", "kernels", "tensorrt")

_LOG_NAME: Final = "build.log"


@dataclass(frozen=True)
class PluginBuild:
    """A library in place, and whether anything had to be done for it."""

    path: Path
    compiled: bool


def build_plugin(
    output: str | os.PathLike[str] | None = None,
    *,
    architectures: Iterable[str | int] | None = None,
    nvcc: str | os.PathLike[str] | None = None,
    tensorrt_root: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    force: bool = False,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> PluginBuild:
    """Compiles the plugin library, unless the one in place is already what would come out.

    A library is up to date when it was made from the very same sources and holds machine code for the architectures
    asked for. A compiler or headers named by hand always build.

    Args:
        output: where the library goes; None is `default_plugin_path()`.
        architectures: compute capabilities ("sm_86", "8.6" or 86) to make machine code for, with PTX for the least;
            None is DEFAULT_ARCHITECTURES, as far as the compiler knows them, and those of the GPUs at hand.
        nvcc, tensorrt_root: see `find_nvcc` and `find_tensorrt_headers`; None searches.
        jobs: compilations at a time; None is the number of processors.
        force: build from nothing.
        on_progress: told about each step.

    Raises:
        UsageError: an architecture that is none, or jobs below 1.
        HspanError: something needed is missing, the compiler does not know an architecture, it reports an error (the
            log is kept and named), or the output cannot be written.
    """
    if jobs is not None and jobs < 1:
        raise UsageError("--jobs", f"got {jobs}, expected at least 1")
    asked = (
        None if architectures is None else sorted({architecture_from_target(each) for each in architectures})
    )
    if asked == []:
        raise UsageError("--arch", "no architecture given", "name at least one, such as --arch 86")
    target = Path(output) if output is not None else default_plugin_path()
    sources = sources_folder()
    digest = sha256_from_sources(sources)
    if not force and nvcc is None and tensorrt_root is None and _is_up_to_date(target, digest, asked):
        return PluginBuild(target, compiled=False)
    with atomic_path(
        target.with_name(f"{target.stem}.probe")
    ) as probe:  # an output that cannot be written shows early
        probe.touch()
    target.with_name(f"{target.stem}.probe").unlink()
    toolchain = find_toolchain(nvcc=nvcc, tensorrt_root=tensorrt_root)
    wanted = _compilable(toolchain, asked)
    folder = _build_folder(sources, toolchain, wanted)
    with _locked(folder):
        if force:
            shutil.rmtree(folder / "cmake", ignore_errors=True)
        configure = _configure_command(toolchain, sources, folder, wanted, digest)
        built = _compile(toolchain, folder, configure, jobs or os.cpu_count() or 1, on_progress)
        plugin_info_from_library(built)
        with atomic_path(target) as temporary:
            shutil.copyfile(built, temporary)
    return PluginBuild(target, compiled=True)


def sources_folder() -> Path:
    """The folder that holds CMakeLists.txt and plugins/: what the installed wheel carries, or the checkout.

    Raises:
        HspanError: the installation carries no sources.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_sources", package.parent):
        if is_checkout(folder):
            return folder
    raise HspanError(package, "this installation holds no plugin sources", "install trt-hspan again")


def sha256_from_sources(folder: Path) -> str:
    """One hash over the names and contents of all files that the library is made from."""
    plugins = folder / "plugins"
    made_from = [
        *plugins.glob("*"),
        *(path for name in _SOURCE_FOLDERS for path in (plugins / name).rglob("*")),
    ]
    files = [path for path in made_from if path.is_file() and path.suffix != ".md"]
    digest = hashlib.sha256()
    for path in sorted([folder / "CMakeLists.txt", *files]):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_from_file(path)}\n".encode())
    return digest.hexdigest()


def _is_up_to_date(library: Path, digest: str, asked: list[int] | None) -> bool:
    try:
        info = plugin_info_from_library(library)
    except HspanError:
        return False
    if info.source_sha256 != digest:
        return False
    if asked is not None:
        return set(info.cubin_architectures) == set(asked)
    return set(_default_architectures(_known_to_the_compiler_at_hand())) <= set(info.cubin_architectures)


def _known_to_the_compiler_at_hand() -> tuple[int, ...] | None:
    try:
        return supported_architectures(find_nvcc())
    except HspanError:
        return None


def _default_architectures(known: tuple[int, ...] | None) -> list[int]:
    from trt_hspan.machine.gpu import gpu_architectures

    here = {architecture_from_target(name) for name in gpu_architectures()}
    return sorted(number for number in here.union(DEFAULT_ARCHITECTURES) if known is None or number in known)


def _compilable(toolchain: Toolchain, asked: list[int] | None) -> list[int]:
    known = supported_architectures(toolchain.nvcc)
    if asked is None:
        return _default_architectures(known)
    unknown = [number for number in asked if number not in known]
    if unknown:
        names = ", ".join(f"sm_{number}" for number in unknown)
        raise HspanError(
            toolchain.nvcc,
            f"CUDA {toolchain.cuda_version} cannot compile for {names}",
            "choose among " + ", ".join(map(str, known)) + ", or another CUDA toolkit by --nvcc",
        )
    return asked


def _build_folder(sources: Path, toolchain: Toolchain, architectures: list[int]) -> Path:
    """One folder per combination, so that building again compiles only what changed."""
    key = "\n".join(map(str, [sources, toolchain, architectures]))
    return user_cache_folder() / "build" / hashlib.sha256(key.encode()).hexdigest()[:16]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two builds of the same library wait for one another."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / "lock").open("w")
    except OSError as error:
        raise error_from_os_error(folder, error) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _configure_command(
    toolchain: Toolchain, sources: Path, folder: Path, architectures: list[int], digest: str
) -> list[str | Path]:
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={toolchain.ninja}"] if toolchain.ninja else []
    return [
        toolchain.cmake,
        *("-S", sources, "-B", folder / "cmake"),
        *generator,
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_CUDA_COMPILER={toolchain.nvcc}",
        f"-DCMAKE_CUDA_HOST_COMPILER={toolchain.host_compiler}",
        f"-DCMAKE_CXX_COMPILER={toolchain.host_compiler}",
        "-DHSPAN_ARCHITECTURES=" + ";".join(map(str, architectures)),
        f"-DHSPAN_TENSORRT_INCLUDE={toolchain.headers}",
        f"-DHSPAN_SOURCE_SHA256={digest}",
    ]


def _compile(
    toolchain: Toolchain,
    folder: Path,
    configure: list[str | Path],
    jobs: int,
    on_progress: Callable[[BuildProgress], None] | None,
) -> Path:
    """Configures and builds in `folder`; the library that came out."""
    build = folder / "cmake"
    environment = dict(os.environ)
    if toolchain.library_path is not None:
        paths = [str(toolchain.library_path), environment.get("LIBRARY_PATH", "")]
        environment["LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
    log = folder / _LOG_NAME
    tell = on_progress or (lambda _: None)
    try:
        with log.open("w") as stream:
            tell(BuildProgress(fraction=0.0, phase="configuring"))
            for _ in run_logged(configure, environment, stream, log):
                pass
            for line in run_logged(
                [toolchain.cmake, "--build", build, "--parallel", str(jobs)], environment, stream, log
            ):
                if state := progress_from_line(line):
                    tell(state)
    except OSError as error:
        raise error_from_os_error(folder, error) from error
    return build / "plugins" / LIBRARY_NAME
