"""The attention's library for GPUs: finding, checking and calling it through the C ABI of plugins/cuda/hspan_cuda.h.

Knows addresses, no tensors: `trt_hspan.ops.cuda` has the way from one to the other.
"""

from __future__ import annotations

import ctypes
import functools
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.machine.gpu import cuda_error, gpu_driver
from trt_hspan.native.compatibility import CompiledCode, Version, require_runs
from trt_hspan.native.loading import TYPE_NUMBERS, ElementType, checked_library, open_library
from trt_hspan.native.plugin import embedded_fields
from trt_hspan.native.sources import LibraryPlaces, cuda_sources_sha256

logger = logging.getLogger(__name__)

LIBRARY_NAME: Final = "libhspan_cuda.so"
#: Names the library to load, wherever it was compiled.
LIBRARY_VARIABLE: Final = "TRT_HSPAN_CUDA_LIBRARY"
#: Must equal HSPAN_CUDA_ABI_VERSION in plugins/cuda/hspan_cuda.h.
ABI_VERSION: Final = 1

#: `trt-hspan plugin build --cuda` writes to `PLACES.own_path()`.
PLACES: Final = LibraryPlaces(
    file_name=LIBRARY_NAME, variable=LIBRARY_VARIABLE, folder="cuda", sources_sha256=cuda_sources_sha256
)

_COMMAND: Final = "trt-hspan plugin build --cuda"
_ERROR_BASE: Final = 1000
_CUDA_OUT_OF_MEMORY: Final = 2
_OLD_DRIVER: Final = 35
#: Insufficient driver, invalid device function, no kernel image, unsupported PTX: what a library that does not fit GPU
#: or driver meets with at its first launch, before anything has run.
UNFIT: Final = frozenset({_OLD_DRIVER, 98, 209, 222})

_given_up: set[int] = set()


class CudaError(HspanError):
    """CUDA's runtime refused a call; `number` is its cudaError_t."""

    def __init__(self, number: int, text: str) -> None:
        next_step: str | None = "CUDA_LAUNCH_BLOCKING=1 shows which call it was"
        if number in UNFIT:  # another driver is the way out of only one of them
            next_step = cuda_error("", number).next_step if number == _OLD_DRIVER else _COMMAND
        super().__init__("attention on the GPU", f"{text} (CUDA error {number})", next_step)
        self.number = number


