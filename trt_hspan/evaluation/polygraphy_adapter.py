"""Our runners in the shape that Polygraphy's Comparator takes. Owns the translation, measures nothing."""

from __future__ import annotations

import functools
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from trt_hspan.graph import INPUT_NAME, OUTPUT_NAME
from trt_hspan.runtime.polygraphy_setup import quiet_polygraphy
from trt_hspan.runtime.runner import Float32Array, Runner


def run_and_compare(
    reference: Runner,
    candidate: Runner,
    batch: Float32Array,
    matches: Callable[[Float32Array, Float32Array], bool],
) -> None:
    """Runs two active runners on one batch, then compares their outputs, with Polygraphy's Comparator.

    Polygraphy checks the input against what each runner takes, runs one after the other, and logs statistics
    of both outputs when debug messages are wanted.

    Args:
        reference: runs first.
        candidate: runs second.
        batch: (N, 3, H, W) float32.
        matches: called once with the reference's and the candidate's output; says whether they agree.

    Raises:
        HspanError: as `Runner.run`.
    """
    quiet_polygraphy()
    from polygraphy.comparator import Comparator

    def compare(expected: Any, found: Any) -> OrderedDict[str, bool]:
        return OrderedDict({OUTPUT_NAME: matches(expected[OUTPUT_NAME], found[OUTPUT_NAME])})

    adapted = _adapted_runner_class()
    results = Comparator.run([adapted(reference), adapted(candidate)], data_loader=[{INPUT_NAME: batch}])
    with np.errstate(all="ignore"):  # its statistics of outputs that hold infinities
        Comparator.compare_accuracy(results, compare_func=compare)


@functools.cache
def _adapted_runner_class() -> Any:
    from polygraphy.backend.base import BaseRunner
    from polygraphy.common import TensorMetadata

    class AdaptedRunner(BaseRunner):  # type: ignore[misc]  # Polygraphy ships no types
        """A runner that is active already; Polygraphy's own activation has nothing left to do."""

        def __init__(self, runner: Runner) -> None:
            super().__init__(name=runner.label, prefix=runner.label)
            self._runner = runner

        def get_input_metadata_impl(self) -> Any:
            shape = tuple(-1 if size is None else size for size in self._runner.fixed_shape)
            return TensorMetadata().add(INPUT_NAME, dtype=np.float32, shape=shape)

        def infer_impl(self, feed_dict: dict[str, Float32Array]) -> OrderedDict[str, Float32Array]:
            started = time.perf_counter()
            output = self._runner.run(feed_dict[INPUT_NAME])
            self.inference_time = time.perf_counter() - started
            return OrderedDict({OUTPUT_NAME: output})

    return AdaptedRunner
