"""Problems for libhspan_cuda.so in host memory, and what their results may be off by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from support.reference import attention_reference
from trt_hspan.native.cuda_attention import CudaLibrary, CudaProblem, DeviceAddresses

U = 2.0**-24
#: Rounding of the types, and half their least subnormal number.
ROUNDING = {"float32": (0.0, 0.0), "float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 0.0)}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

#: One of moderate sizes, which every GPU from 7.5 on takes.
GOOD = CudaProblem(batch=2, score_channels=16, value_channels=8, positions=33, element_type="float16")


class Memory:
    """Bytes that end at the end of an allocation, from an address that is a multiple of `alignment`; all 0xff, NaN."""

    def __init__(self, count: int, alignment: int = 16) -> None:
        self._bytes = np.full(count + alignment, 0xFF, np.uint8)
        self._offset = -self._bytes.ctypes.data % alignment
        self.address = self._bytes.ctypes.data + self._offset
        self.data = self._bytes[self._offset : self._offset + count]


@dataclass(frozen=True)
class Call:
    """A problem with its memory."""

    library: CudaLibrary
    problem: CudaProblem
    query: Memory
    key: Memory
    value: Memory
    output: Memory
    workspace: Memory

    @property
    def addresses(self) -> DeviceAddresses:
        tensors = (self.query, self.key, self.value, self.output, self.workspace)
        names = ("query", "key", "value", "output", "workspace")
        places = {name: memory.address for name, memory in zip(names, tensors, strict=True)}
        return DeviceAddresses(**places, workspace_bytes=len(self.workspace.data))

    def result(self) -> NDArray[np.float64]:
        """(N, D, L); what pads the channels must be zero."""
        problem = self.problem
        shape = (problem.batch, problem.value_channels, problem.positions)
        dtype = DTYPES[problem.element_type]
        flat = torch.from_numpy(self.output.data).view(dtype).double().numpy()
        if not problem.channels_last:
            return flat.reshape(shape)
        rows = flat.reshape(problem.batch, problem.positions, -1)
        assert not rows[..., problem.value_channels :].any()
        return rows[..., : problem.value_channels].transpose(0, 2, 1)


def stored(library: CudaLibrary, problem: CudaProblem, numbers: NDArray[np.float64]) -> Memory:
    """(N, channels, L) in the problem's type and layout; padding is NaN."""
    n, channels, positions = numbers.shape
    if problem.channels_last:
        pitch = library.channel_pitch(problem.element_type, channels)
        rows = np.full((n, positions, pitch), np.nan)
        rows[..., :channels] = numbers.transpose(0, 2, 1)
        numbers = rows
    raw = torch.from_numpy(np.ascontiguousarray(numbers)).to(DTYPES[problem.element_type])
    data = raw.view(torch.uint8).numpy().ravel() if raw.numel() else np.empty(0, np.uint8)
    memory = Memory(data.size)
    memory.data[:] = data
    return memory


def numbers_of(problem: CudaProblem, factor: float, seed: int = 0) -> tuple[NDArray[np.float64], ...]:
    """query, key (N, C, L), value (N, D, L): scores are exact, values have few bits."""
    generator = np.random.default_rng(seed)
    shape = (problem.batch, problem.score_channels, problem.positions)
    query = generator.integers(-8, 9, shape) * factor
    key = generator.integers(-8, 9, shape).astype(np.float64)
    value = generator.integers(-99, 100, (problem.batch, problem.value_channels, problem.positions)) / 128
    return query, key, value


def prepared(library: CudaLibrary, problem: CudaProblem, numbers: tuple[NDArray[np.float64], ...]) -> Call:
    query, key, value = (stored(library, problem, each) for each in numbers)
    output = Memory(len(value.data))
    workspace = Memory(library.workspace_bytes(problem), 256)
    return Call(library, problem, query, key, value, output, workspace)


def bound(
    problem: CudaProblem, expected: NDArray[np.float64], value: NDArray[np.float64]
) -> NDArray[np.float64]:
    """plugins/README.md, "Accuracy": 96 u, and (2^-17 + (130 + L / 512) u) on the dense route of the short types."""
    relative, least = ROUNDING[problem.element_type]
    given = 96 * U if relative == 0 else 2.0**-17 + (130 + problem.positions / 512) * U
    arithmetic = given * np.abs(value).max(initial=0)
    return arithmetic + relative * (np.abs(expected) + arithmetic) + least


def reference(numbers: tuple[NDArray[np.float64], ...]) -> NDArray[np.float64]:
    return attention_reference(*(each[:, :, None] for each in numbers))[:, :, 0]


def check(library: CudaLibrary, problem: CudaProblem, factor: float) -> None:
    numbers = numbers_of(problem, factor)
    call = prepared(library, problem, numbers)
    library.attend(problem, call.addresses)
    expected = reference(numbers)
    error = np.abs(call.result() - expected)
    assert (error <= bound(problem, expected, numbers[2])).all(), problem


def tiled(library: CudaLibrary) -> str:
    """A configuration for GPUs with tensor cores."""
    return next(name for name in library.configurations if name.startswith("tiled"))
