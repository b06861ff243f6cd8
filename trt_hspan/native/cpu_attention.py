"""The attention's library for CPUs: finding, checking and calling it through the C ABI of plugins/cpu/hspan_cpu.h."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.native.loading import TYPE_NUMBERS, ElementType, checked_library, open_library
from trt_hspan.native.sources import LibraryPlaces, cpu_sources_sha256

logger = logging.getLogger(__name__)

LIBRARY_NAME: Final = "libhspan_cpu.so"
#: Names the library to load, wherever it was compiled.
LIBRARY_VARIABLE: Final = "TRT_HSPAN_CPU_LIBRARY"
#: Must equal HSPAN_CPU_ABI_VERSION in plugins/cpu/hspan_cpu.h.
ABI_VERSION: Final = 1

#: `trt-hspan plugin build --cpu` writes to `PLACES.own_path()`.
PLACES: Final = LibraryPlaces(
    file_name=LIBRARY_NAME, variable=LIBRARY_VARIABLE, folder="cpu", sources_sha256=cpu_sources_sha256
)

Route = Literal["automatic", "gather", "dense"]

_ROUTES: Final[dict[str, int]] = {"automatic": 0, "gather": 1, "dense": 2}
_OUT_OF_MEMORY: Final = 2
_COMMAND: Final = "trt-hspan plugin build --cpu"


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("channel_stride", ctypes.c_int64),
        ("position_stride", ctypes.c_int64),
    )


class _Attention(ctypes.Structure):
    _fields_ = (
        ("query", _Tensor),
        ("key", _Tensor),
        ("value", _Tensor),
        ("output", _Tensor),
        ("batch", ctypes.c_int64),
        ("score_channels", ctypes.c_int64),
        ("value_channels", ctypes.c_int64),
        ("positions", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("instruction_set", ctypes.c_int32),
        ("route", ctypes.c_int32),
        ("tile_rows", ctypes.c_int64),
        ("gather_limit", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Operand:
    """A tensor in main memory: its address, its (N, channels, positions) and their strides, in elements."""

    address: int
    shape: tuple[int, int, int]
    strides: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class NativeOptions:
    """How a call is computed; the result is the same within the numeric contract of plugins/README.md.

    Attributes:
        threads: at most so many; few tiles take fewer.
        instruction_set: one of `NativeLibrary.instruction_sets`; None is the best.
        route: how weighted sums are formed.
        tile_rows: query rows of a tile; None chooses.
        gather_limit: a row of more candidates takes the dense route; None chooses.
    """

    threads: int = 1
    instruction_set: str | None = None
    route: Route = "automatic"
    tile_rows: int | None = None
    gather_limit: int | None = None


class NativeLibrary:
    """A loaded library.

    Attributes:
        path: the file.
        source_sha256: hash of the sources that it was compiled from; empty when CMake was run by hand.
        instruction_sets: those that this processor can execute, best first.

    Raises:
        HspanError: the file cannot be loaded, is another library, or has another ABI version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._library = open_library(
            self.path, version_function="hspanCpuAbiVersion", version=ABI_VERSION, command=_COMMAND
        )
        self._library.hspanCpuSourceSha256.restype = ctypes.c_char_p
        self._library.hspanCpuInstructionSetName.restype = ctypes.c_char_p
        self._library.hspanCpuWorkspaceBytes.restype = ctypes.c_uint64
        self.source_sha256: str = self._library.hspanCpuSourceSha256().decode()
        count = self._library.hspanCpuInstructionSetCount()
        names = [self._library.hspanCpuInstructionSetName(index).decode() for index in range(count)]
        self._indices = {
            name: index for index, name in enumerate(names) if self._library.hspanCpuInstructionSetRuns(index)
        }
        self.instruction_sets: tuple[str, ...] = tuple(self._indices)

    def attend(
        self,
        query: Operand,
        key: Operand,
        value: Operand,
        output: Operand,
        *,
        element_type: ElementType,
        options: NativeOptions,
    ) -> None:
        """Computes the attention into `output`; the interpreter's lock is released meanwhile."""
        arguments = self._arguments((query, key, value, output), element_type, options)
        status = self._library.hspanCpuAttention(ctypes.byref(arguments))
        if status == _OUT_OF_MEMORY:
            needed = self._library.hspanCpuWorkspaceBytes(ctypes.byref(arguments))
            raise OutOfMemoryError(
                "attention",
                f"its workspace of {needed / 1e6:.1f} MB could not be had",
                "give a smaller picture",
            )
        if status != 0:
            raise ValueError(f"the attention's arguments are invalid: {query}, {value}, {options}")

    def workspace_bytes(
        self,
        shape: Sequence[int],
        *,
        value_channels: int,
        element_type: ElementType = "float32",
        options: NativeOptions,
    ) -> int:
        """Main memory that a call takes beyond its tensors. shape: query's (N, C, positions), dense in that order.

        Raises:
            ValueError: sizes or options that cannot be.
        """
        n, channels, positions = shape
        query = _dense_operand((n, channels, positions))
        value = _dense_operand((n, value_channels, positions))
        arguments = self._arguments((query, query, value, value), element_type, options)
        needed: int = self._library.hspanCpuWorkspaceBytes(ctypes.byref(arguments))
        if needed == 0:
            raise ValueError(
                f"no attention on {tuple(shape)} with {value_channels} value channels and {options}"
            )
        return needed

    def _arguments(
        self,
        operands: tuple[Operand, Operand, Operand, Operand],
        element_type: ElementType,
        options: NativeOptions,
    ) -> _Attention:
        query, key, value, output = operands
        n, channels, positions = query.shape
        if key.shape != query.shape or value.shape != output.shape:
            raise ValueError(f"shapes do not fit: {query}, {key}, {value}, {output}")
        if (value.shape[0], value.shape[2]) != (n, positions):
            raise ValueError(f"shapes do not fit: {query}, {value}")
        if options.instruction_set is not None and options.instruction_set not in self._indices:
            raise ValueError(f"{options.instruction_set!r} is none of {self.instruction_sets}")
        if options.tile_rows == 0 or options.gather_limit == 0:
            raise ValueError("tile_rows and gather_limit are at least 1")
        return _Attention(
            *(_Tensor(operand.address, *operand.strides) for operand in operands),
            n,
            channels,
            value.shape[1],
            positions,
            TYPE_NUMBERS[element_type],
            options.threads,
            -1 if options.instruction_set is None else self._indices[options.instruction_set],
            _ROUTES[options.route],
            options.tile_rows or 0,
            options.gather_limit or 0,
        )


def native_library() -> NativeLibrary | None:
    """The library, loaded at the first call; None where there is none that fits, which is logged once as a warning.

    Looked for: what TRT_HSPAN_CPU_LIBRARY names; else `LibraryPlaces.path`. A library that was compiled from
    other sources than those at hand is not used, except one that the variable names.
    """
    return _loaded(os.environ.get(LIBRARY_VARIABLE))


def source_sha256_from_library(path: Path) -> str | None:
    """The hash of the sources that a library was compiled from, read from the file; None when it is no such library.

    Nothing is loaded: a process that has loaded a path once gets the same library again, whatever lies there by then.
    """
    try:
        match = re.search(rb"hspan-cpu-source-sha256=([0-9a-f]{64})\0", path.read_bytes())
    except OSError:
        return None
    return None if match is None else match[1].decode()


@functools.cache
def _loaded(named: str | None) -> NativeLibrary | None:
    try:
        return checked_library(NativeLibrary, PLACES, _COMMAND)
    except HspanError as error:
        logger.warning("attention runs without its native CPU library, many times slower: %s", error)
        return None


def _dense_operand(shape: tuple[int, int, int]) -> Operand:
    return Operand(0, shape, (shape[1] * shape[2], shape[2], 1))
