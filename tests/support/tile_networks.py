"""A network whose result shows where tiles were cut, simple enough to be written in C++ with the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from support.runner_doubles import NearestRunner
from trt_hspan.runtime.runner import Float32Array, ShapeLimit


class BoundedRunner(NearestRunner):
    """A network of neighborhoods, with a profile: each output pixel depends on the tile it is computed in."""

    def __init__(
        self,
        least: tuple[int, int],
        largest: tuple[int, int],
        *,
        scale: int = 2,
        more: Sequence[tuple[tuple[int, int], tuple[int, int]]] = (),
    ) -> None:
        super().__init__(scale=scale)
        self._least, self._largest, self._more = least, largest, more

    @property
    def shape_ranges(self) -> tuple[tuple[ShapeLimit, ShapeLimit], ...]:
        """The first profile, and those of `more`."""
        return tuple(
            ((1, 3, *low), (1, 3, *high)) for low, high in ((self._least, self._largest), *self._more)
        )

    def infer(self, batch: Float32Array) -> Float32Array:
        return np.stack([neighbors_network(item, self.factor) for item in batch])


def neighbors_network(image: Float32Array, scale: int = 2) -> Float32Array:
    """(3, h, w) -> (3, scale h, scale w): neighbors mixed, zeros around the tile, pixels repeated."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    mixed = (
        padded[:, 1:-1, 1:-1] + padded[:, :-2, 1:-1] * np.float32(0.25) + padded[:, 1:-1, 2:]
    ) / np.float32(3)
    return mixed.repeat(scale, axis=1).repeat(scale, axis=2)
