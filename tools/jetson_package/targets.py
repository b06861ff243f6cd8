"""Machines that packages are built for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trt_hspan.errors import UsageError

Version = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A system that a package must run on.

    Attributes:
        name: of the target and of its CMake preset.
        boards, system: what it is.
        jetpack, cuda: versions on the device.
        tensorrt: the oldest version that the programs accept; later ones of its generation serve too.
        architecture: compute capability, 87 being 8.7.
        machine: processor, as ELF files name it here.
        limits: the newest symbol versions that the system's libraries have, by family.
        libraries: what a library of the package may load.
        toolkit: the CUDA toolkit that builds for it, by its folder's name.
        cuda_runtime: "Static" inside the library, or "Shared" with the device's.
    """

    name: str
    boards: str
    system: str
    jetpack: str
    cuda: str
    tensorrt: str
    architecture: int
    machine: str
    limits: Mapping[str, Version]
    libraries: frozenset[str]
    toolkit: str
    cuda_runtime: str


_SYSTEM_LIBRARIES: Final = frozenset(
    {
        *("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"),
        *("libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1", "ld-linux-aarch64.so.1"),
        "libcrypto.so.3",
    }
)

#: glibc 2.39, the libraries of GCC 14.2, and OpenSSL 3.0.13.
_UBUNTU_24_04: Final = {
    "GLIBC": (2, 39),
    "GLIBCXX": (3, 4, 33),
    "CXXABI": (1, 3, 15),
    "GCC": (14, 0, 0),
    "OPENSSL": (3, 0, 13),
}

#: Ubuntu 22.04 has glibc 2.35, the libraries of GCC 12.3 and OpenSSL 3.0.2. CUDA 13.0's runtime, which is linked in,
#: runs with the driver of 13.2.
TARGETS: Final = (
    Target(
        name="jetson-orin",
        boards="Jetson AGX Orin, Orin NX, Orin Nano",
        system="Ubuntu 22.04",
        jetpack="6",
        cuda="12.6",
        tensorrt="10.3",
        architecture=87,
        machine="aarch64",
        limits={
            "GLIBC": (2, 35),
            "GLIBCXX": (3, 4, 30),
            "CXXABI": (1, 3, 13),
            "GCC": (12, 0, 0),
            "OPENSSL": (3, 0, 2),
        },
        # JetPack's own runtime: a static one of a newer CUDA 12 might ask more of the driver than it has.
        libraries=_SYSTEM_LIBRARIES | {"libcudart.so.12"},
        toolkit="cuda-12",
        cuda_runtime="Shared",
    ),
    Target(
        name="jetson-orin-jp7",
        boards="Jetson AGX Orin, Orin NX, Orin Nano",
        system="Ubuntu 24.04",
        jetpack="7.2",
        cuda="13.2",
        tensorrt="10.13",
        architecture=87,
        machine="aarch64",
        limits=_UBUNTU_24_04,
        libraries=_SYSTEM_LIBRARIES,
        toolkit="cuda-13",
        cuda_runtime="Static",
    ),
    Target(
        name="jetson-thor",
        boards="Jetson AGX Thor",
        system="Ubuntu 24.04",
        jetpack="7",
        cuda="13.0",
        tensorrt="10.13",
        architecture=110,
        machine="aarch64",
        limits=_UBUNTU_24_04,
        libraries=_SYSTEM_LIBRARIES,
        toolkit="cuda-13",
        cuda_runtime="Static",
    ),
)


def target_from_name(name: str) -> Target:
    """The target of this name.

    Raises:
        UsageError: there is none; lists those there are.
    """
    for target in TARGETS:
        if target.name == name:
            return target
    raise UsageError("target", f"got '{name}', expected one of {', '.join(each.name for each in TARGETS)}")
