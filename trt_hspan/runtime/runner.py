"""What every backend looks like from outside. Imports no backend."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Final, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError

Float32Array = npt.NDArray[np.float32]
RunnerPrecision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
#: An input's (N, 3, H, W); None where a dimension is free.
ShapeLimit = tuple[int | None, int | None, int | None, int | None]
Shape = tuple[int, int, int, int]

CHANNELS: Final = 3
# Multiply-accumulates.
_LEAST_SHARED_MACS: Final = 64e6

_RunnerT = TypeVar("_RunnerT", bound="Runner")


class Limits(Protocol):
    """What of a runner says which inputs it takes; the members are those of `Runner`."""

    where: str
    name: str
    on_gpu: bool
    size_multiple: int

    @property
    def shape_ranges(self) -> tuple[tuple[ShapeLimit, ShapeLimit], ...]: ...

    def require_shape(self, shape: tuple[int, ...], what: object) -> None: ...

    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int: ...


def is_for_one_thread(shape: tuple[int, ...], macs_per_pixel: int) -> bool:
    """Whether a run on (N, C, H, W) is so short that threads would wait for each other longer than they compute.

    *Measured* on two cores beside other programs, which is where it matters, with hspan-tiny-x2 on 8x8 pixels (9
    million multiply-accumulates): PyTorch takes 9 ms with one thread and 670 ms with two, ONNX Runtime 13 and 125 ms.
    """
    return shape[0] * shape[2] * shape[3] * macs_per_pixel < _LEAST_SHARED_MACS


class Runner(abc.ABC):
    """A network on some backend. A context manager: the backend is loaded on entry and freed on exit.

    Attributes:
        where: the file or preset that the network came from.
        name: the backend, such as "PyTorch 2.13.0".
        precision: type of the network's arithmetic.
        on_gpu: whether it runs on a GPU.
        emulated: True when this stands in, on a CPU, for an engine or for a GPU's arithmetic. FP32 of an ONNX file
            is the CPU's own.
        why_emulated: why the engine itself does not run here; None when no engine was requested.
        scale: output side over input side.
        res_scale: the factor that checkpoints do not store, where the file says it.
        source_sha256: hash of the checkpoint behind the network; None when the file does not say.
        fixed_shape: the input's (N, 3, H, W) with None for what is free.
        size_multiple, min_size: of free sides of inputs: multiples of this, and the smallest.
        profiles: of an engine, the smallest and largest (N, 3, H, W) of each of its profiles, in TensorRT's order; an
            emulation on the CPU keeps to them as the engine does.
        picked: why `open_runner` took this backend, one phrase that commands print; empty for a runner that
            was constructed directly.
    """

    where: str
    name: str
    precision: RunnerPrecision
    on_gpu: bool = False
    emulated: bool
    why_emulated: str | None = None
    scale: int
    res_scale: float | None = None
    source_sha256: str | None = None
    fixed_shape: tuple[int | None, ...] = (None, CHANNELS, None, None)
    size_multiple: int = 1
    min_size: int = 1
    profiles: tuple[tuple[Shape, Shape], ...] = ()
    picked: str = ""

    @property
    def shape_ranges(self) -> tuple[tuple[ShapeLimit, ShapeLimit], ...]:
        """The smallest and largest (N, 3, H, W) that one run takes, a pair for each profile; None where anything from 1
        will do, or where only memory limits."""
        if self.profiles:
            return self.profiles
        n, channels, height, width = self.fixed_shape
        least = None if self.min_size == 1 else self.min_size
        return (((n, channels, height or least, width or least), (n, channels, height, width)),)

    @property
    def label(self) -> str:
        """One phrase for tables: backend, precision, and whether it is an emulation."""
        suffix = ", emulated on CPU" if self.emulated else ""
        return f"{self.name}, {self.precision.upper()}{suffix}"

    @abc.abstractmethod
    def activate(self) -> None:
        """Loads the network. Called by `with`."""

    @abc.abstractmethod
    def deactivate(self) -> None:
        """Frees what `activate` loaded. Called at the end of `with`, also after a failed `activate`."""

    @abc.abstractmethod
    def infer(self, batch: Float32Array) -> Float32Array:
        """Executes the network on a batch that `run` has checked."""

    @abc.abstractmethod
    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """A lower estimate of the main memory that a run on an input of this shape takes."""

    def require_shape(self, shape: tuple[int, ...], what: object) -> None:
        """Checks that the network takes an input of this shape.

        Args:
            shape: (N, 3, H, W).
            what: what has the shape; errors name it.

        Raises:
            HspanError: it does not fit.
        """
        if self.profiles:
            self._require_profile(shape, what)
        else:
            self._require_fixed(shape, what)
        step = self.size_multiple
        if any(size % step or size < self.min_size for size in shape[2:]):
            least = f" from {self.min_size}" if self.min_size > step else ""
            raise HspanError(
                what,
                f"is {'x'.join(map(str, shape))}, but {self.where} takes sides that are multiples of {step}{least}",
                "give such a size",
            )

    def _require_fixed(self, shape: tuple[int, ...], what: object) -> None:
        fits = len(shape) == 4 and all(
            size >= 1 and fixed in (None, size) for size, fixed in zip(shape, self.fixed_shape, strict=True)
        )
        if not fits:
            expected = "x".join("any" if fixed is None else str(fixed) for fixed in self.fixed_shape)
            raise HspanError(
                what,
                f"is {'x'.join(map(str, shape))}, but {self.where} takes {expected} (N x C x H x W)",
                "give a picture of that size or export without --static",
            )

    def _require_profile(self, shape: tuple[int, ...], what: object) -> None:
        if any(
            len(shape) == len(low)
            and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
            for low, high in self.profiles
        ):
            return
        limits = " or ".join(
            " to ".join("x".join(map(str, side)) for side in sides) for sides in self.profiles
        )
        raise HspanError(
            what,
            f"is {'x'.join(map(str, shape))}, but {self.where} takes {limits} (N x C x H x W)",
            "build the engine for larger or smaller pictures: --min, --max, --profile",
        )

    def run(self, batch: Float32Array) -> Float32Array:
        """Executes the network.

        Args:
            batch: (N, 3, H, W) float32 RGB, nominally in [0, 1].

        Returns:
            (N, 3, scale * H, scale * W) float32, not clamped; may contain NaN when the network overflows.

        Raises:
            HspanError: the shape does not fit the network, or the backend fails.
        """
        output = self.infer(self._checked_input(batch))
        self._check_output(batch.shape, output)
        return output

    def run_many(self, batches: Iterable[Float32Array]) -> Iterator[Float32Array]:
        """Executes the network on one batch after the other; shapes may differ.

        A backend with a device of its own overlaps them: it may take a few batches from the iterable before it
        gives the first result. Results come in order, and each is the caller's to keep.

        Args:
            batches: as `run` takes them.

        Raises:
            HspanError: as `run`; results of batches before the one that failed may be lost.
        """
        for batch in batches:
            yield self.run(batch)

    def _checked_input(self, batch: Float32Array) -> Float32Array:
        if batch.dtype != np.float32:
            raise HspanError(self.where, f"expected a float32 input, got {batch.dtype}")
        self.require_shape(batch.shape, "input")
        return np.ascontiguousarray(batch)

    def _check_output(self, shape: tuple[int, ...], output: Float32Array) -> None:
        n, _, height, width = shape
        expected = (n, CHANNELS, height * self.scale, width * self.scale)
        if output.shape != expected:
            raise HspanError(
                self.where, f"gave an output of shape {output.shape}, expected {expected}", "export it again"
            )

    def __enter__(self: _RunnerT) -> _RunnerT:
        try:
            self.activate()
        except BaseException:
            self.deactivate()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.deactivate()
