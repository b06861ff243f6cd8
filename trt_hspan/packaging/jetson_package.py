"""The package for a Jetson: built here with the target's CMake preset, checked against the target, packed.

Owns the order of the steps and what the package holds. What others add (programs, wheels) is handed over as
`PackageFile`s; they are checked as the plugin is.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trt_hspan import __version__
from trt_hspan.engine.plugin_build import sha256_from_sources, sources_folder
from trt_hspan.engine.plugin_cmake import progress_from_line, run_logged
from trt_hspan.engine.plugin_library import LIBRARY_NAME, plugin_info_from_library, user_cache_folder
from trt_hspan.engine.plugin_toolchain import find_cmake, find_ninja, find_tensorrt_headers
from trt_hspan.engine.progress import BuildProgress
from trt_hspan.errors import HspanError
from trt_hspan.files import atomic_path, error_from_os_error, sha256_from_file
from trt_hspan.ops import native
from trt_hspan.packaging.cross_toolkit import find_cross_compiler, prepare_toolkit
from trt_hspan.packaging.elf import ElfNeeds, check_runs_on, elf_needs_from_file
from trt_hspan.packaging.targets import Target

#: Where the .deb puts the package's tree.
PREFIX: Final = "opt/hspan"
MANIFEST_PLACE: Final = "share/hspan/package.json"
CPU_LIBRARY_NAME: Final = "libhspan_cpu.so"

_LOG_NAME: Final = "build.log"
_ELF: Final = b"\x7fELF"


@dataclass(frozen=True)
class PackageFile:
    """A file of the package: where it is now, and its place in the package, such as "bin/hspan-upscale"."""

    source: Path
    place: str


@dataclass(frozen=True, kw_only=True)
class JetsonPackage:
    """What came out. `deb` is None where dpkg-deb is missing."""

    target: Target
    archive: Path
    deb: Path | None
    manifest: dict[str, Any]


def build_jetson_package(
    target: Target,
    output: Path,
    *,
    jobs: int = 2,
    more: Sequence[PackageFile] = (),
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> JetsonPackage:
    """Builds the plugin for the target and packs it.

    Args:
        target: what for.
        output: folder of the package; made if need be.
        jobs: compilers at a time.
        more: further files for the package.
        on_progress: told about each step.

    Raises:
        HspanError: the cross compiler or something to fetch is missing, a source does not compile, or what came out
            would not run on the target.
    """
    tell = on_progress or (lambda _: None)
    plugin = build_cross_plugin(target, jobs=jobs, on_progress=tell)
    cpu = build_cross_cpu_library(target, jobs=jobs, on_progress=tell)
    tell(BuildProgress(fraction=1.0, phase=f"packing for {target.name}"))
    files = [PackageFile(plugin, f"lib/{LIBRARY_NAME}"), PackageFile(cpu, f"lib/{CPU_LIBRARY_NAME}")]
    licence = sources_folder() / "LICENSE"
    return pack(target, [*files, PackageFile(licence, "share/doc/hspan/LICENSE"), *more], output)


def build_cross_plugin(
    target: Target, *, jobs: int = 2, on_progress: Callable[[BuildProgress], None] = lambda _: None
) -> Path:
    """The plugin library for the target, stripped, in the build folder of the target's CMake preset.

    Raises:
        HspanError: as `build_jetson_package`.
    """
    find_cross_compiler()
    root = sources_folder()
    if not (root / "CMakePresets.json").is_file():
        raise HspanError(root, "holds no CMakePresets.json", "build packages in a checkout of this project")
    cross, build = root / "build" / "cross", root / "build" / "cmake" / target.name

    def fetching(what: str) -> None:
        on_progress(BuildProgress(fraction=0.0, phase=f"fetching {what}"))

    toolkit = user_cache_folder() / "cross" / target.toolkit
    prepare_toolkit(target.toolkit, toolkit, tell=fetching)
    _link(toolkit, cross / target.toolkit)
    _link(find_tensorrt_headers(), cross / "tensorrt")
    options: list[str | Path] = [
        "--preset",
        target.name,
        "-S",
        root,
        f"-DHSPAN_SOURCE_SHA256={sha256_from_sources(root)}",
    ]
    return _built(options, build, jobs, on_progress) / LIBRARY_NAME


def build_cross_cpu_library(
    target: Target, *, jobs: int = 2, on_progress: Callable[[BuildProgress], None] = lambda _: None
) -> Path:
    """The attention on main memory for the target's processor, stripped.

    Raises:
        HspanError: the cross compiler is missing, or a source does not compile.
    """
    find_cross_compiler()
    root = sources_folder()
    toolchain = root / "cmake" / "aarch64-linux-gnu.cmake"
    sources = root / "plugins" / "cpu"
    options: list[str | Path] = ["-S", sources, f"-DCMAKE_TOOLCHAIN_FILE={toolchain}"]
    options.append(f"-DHSPAN_SOURCE_SHA256={native.sha256_from_sources(sources)}")
    return (
        _built(options, root / "build" / "cmake" / f"{target.name}-cpu", jobs, on_progress) / CPU_LIBRARY_NAME
    )


def _built(
    options: Sequence[str | Path], build: Path, jobs: int, on_progress: Callable[[BuildProgress], None]
) -> Path:
    """Configures, builds and installs in `build`; the folder of the libraries."""
    staging = build / "staging"
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if (ninja := find_ninja()) else []
    cmake = find_cmake()
    commands: list[list[str | Path]] = [
        [cmake, *options, "-B", build, *generator, "-DCMAKE_INSTALL_LIBDIR=lib"],
        [cmake, "--build", build, "--parallel", str(jobs)],
        [cmake, "--install", build, "--strip", "--prefix", staging],
    ]
    try:
        build.mkdir(parents=True, exist_ok=True)
        with (build / _LOG_NAME).open("w") as log:
            for command in commands:
                for line in run_logged(command, dict(os.environ), log, build / _LOG_NAME):
                    if state := progress_from_line(line):
                        on_progress(state)
    except OSError as error:
        raise error_from_os_error(build, error) from error
    return staging / "lib"


def pack(target: Target, files: Sequence[PackageFile], output: Path) -> JetsonPackage:
    """Checks the files against the target and packs them, with a manifest that vouches for each.

    Raises:
        HspanError: a file would not run on the target, or the package cannot be written.
    """
    needs = {file.place: needed for file in files if (needed := _checked(file, target)) is not None}
    manifest = _manifest(target, files, needs)
    name = f"hspan-{target.name}-{__version__}"
    stamp = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    text = json.dumps(manifest, indent=2).encode() + b"\n"
    archive = output / f"{name}.tar.gz"
    contents: list[tuple[str, Path | bytes]] = [(file.place, file.source) for file in files]
    contents.append((MANIFEST_PLACE, text))
    with atomic_path(archive) as temporary, tarfile.open(temporary, "w:gz") as tar:
        for place, content in contents:
            _add(tar, f"{name}/{place}", content, stamp)
    deb = None
    if shutil.which("dpkg-deb"):
        deb = output / f"{name}_arm64.deb"
        _write_deb(deb, target, contents, needs)
    return JetsonPackage(target=target, archive=archive, deb=deb, manifest=manifest)


def _checked(file: PackageFile, target: Target) -> ElfNeeds | None:
    """What a program or library of the package needs, when the target has it; None for other files."""
    try:
        with file.source.open("rb") as stream:
            is_elf = stream.read(len(_ELF)) == _ELF
    except OSError as error:
        raise error_from_os_error(file.source, error, action="read") from error
    if not is_elf:
        return None
    needs = elf_needs_from_file(file.source)
    check_runs_on(needs, target)
    if file.place == f"lib/{LIBRARY_NAME}":
        info = plugin_info_from_library(file.source)
        if not info.serves(target.architecture):
            raise HspanError(
                file.source,
                f"holds no code for sm_{target.architecture}",
                f"build it with the preset {target.name}",
            )
    return needs


def _manifest(target: Target, files: Sequence[PackageFile], needs: dict[str, ElfNeeds]) -> dict[str, Any]:
    listed = []
    for file in files:
        entry: dict[str, Any] = {
            "path": file.place,
            "bytes": file.source.stat().st_size,
            "sha256": sha256_from_file(file.source),
        }
        if needed := needs.get(file.place):
            newest = {family: needed.newest(family) for family in ("GLIBC", "GLIBCXX")}
            entry["machine"] = needed.machine
            entry["libraries"] = list(needed.libraries)
            entry["needs"] = {
                name: ".".join(map(str, version)) for name, version in newest.items() if version
            }
        if file.place == f"lib/{LIBRARY_NAME}":
            info = plugin_info_from_library(file.source)
            entry["plugin"] = {
                "name": info.name,
                "version": info.version,
                "namespace": info.namespace,
                "abi_version": info.abi_version,
                "cubin_architectures": list(info.cubin_architectures),
                "ptx_architectures": list(info.ptx_architectures),
                "cuda_version": info.cuda_version,
                "tensorrt_header_version": info.tensorrt_header_version,
                "source_sha256": info.source_sha256,
            }
        listed.append(entry)
    return {
        "format": 1,
        "name": f"hspan-{target.name}",
        "version": __version__,
        "target": {
            "name": target.name,
            "boards": target.boards,
            "system": target.system,
            "jetpack": target.jetpack,
            "cuda": target.cuda,
            "tensorrt": target.tensorrt,
            "compute_capability": target.architecture,
            "machine": target.machine,
        },
        "files": listed,
    }


def _add(tar: tarfile.TarFile, name: str, content: Path | bytes, stamp: int) -> None:
    data = content if isinstance(content, bytes) else content.read_bytes()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = len(data), stamp
    entry.mode = 0o755 if isinstance(content, Path) and content.stat().st_mode & stat.S_IXUSR else 0o644
    tar.addfile(entry, io.BytesIO(data))


def _write_deb(
    deb: Path, target: Target, contents: Sequence[tuple[str, Path | bytes]], needs: dict[str, ElfNeeds]
) -> None:
    glibc = max((version for each in needs.values() if (version := each.newest("GLIBC"))), default=(2, 17))
    control = [
        f"Package: hspan-{target.name}",
        f"Version: {__version__}",
        "Architecture: arm64",
        "Maintainer: trt-hspan",
        f"Depends: libc6 (>= {'.'.join(map(str, glibc))}), libstdc++6",
        "Recommends: libnvinfer10",
        "Section: libs",
        "Priority: optional",
        f"Description: HSPAN super-resolution on TensorRT, for {target.boards}",
        f" For JetPack {target.jetpack} ({target.system}, CUDA {target.cuda}, TensorRT {target.tensorrt} and later).",
    ]
    with tempfile.TemporaryDirectory(prefix="trt-hspan-deb-") as name:
        root = Path(name) / "root"
        for place, content in contents:
            here = root / PREFIX / place
            here.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copy(content, here)
            else:
                here.write_bytes(content)
        (root / "DEBIAN").mkdir()
        (root / "DEBIAN" / "control").write_text("\n".join(control) + "\n")
        for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)
        with atomic_path(deb) as temporary:
            command = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(root), str(temporary)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise HspanError(
                    deb, f"dpkg-deb fails: {done.stderr.strip()}", "look at the files of the package"
                )


def _link(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    link.symlink_to(target)
