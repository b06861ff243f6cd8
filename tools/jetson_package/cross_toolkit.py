"""CUDA toolkits that run here and build for aarch64, put together from what registries carry.

A toolkit is a folder of its own,
    bin/ (nvcc, ptxas, ...)  nvvm/ (cicc, libdevice)  include/  lib64/ (the device's CUDA runtime, for aarch64)
and nothing of it comes from the machine that builds it, so that it is the same everywhere.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.jetson_package.debian import fetch_debian_packages, unpack_debian_package
from trt_hspan.downloads import unpack_pinned_wheel
from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error, sha256_from_file

#: Names another CUDA 12 toolkit to take the compiler from, instead of Debian's.
CUDA12_VARIABLE: Final = "HSPAN_CUDA12_ROOT"

CROSS_COMPILER: Final = "aarch64-linux-gnu-g++"
CROSS_PACKAGE: Final = "g++-aarch64-linux-gnu"

_PROGRAMS: Final = ("nvcc", "ptxas", "fatbinary", "cudafe++", "nvlink", "bin2c")
_READY: Final = ".complete"


@dataclass(frozen=True)
class Wheel:
    """A wheel of NVIDIA's, by its pinned version and hash; `aarch64` says which processor's is meant."""

    requirement: str
    sha256: str
    aarch64: bool


@dataclass(frozen=True, kw_only=True)
class Toolkit:
    """What a toolkit is made of.

    Attributes:
        name: of its folder.
        wheels: unpacked over one another.
        debian: version and hash of Debian's nvidia-cuda-toolkit, where the wheels contain no nvcc; None otherwise.
    """

    name: str
    wheels: tuple[Wheel, ...]
    debian: tuple[str, str] | None


#: NVIDIA's CUDA 12 wheels contain ptxas and headers but no nvcc; Debian 13 packages the compiler, of the same release.
TOOLKITS: Final = {
    "cuda-12": Toolkit(
        name="cuda-12",
        wheels=(
            Wheel(
                "nvidia-cuda-runtime-cu12==12.4.127",
                "961fe0e2e716a2a1d967aab7caee97512f71767f852f67432d572e36cb3a11f3",
                True,
            ),
            Wheel(
                "nvidia-cuda-cccl-cu12==12.4.127.post1",
                "641ce4d9c335d4b9e0955ec4f94aa46f5a765356cc38cc4bbf65c7b40f8a4450",
                True,
            ),
            Wheel(
                "nvidia-cuda-nvcc-cu12==12.4.131",
                "e4c9a35435c3b0e36c6397c5696334c9ea6650e524736cbd1c5d345ea099bb04",
                False,
            ),
        ),
        debian=(
            "12.4.131~12.4.1-2",
            "cd5fe85aee38d108b315f408a688641478f2402622a10c677478eb7a6c4e5319",
        ),
    ),
    "cuda-13": Toolkit(
        name="cuda-13",
        wheels=(
            Wheel(
                "nvidia-cuda-runtime==13.0.96",
                "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
                True,
            ),
            Wheel(
                "nvidia-cuda-crt==13.0.88",
                "ee2ea2a97073e02ee62bb27841f437332be2c248e3eac013df07997ada39c003",
                True,
            ),
            Wheel(
                "nvidia-cuda-cccl==13.0.85",
                "6f0203e29fed809ee2b7fe9b1344df66ecab990c37d6a2e0e189b26d6c97ed7c",
                True,
            ),
            Wheel(
                "nvidia-cuda-nvcc==13.0.88",
                "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03",
                False,
            ),
            Wheel(
                "nvidia-nvvm==13.0.88",
                "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0",
                False,
            ),
        ),
        debian=None,
    ),
}

_PROFILE: Final = """\
TOP = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH += $(TOP)/nvvm/bin:$(_HERE_):
INCLUDES += "-I$(TOP)/include" $(_SPACE_)
LIBRARIES =+ $(_SPACE_) "-L$(TOP)/lib64"
"""


def find_cross_compiler() -> Path:
    """The C++ compiler for aarch64.

    Raises:
        HspanError: there is none; says how to install it.
    """
    if program := shutil.which(CROSS_COMPILER):
        return Path(program)
    raise HspanError(CROSS_COMPILER, "not found", f"install it: apt install {CROSS_PACKAGE}")


def prepare_toolkit(name: str, folder: Path, *, on_step: Callable[[str], None] = lambda _: None) -> Path:
    """Puts a toolkit together in `folder`, unless it is there already.

    Args:
        name: of TOOLKITS.
        folder: the toolkit's own.
        on_step: called with what is being fetched.

    Returns:
        Its nvcc.

    Raises:
        HspanError: something cannot be fetched, or is not what its hash says.
    """
    toolkit = TOOLKITS[name]
    folder = folder.absolute()
    source = _installed_cuda12() if toolkit.debian else None
    made_from = f"{toolkit}\n{source}\n{_PROFILE}"
    ready = folder / _READY
    if ready.is_file() and ready.read_text() == made_from:
        return folder / "bin" / "nvcc"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder.parent) as scratch:
            tree = Path(scratch) / "tree"
            for wheel in toolkit.wheels:
                on_step(wheel.requirement)
                _unpack_wheel(wheel, tree)
            if toolkit.debian:
                on_step(f"nvcc of {source}" if source else f"nvidia-cuda-toolkit {toolkit.debian[0]}")
                _add_compiler(source or _fetched_debian(*toolkit.debian, Path(scratch)), tree)
            _finish(tree)
            (tree / _READY).write_text(made_from)
            shutil.rmtree(folder, ignore_errors=True)
            tree.rename(folder)
    except OSError as error:
        raise error_from_os_error(folder, error) from error
    return folder / "bin" / "nvcc"


def _installed_cuda12() -> Path | None:
    """A CUDA 12 toolkit that the user names."""
    named = os.environ.get(CUDA12_VARIABLE)
    if not named:
        return None
    root = Path(named)
    if not os.access(root / "bin" / "nvcc", os.X_OK):
        raise HspanError(
            CUDA12_VARIABLE, f"{named} contains no bin/nvcc", "name the folder of a CUDA 12 toolkit"
        )
    return root


def _unpack_wheel(wheel: Wheel, tree: Path) -> None:
    machine = "aarch64" if wheel.aarch64 else "x86_64"
    tags = ("manylinux1", "manylinux2010", "manylinux2014", "manylinux_2_17", "manylinux_2_27")
    unpack_pinned_wheel(
        wheel.requirement,
        wheel.sha256,
        tree,
        place=_place_in_toolkit,
        platforms=[f"{tag}_{machine}" for tag in tags],
        advice="look at the network and at pip's configuration",
    )


def _place_in_toolkit(name: str) -> str | None:
    """CUDA 13's wheels contain nvidia/cu13/...; those of CUDA 12 nvidia/<part>/...; both become one tree."""
    top, _, *rest = (*Path(name).parts, "")
    is_part = top == "nvidia" and len(rest) > 2 and not name.endswith("__init__.py")
    return "/".join(rest[:-1]) if is_part and ".." not in name else None


