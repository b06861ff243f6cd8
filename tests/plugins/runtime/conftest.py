"""The C++ runtime, compiled at most once per run, and its C API through ctypes."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from support.cmake_folder import built_folder

from trt_hspan.engine.rtx_wheel import library_folder
from trt_hspan.native.toolchain import find_tensorrt_headers

Float32Array = npt.NDArray[np.float32]
#: (3, h, w) -> (3, scale * h, scale * w); raising MemoryError is "out of memory".
Network = Callable[[Float32Array], Float32Array]

_NETWORK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_float),
    ctypes.c_int32,
    ctypes.c_int32,
    ctypes.POINTER(ctypes.c_float),
)


class Tiling(ctypes.Structure):
    """hspan_tiling of hspan/runtime.h."""

    _fields_ = [(name, ctypes.c_int32) for name in ("whole", "tile_height", "tile_width", "overlap")]


class _Limits(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in ("scale", "least_height", "least_width", "largest_height", "largest_width")
    ]


@dataclass(frozen=True)
class StatusError(Exception):
    """What a function of the C API said."""

    status: int
    message: str


class Upscaler:
    """A hspan_upscaler with a network written in numpy."""

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p, scale: int) -> None:
        self._library, self._handle, self.scale = library, handle, scale

    def _checked(self, status: int) -> None:
        if status != 0:
            raise StatusError(status, self._library.hspan_last_error().decode())

    def plan(self, height: int, width: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Row and column spans: start, length, rise start and length, fall start and length."""
        rows, columns = ctypes.c_int32(), ctypes.c_int32()
        counts = (ctypes.byref(rows), ctypes.byref(columns))
        self._checked(
            self._library.hspan_plan(self._handle, height, width, *counts, None, ctypes.c_size_t(0))
        )
        total = 6 * (rows.value + columns.value)
        numbers = (ctypes.c_int32 * total)()
        self._checked(
            self._library.hspan_plan(self._handle, height, width, *counts, numbers, ctypes.c_size_t(total))
        )
        spans = [tuple(numbers[at : at + 6]) for at in range(0, total, 6)]
        return spans[: rows.value], spans[rows.value :]

    def upscale(self, image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> npt.NDArray[np.generic]:
        """(H, W, C) uint8 or uint16 -> (scale H, scale W, C)."""
        height, width, channels = image.shape
        pixels = np.ascontiguousarray(image)
        result = np.zeros((height * self.scale, width * self.scale, channels), image.dtype)
        self._checked(
            self._library.hspan_upscale(
                self._handle,
                ctypes.c_void_p(pixels.ctypes.data),
                height,
                width,
                channels,
                8 * image.itemsize,
                ctypes.c_size_t(pixels.strides[0]),
                ctypes.c_void_p(result.ctypes.data),
                ctypes.c_size_t(result.strides[0]),
            )
        )
        return result

    def upscale_file(self, source: Path, target: Path) -> None:
        self._checked(
            self._library.hspan_upscale_file(self._handle, os.fsencode(source), os.fsencode(target))
        )


class RuntimeLibrary:
    """libhspan_runtime.so."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.hspan_last_error.restype = ctypes.c_char_p
        self.library.hspan_close.argtypes = [ctypes.c_void_p]

    @contextmanager
    def upscaler(
        self,
        network: Network,
        *,
        scale: int = 2,
        least: tuple[int, int] = (1, 1),
        largest: tuple[int, int] = (64, 64),
        tile: tuple[int, int] = (0, 0),
        overlap: int = -1,
        whole: bool = False,
    ) -> Iterator[Upscaler]:
        raised: list[BaseException] = []

        def call(_: object, source: object, height: int, width: int, target: object) -> int:
            batch = np.ctypeslib.as_array(source, (3, height, width))
            try:
                output = np.ctypeslib.as_array(target, (3, scale * height, scale * width))
                output[:] = network(batch.copy())
            except MemoryError:
                return 3
            except Exception as error:  # noqa: BLE001 - C code cannot pass it on, the caller does
                raised.append(error)
                return 1
            return 0

        callback = _NETWORK(call)
        handle = ctypes.c_void_p()
        status = self.library.hspan_open_network(
            callback,
            None,
            _Limits(scale, *least, *largest),
            Tiling(int(whole), *tile, overlap),
            ctypes.byref(handle),
        )
        if status != 0:
            raise StatusError(status, self.library.hspan_last_error().decode())
        try:
            yield Upscaler(self.library, handle, scale)
        finally:
            self.library.hspan_close(handle)
        if raised:
            raise raised[0]


def _missing() -> str | None:
    """Which library's headers are missing here; None when the runtime can be built."""
    headers = {
        "libpng-dev": "png.h",
        "libjpeg-dev": "jpeglib.h",
        "libssl-dev": "openssl/evp.h",
        "nlohmann-json3-dev": "nlohmann/json.hpp",
        "libcli11-dev": "CLI/CLI.hpp",
    }
    absent = [package for package, header in headers.items() if not (Path("/usr/include") / header).is_file()]
    return f"apt-get install {' '.join(absent)}" if absent else None


@pytest.fixture(scope="session")
def runtime_folder() -> Path:
    """CMake's build folder of the C++ runtime, linked with the TensorRT-RTX wheel where there is one."""
    missing = _missing()
    if missing:
        pytest.skip(f"the C++ runtime cannot be built here: {missing}")
    options = ["-G", "Ninja", "-DHSPAN_BUILD_PLUGIN=OFF", "-DHSPAN_BUILD_RUNTIME=ON"]
    wheel = library_folder()
    if wheel is not None and (shutil.which("nvcc") or Path("/usr/local/cuda").is_dir()):
        options += ["-DHSPAN_TENSORRT_FLAVOR=tensorrt-rtx"]
        options += [f"-DHSPAN_TENSORRT_LIBRARY={next(wheel.glob('libtensorrt_rtx.so.*'))}"]
        options += [f"-DHSPAN_TENSORRT_INCLUDE={find_tensorrt_headers()}"]
    return built_folder("runtime", *options) / "plugins" / "runtime"


@pytest.fixture(scope="session")
def runtime(runtime_folder: Path) -> RuntimeLibrary:
    return RuntimeLibrary(runtime_folder / "libhspan_runtime.so")


@pytest.fixture(scope="session")
def program(runtime_folder: Path) -> Path:
    """hspan-upscale."""
    path = runtime_folder / "hspan-upscale"
    if not path.is_file():
        pytest.skip("hspan-upscale needs CUDA's runtime library and TensorRT-RTX's wheel")
    return path