class _Problem(ctypes.Structure):
    _fields_ = (
        ("batch", ctypes.c_int64),
        ("score_channels", ctypes.c_int64),
        ("value_channels", ctypes.c_int64),
        ("positions", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("layout", ctypes.c_int32),
        ("configuration", ctypes.c_int32),
    )


class _Tensors(ctypes.Structure):
    _fields_ = (
        ("query", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_uint64),
    )


@dataclass(frozen=True, kw_only=True)
class CudaProblem:
    """What is computed, apart from the data.

    Attributes:
        batch, score_channels, value_channels, positions: N, C of query and key, D of value and output, L = H * W.
        element_type: of all four tensors.
        channels_last: they are (N, L, pitch) in memory, the pitch that `CudaLibrary.channel_pitch` says; else
            (N, channels, L).
        configuration: a name of `CudaLibrary.configurations`; "automatic" chooses by type, sizes and GPU.
    """

    batch: int
    score_channels: int
    value_channels: int
    positions: int
    element_type: ElementType
    channels_last: bool = False
    configuration: str = "automatic"


@dataclass(frozen=True, kw_only=True)
class DeviceAddresses:
    """Device memory of one call: inputs and output aligned to 16 bytes, the workspace to 256."""

    query: int
    key: int
    value: int
    output: int
    workspace: int
    workspace_bytes: int


class _CudaCode(CompiledCode):
    build_command = _COMMAND


class CudaLibrary:
    """A loaded library. Loading needs neither a GPU nor a driver.

    Attributes:
        path: the file.
        source_sha256: hash of the sources that it was compiled from; empty when it was compiled by hand.
        cubin_architectures, ptx_architectures: compute capabilities it contains machine code and PTX for; empty when
            the build did not say.
        code: these and its CUDA version; None when the build did not say.
        configurations: names of kernels and tile shapes.

    Raises:
        HspanError: the file cannot be loaded, is another library, or has another ABI version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._library = open_library(
            self.path, version_function="hspanCudaAbiVersion", version=ABI_VERSION, command=_COMMAND
        )
        for name in ("Info", "StatusText", "ConfigurationName"):
            getattr(self._library, f"hspanCuda{name}").restype = ctypes.c_char_p
        self._library.hspanCudaChannelPitch.restype = ctypes.c_int64
        self._library.hspanCudaChannelPitch.argtypes = (ctypes.c_int32, ctypes.c_int64)
        info = json.loads(self._library.hspanCudaInfo())
        self.source_sha256: str = info["source_sha256"]
        self.cubin_architectures: tuple[int, ...] = tuple(info["cubin_architectures"])
        self.ptx_architectures: tuple[int, ...] = tuple(info["ptx_architectures"])
        self.code = _code_from_fields(self.path, info)
        count = self._library.hspanCudaConfigurationCount()
        self.configurations: tuple[str, ...] = tuple(
            self._library.hspanCudaConfigurationName(index).decode() for index in range(count)
        )

    def check_runs(self, architecture: int, driver: Version | None) -> None:
        """Raises HspanError unless its code runs on GPUs of this compute capability, 86 being 8.6, under this driver.

        A library that does not say what it contains is taken to run.
        """
        if self.code is not None:
            require_runs(self.code, [architecture], driver)

    def channel_pitch(self, element_type: ElementType, channels: int) -> int:
        """Elements from one position to the next in a channels-last tensor."""
        pitch: int = self._library.hspanCudaChannelPitch(TYPE_NUMBERS[element_type], channels)
        return pitch

    def workspace_bytes(self, problem: CudaProblem) -> int:
        """Device memory that a call takes beyond its tensors, on any GPU.

        Raises:
            ValueError: sizes or a configuration that cannot be.
        """
        needed = ctypes.c_uint64()
        own = self._problem(problem)
        status = self._library.hspanCudaWorkspaceBytes(ctypes.byref(own), ctypes.byref(needed))
        self._require(status, problem)
        return needed.value

    def attend(self, problem: CudaProblem, addresses: DeviceAddresses, *, stream: int = 0) -> None:
        """Starts the attention on the current device, on a stream of it; 0 is the default stream. Does not wait.

        Raises:
            ValueError: sizes, a configuration or addresses that cannot be.
            OutOfMemoryError: the driver has no memory for the kernels.
            CudaError: any other error of CUDA's.
        """
        own = self._problem(problem)
        tensors = _Tensors(**asdict(addresses))
        status = self._library.hspanCudaAttention(
            ctypes.byref(own), ctypes.byref(tensors), ctypes.c_void_p(stream)
        )
        self._require(status, (problem, addresses))

    def _problem(self, problem: CudaProblem) -> _Problem:
        if problem.configuration not in self.configurations:
            raise ValueError(f"{problem.configuration!r} is none of {self.configurations}")
        return _Problem(
            problem.batch,
            problem.score_channels,
            problem.value_channels,
            problem.positions,
            TYPE_NUMBERS[problem.element_type],
            int(problem.channels_last),
            self.configurations.index(problem.configuration),
        )

    def _require(self, status: int, arguments: object) -> None:
        if status == 0:
            return
        text = self._library.hspanCudaStatusText(status).decode()
        if status < _ERROR_BASE:
            raise ValueError(f"{text}: {arguments}")
        if status == _ERROR_BASE + _CUDA_OUT_OF_MEMORY:
            raise OutOfMemoryError("attention on the GPU", text, "give a smaller picture or smaller tiles")
        raise CudaError(status - _ERROR_BASE, text)


def cuda_library(architecture: int) -> CudaLibrary | None:
    """The library for GPUs of a compute capability, 86 being 8.6, loaded at the first call.

    None where there is none that fits, which is logged once as a warning. Looked for: what TRT_HSPAN_CUDA_LIBRARY
    names; else `LibraryPlaces.path`. A library that was compiled from other sources than those at hand is not used,
    except one that the variable names.
    """
    return None if architecture in _given_up else _loaded(os.environ.get(LIBRARY_VARIABLE), architecture)


def give_up(architecture: int, reason: HspanError) -> None:
    """From now on GPUs of this compute capability have no library. Logs the reason as a warning."""
    _given_up.add(architecture)
    logger.warning("attention on the GPU runs in PyTorch's own operations, many times slower: %s", reason)


def code_from_library(path: Path) -> CompiledCode | None:
    """The CUDA code in a library, read from the file; None when it is no such library, or does not say."""
    try:
        return _code_from_fields(path, embedded_fields(path, path.read_bytes(), b"hspan-cuda-info:{"))
    except (OSError, HspanError):
        return None


def state_of_library(path: Path) -> tuple[str, tuple[int, ...]] | None:
    """The hash of a library's sources and the compute capabilities it has machine code for, read from the file.

    None when it is no such library. Nothing is loaded: a process that has loaded a path once gets the same library
    again, whatever lies there by then.
    """
    try:
        fields = embedded_fields(path, path.read_bytes(), b"hspan-cuda-info:{")
        return str(fields["source_sha256"]), tuple(fields["cubin_architectures"])
    except (OSError, HspanError, KeyError):
        return None


def _code_from_fields(path: Path, fields: dict[str, Any]) -> CompiledCode | None:
    try:
        return _CudaCode(
            path=path,
            cubin_architectures=tuple(fields["cubin_architectures"]),
            ptx_architectures=tuple(fields["ptx_architectures"]),
            cuda_version=fields["cuda_version"],
            ptx_isa_version=fields["ptx_isa_version"],
        )
    except (KeyError, ValueError):  # compiled by hand
        return None


@functools.cache
def _loaded(named: str | None, architecture: int) -> CudaLibrary | None:
    try:
        library = checked_library(CudaLibrary, PLACES, _COMMAND)
        library.check_runs(architecture, gpu_driver().cuda_version)
    except HspanError as error:
        give_up(architecture, error)
        return None
    return library