def _fetched_debian(version: str, sha256: str, folder: Path) -> Path:
    """Debian's package of the compiler, unpacked; fetched by apt from the mirror that this system uses."""
    package = "nvidia-cuda-toolkit"
    advice = f"name a CUDA 12 toolkit by {CUDA12_VARIABLE}"
    (archive,) = fetch_debian_packages(
        [f"{package}={version}"], folder, suite="trixie", component="non-free", advice=advice
    )
    if (actual := sha256_from_file(archive)) != sha256:
        raise HspanError(package, f"the mirror sent a file with SHA-256 {actual}, expected {sha256}", advice)
    unpack_debian_package(archive, folder / "debian", advice=advice)
    return folder / "debian"


def _add_compiler(source: Path, tree: Path) -> None:
    """Programs of an NVIDIA toolkit, or of Debian's package, which keeps them in other places."""
    debian = source / "usr" / "lib" / "nvidia-cuda-toolkit"
    is_debian = debian.is_dir()
    for program in _PROGRAMS:
        here = (
            debian / "bin" / program if is_debian and program == "nvcc" else source / "usr" / "bin" / program
        )
        _copy(here if is_debian else source / "bin" / program, tree / "bin" / program)
    for name, place in (
        ("nvvm/bin/cicc", debian / "bin" / "cicc"),
        ("nvvm/libdevice", debian / "libdevice"),
        ("bin/crt", debian / "bin" / "crt"),
    ):
        _copy(place if is_debian else source / name, tree / name)
    if not is_debian:  # headers of nvcc's own release; the wheels' serve Debian's
        _copy(source / "include", tree / "include")
    (tree / "bin" / "nvcc.profile").write_text(_PROFILE)


def _copy(source: Path, target: Path) -> None:
    if not source.exists():
        raise HspanError(source, "is missing in the CUDA toolkit", f"name another by {CUDA12_VARIABLE}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy2(source.resolve(), target)


def _finish(tree: Path) -> None:
    """Executable programs; libraries under the names that nvcc and linkers look for."""
    for folder in (tree / "bin", tree / "nvvm" / "bin"):
        for program in folder.iterdir():
            if program.is_file():
                program.chmod(0o755)
    libraries, expected = tree / "lib", tree / "lib64"
    if libraries.is_dir():
        libraries.rename(expected)
        libraries.symlink_to("lib64")
    device_runtime = expected / "libcudadevrt.a"
    if (
        not device_runtime.exists()
    ):  # CMake names it; the plugin's kernels launch no others, so an empty one will do
        device_runtime.write_bytes(b"!<arch>\n")
    for shared in sorted(expected.glob("libcudart.so.*")):
        (expected / "libcudart.so").unlink(missing_ok=True)
        (expected / "libcudart.so").symlink_to(shared.name)
