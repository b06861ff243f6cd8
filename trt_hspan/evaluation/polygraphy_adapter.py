"""Our runners in the shape that Polygraphy's Comparator takes."""

from __future__ import annotations

import functools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_hspan.errors import HspanError
from trt_hspan.graph import INPUT_NAME, OUTPUT_NAME
from trt_hspan.machine.install_advice import install_command
from trt_hspan.runtime.runner import CHANNELS, Float32Array, Runner


@dataclass(frozen=True)
class Run:
    """One network's output (N, 3, sH, sW) float32 on a batch, and the wall time that it took."""

    output: Float32Array
    seconds: float


def run_and_compare(
    runners: Sequence[Runner],
    batch: Float32Array,
    matches: Callable[[Float32Array, Float32Array], bool],
    infer: Callable[[Runner, Float32Array], Float32Array],
) -> list[Run]:
    """Runs active runners on one batch, then compares the first one's output with each other's, by Polygraphy.

    Polygraphy runs one after the other and logs statistics of the outputs when debug messages are on.

    Args:
        runners: the first is the reference.
        batch: (N, 3, H, W) float32.
        matches: called with the reference's and another's output, in the runners' order; says whether they agree.
        infer: how a runner is given a batch.
    """
    _quiet_polygraphy()
    from polygraphy.comparator import Comparator

    def compare(expected: Any, actual: Any) -> OrderedDict[str, bool]:
        return OrderedDict({OUTPUT_NAME: matches(expected[OUTPUT_NAME], actual[OUTPUT_NAME])})

    adapted = [_adapted_runner_class()(runner, infer, index) for index, runner in enumerate(runners)]
    results = Comparator.run(adapted, data_loader=[{INPUT_NAME: batch}])
    pairs = [(0, index) for index in range(1, len(adapted))]
    with np.errstate(all="ignore"):  # its statistics of infinite outputs
        Comparator.compare_accuracy(results, comparisons=pairs, compare_func=compare)
    runs = [results[runner.name][0] for runner in adapted]
    return [Run(result[OUTPUT_NAME], float(result.runtime)) for result in runs]


@functools.cache
def _adapted_runner_class() -> Any:
    from polygraphy.backend.base import BaseRunner
    from polygraphy.common import TensorMetadata

    class AdaptedRunner(BaseRunner):  # type: ignore[misc]  # Polygraphy ships no types
        """A runner that is active already; Polygraphy's own activation has nothing left to do."""

        def __init__(
            self, runner: Runner, infer: Callable[[Runner, Float32Array], Float32Array], index: int
        ) -> None:
            super().__init__(name=f"{index}: {runner.label}", prefix=runner.label)
            self._runner, self._infer = runner, infer

        def get_input_metadata_impl(self) -> Any:
            return TensorMetadata().add(INPUT_NAME, dtype=np.float32, shape=(-1, CHANNELS, -1, -1))

        def infer_impl(self, feed_dict: dict[str, Float32Array]) -> OrderedDict[str, Float32Array]:
            started = time.perf_counter()
            output = self._infer(self._runner, feed_dict[INPUT_NAME])
            self.inference_time = time.perf_counter() - started
            return OrderedDict({OUTPUT_NAME: output})

    return AdaptedRunner


def _quiet_polygraphy() -> None:
    """Polygraphy prints to stdout by default, which would spoil `--json`. Here it reports to `logging` under its own
    name, and only where debug messages are on.
    """
    try:
        from polygraphy import logger
    except ImportError as error:
        raise HspanError("polygraphy", "is not installed", install_command("export")) from error
    log = logger.G_LOGGER
    log.use_python_logging_system = True
    log.colors = False
    log.letter = False
    debugging = logging.getLogger("Polygraphy").isEnabledFor(logging.DEBUG)
    log.module_severity = log.INFO if debugging else log.CRITICAL + 1
