"""Writing a package: every file is checked against the target first, then a tar.gz and a .deb contain the same tree."""

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tools.jetson_package.elf import ElfNeeds, check_runs_on, elf_needs_from_file
from tools.jetson_package.targets import TARGETS, Target
from trt_hspan.errors import HspanError
from trt_hspan.files import atomic_path, error_from_os_error, sha256_from_file
from trt_hspan.native.compatibility import verdict
from trt_hspan.native.plugin import LIBRARY_NAME, plugin_info_from_library
from trt_hspan.version import __version__

#: Where the .deb puts the package's tree.
PREFIX: Final = "opt/hspan"
MANIFEST_PLACE: Final = "share/hspan/package.json"

_ELF: Final = b"\x7fELF"

#: Debian packages by the libraries that programs load; libcudart.so.12 comes with JetPack, outside of Debian's names.
_DEBIAN_NAMES: Final = {
    **dict.fromkeys(("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"), "libc6"),
    "ld-linux-aarch64.so.1": "libc6",
    "libstdc++.so.6": "libstdc++6",
    "libgcc_s.so.1": "libgcc-s1",
    "libgomp.so.1": "libgomp1",
    "libcrypto.so.3": "libssl3",
}

#: Scripts that dpkg runs, by name.
_MAINTAINER_SCRIPTS: Final = Path(__file__).parent / "debian_scripts"


@dataclass(frozen=True)
class PackageFile:
    """A file of the package: where it is now, and its place in the package, such as "bin/hspan-upscale"."""

    source: Path
    place: str


@dataclass(frozen=True, kw_only=True)
class PackageContents:
    """What a package is made of.

    Attributes:
        files: its files.
        links: symbolic links, by place: {"lib/a.so": "a.so.1"}.
        commands: names in bin/ that the .deb also puts into /usr/bin.
        system_files: files that the .deb also puts elsewhere, by place: {"share/a.service": "usr/lib/a.service"}.
        linked_in: versions of foreign libraries that are inside the programs, for the manifest.
    """

    files: Sequence[PackageFile]
    links: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()
    system_files: Mapping[str, str] = field(default_factory=dict)
    linked_in: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class JetsonPackage:
    """What came out. `deb` is None where dpkg-deb is missing."""

    target: Target
    archive: Path
    deb: Path | None
    manifest: dict[str, Any]


def pack(target: Target, contents: PackageContents, output: Path) -> JetsonPackage:
    """Checks the files against the target and packs them, with a manifest that vouches for each.

    Raises:
        HspanError: a file would not run on the target, or the package cannot be written.
    """
    needs = {file.place: needed for file in contents.files if (needed := _checked(file, target)) is not None}
    manifest = _manifest(target, contents, needs)
    name = f"hspan-{target.name}-{__version__}"
    stamp = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    text = json.dumps(manifest, indent=2).encode() + b"\n"
    archive = output / f"{name}.tar.gz"
    places: list[tuple[str, Path | bytes]] = [(file.place, file.source) for file in contents.files]
    places.append((MANIFEST_PLACE, text))
    with atomic_path(archive) as temporary, tarfile.open(temporary, "w:gz") as tar:
        for place, content in places:
            _add(tar, f"{name}/{place}", content, stamp)
        for place, link in contents.links.items():
            _add_link(tar, f"{name}/{place}", link, stamp)
    deb = None
    if shutil.which("dpkg-deb"):
        deb = output / f"{name}_arm64.deb"
        _write_deb(deb, target, places, contents, needs)
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
        if verdict(info, target.architecture, driver=None) == "no code":
            raise HspanError(
                file.source,
                f"contains no code for sm_{target.architecture}",
                f"build it with the preset {target.name}",
            )
    return needs


def _manifest(target: Target, contents: PackageContents, needs: dict[str, ElfNeeds]) -> dict[str, Any]:
    listed = []
    for file in contents.files:
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
        "links": dict(contents.links),
        "linked_in": dict(contents.linked_in),
    }


