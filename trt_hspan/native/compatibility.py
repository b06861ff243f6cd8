"""Whether compiled CUDA code runs on a GPU under a driver: the one place where that is decided in Python.

plugins/runtime/compatibility.cpp decides the same for programs without Python; tests/native/compatibility.json holds
the cases of both. The rules are those of NVIDIA's "CUDA Compatibility" and of the CUDA C++ Programming Guide, "Binary
Compatibility".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal

from trt_hspan.errors import HspanError

Version = tuple[int, int]
Verdict = Literal["machine code", "ptx", "old driver", "new ptx", "no code"]

# NVIDIA's systems on a chip: machine code for them and for desktop GPUs is not interchangeable, nor does it carry over
# between minor versions.
TEGRA: Final = frozenset({53, 62, 72, 87, 101, 110})

# "CUDA Compatibility", minor version compatibility: the least driver of each CUDA.
_LEAST_DRIVER: Final = {12: 525, 13: 580}

#: The oldest CUDA that the kernels compile with.
OLDEST_CUDA: Final = (12, 4)


@dataclass(frozen=True, kw_only=True)
class CompiledCode:
    """The CUDA code in a library.

    Attributes:
        path: the library.
        cubin_architectures: compute capabilities it contains machine code for: 86 is 8.6.
        ptx_architectures: compute capabilities it contains PTX for, which the driver compiles for newer GPUs.
        cuda_version: of the compiler and of CUDA's runtime inside, such as "13.0.88".
        ptx_isa_version: of its PTX, such as "9.0".
    """

    path: Path
    cubin_architectures: tuple[int, ...]
    ptx_architectures: tuple[int, ...]
    cuda_version: str
    ptx_isa_version: str
    #: Compiles it.
    build_command: ClassVar[str] = "trt-hspan plugin build"

    def __post_init__(self) -> None:
        """Raises ValueError for versions that are none."""
        version_from_text(self.cuda_version), version_from_text(self.ptx_isa_version)


def verdict(code: CompiledCode, architecture: int, driver: Version | None) -> Verdict:
    """What runs on a GPU of this compute capability (86 is 8.6), or why nothing does.

    Args:
        driver: the newest CUDA that the driver runs; None for a driver that is yet to come, taken for new enough.

    Returns:
        "machine code", "ptx" (which the driver compiles at the first launch), or the reason: "old driver" (CUDA's
        runtime refuses it: error 35), "new ptx" (error 222), "no code" (error 209).
    """
    if driver is not None and version_from_text(code.cuda_version)[0] > driver[0]:
        return "old driver"
    if any(_cubin_runs(cubin, architecture) for cubin in code.cubin_architectures):
        return "machine code"
    if not any(ptx <= architecture for ptx in code.ptx_architectures):
        return "no code"
    return "ptx" if driver is None or _cuda_for_ptx(code.ptx_isa_version) <= driver else "new ptx"


def error_from_verdict(code: CompiledCode, architecture: int, driver: Version | None) -> HspanError | None:
    """None where the library runs, else one line with the way out."""
    reason = verdict(code, architecture, driver)
    own, here = version_from_text(code.cuda_version), ".".join(map(str, driver or ()))
    if reason == "old driver":
        next_step = f"install an NVIDIA driver of CUDA {own[0]}"
        if own[0] in _LEAST_DRIVER:
            next_step = f"install NVIDIA driver {_LEAST_DRIVER[own[0]]} or newer"
        if driver is not None and driver >= OLDEST_CUDA:
            next_step += (
                f", or CUDA {driver[0]} and {code.build_command} --nvcc /usr/local/cuda-{driver[0]}/bin/nvcc"
            )
        return HspanError(
            code.path, f"was compiled with CUDA {dotted(own)}, this driver runs CUDA up to {here}", next_step
        )
    if reason == "new ptx":
        return HspanError(
            code.path,
            f"has no machine code for sm_{architecture}, and its PTX {code.ptx_isa_version} needs a driver of CUDA "
            f"{dotted(_cuda_for_ptx(code.ptx_isa_version))}; this driver runs CUDA up to {here}",
            f"{_rebuild(code, [architecture])}, or install a newer NVIDIA driver",
        )
    if reason == "no code":
        return no_code_error(code, [architecture])
    return None


def require_runs(code: CompiledCode, architectures: Iterable[int], driver: Version | None) -> None:
    """Raises HspanError unless the library runs on GPUs of all these compute capabilities; arguments as `verdict`."""
    numbers = list(architectures)
    if missing := [number for number in numbers if verdict(code, number, driver) == "no code"]:
        raise no_code_error(code, missing)
    for number in numbers:
        if (error := error_from_verdict(code, number, driver)) is not None:
            raise error


def no_code_error(code: CompiledCode, architectures: list[int]) -> HspanError:
    """The error of a library that contains nothing for these compute capabilities."""
    names = ", ".join(f"sm_{number}" for number in architectures)
    return HspanError(code.path, f"built without {names}", f"rebuild with {_rebuild(code, architectures)}")


def version_from_text(text: str) -> Version:
    """(13, 0) from "13.0.88". Raises: ValueError."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _rebuild(code: CompiledCode, architectures: list[int]) -> str:
    numbers = sorted({*code.cubin_architectures, *architectures})
    return " ".join([code.build_command, *(f"--arch {number}" for number in numbers)])


def _cubin_runs(cubin: int, architecture: int) -> bool:
    if cubin == architecture:
        return True
    tegra = cubin in TEGRA or architecture in TEGRA
    return not tegra and cubin // 10 == architecture // 10 and cubin < architecture


def _cuda_for_ptx(isa: str) -> Version:
    """The first CUDA that compiles a PTX ISA version ("PTX Release History"): 9.x is 13.x, 8.x is 12.x up to 8.5."""
    major, minor = version_from_text(isa)
    skipped = major == 8 and minor > 5  # CUDA 12.6 has the PTX of 12.5
    return major + 4, minor + skipped


def dotted(version: Version) -> str:
    """As it is written: "13.0" of (13, 0)."""
    return f"{version[0]}.{version[1]}"