def _add(tar: tarfile.TarFile, name: str, content: Path | bytes, stamp: int) -> None:
    data = content if isinstance(content, bytes) else content.read_bytes()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = len(data), stamp, _mode(content)
    tar.addfile(entry, io.BytesIO(data))


def _add_link(tar: tarfile.TarFile, name: str, link: str, stamp: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mtime, entry.mode = tarfile.SYMTYPE, link, stamp, 0o777
    tar.addfile(entry)


def _mode(content: Path | bytes) -> int:
    executable = isinstance(content, Path) and content.stat().st_mode & stat.S_IXUSR
    return 0o755 if executable else 0o644


def _write_deb(
    deb: Path,
    target: Target,
    places: Sequence[tuple[str, Path | bytes]],
    contents: PackageContents,
    needs: dict[str, ElfNeeds],
) -> None:
    with tempfile.TemporaryDirectory(prefix="trt-hspan-deb-") as name:
        root = Path(name) / "root"
        for place, content in places:
            here = root / PREFIX / place
            here.parent.mkdir(parents=True, exist_ok=True)
            here.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
            here.chmod(_mode(content))
        for place, link in contents.links.items():
            (root / PREFIX / place).symlink_to(link)
        for command in contents.commands:
            (root / "usr" / "bin").mkdir(parents=True, exist_ok=True)
            (root / "usr" / "bin" / command).symlink_to(f"/{PREFIX}/bin/{command}")
        for place, system_place in contents.system_files.items():
            (root / system_place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / PREFIX / place, root / system_place)
        (root / "DEBIAN").mkdir()
        (root / "DEBIAN" / "control").write_text(_control(target, needs, root))
        for script in sorted(_MAINTAINER_SCRIPTS.iterdir()):
            shutil.copyfile(script, root / "DEBIAN" / script.name)
            (root / "DEBIAN" / script.name).chmod(0o755)
        for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)
        with atomic_path(deb) as temporary:
            command_line = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(root), str(temporary)]
            completed = subprocess.run(command_line, capture_output=True, text=True, check=False)
            if completed.returncode != 0:
                raise HspanError(
                    deb, f"dpkg-deb fails: {completed.stderr.strip()}", "look at the files of the package"
                )


def _control(target: Target, needs: dict[str, ElfNeeds], root: Path) -> str:
    loaded = {library for each in needs.values() for library in each.libraries}
    names = {_DEBIAN_NAMES[library] for library in loaded if library in _DEBIAN_NAMES} | {"libc6"}
    glibc = max((version for each in needs.values() if (version := each.newest("GLIBC"))), default=(2, 17))
    depends = [f"libc6 (>= {'.'.join(map(str, glibc))})", *sorted(names - {"libc6"})]
    # Recommended, not demanded: in NVIDIA's containers they are there without being packages.
    cuda = [f"cuda-cudart-{target.cuda.replace('.', '-')}"] if "libcudart.so.12" in loaded else []
    recommends = ["libnvinfer10", *cuda, "python3-libnvinfer", "python3-venv"]
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    lines = [
        f"Package: hspan-{target.name}",
        f"Version: {__version__}",
        "Architecture: arm64",
        "Maintainer: trt-hspan",
        f"Installed-Size: {-(-size // 1024)}",
        f"Depends: {', '.join(depends)}",
        f"Recommends: {', '.join(recommends)}",
        f"Conflicts: {', '.join(f'hspan-{each.name}' for each in TARGETS if each != target)}",
        "Section: libs",
        "Priority: optional",
        f"Description: HSPAN super-resolution on TensorRT, for {target.boards}",
        f" For JetPack {target.jetpack} ({target.system}, CUDA {target.cuda}, TensorRT {target.tensorrt} and later).",
    ]
    return "\n".join(lines) + "\n"
