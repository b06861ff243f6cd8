"""A controlled comparison of attention: one network trained four ways on the same batches from the same weights.

The four take turns, step by step, so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from tools.running import exit_code
from tools.training.attention_kinds import with_random_regions, with_softmax_attention, without_attention
from tools.training.data import Pair, load_pairs, upscaled_pixels
from tools.training.figures import attention_samples
from tools.training.loop import Training, TrainingConfig, sole_training_in, stop_requested
from tools.training.tables import markdown_table, support_table
from trt_hspan import HSPAN
from trt_hspan.errors import HspanError
from trt_hspan.evaluation.metrics import psnr_y
from trt_hspan.evaluation.resize import bicubic_pixels
from trt_hspan.files import atomic_path
from trt_hspan.machine.memory import keep_freed_memory

KINDS: Final[Mapping[str, Callable[[HSPAN], HSPAN]]] = {
    "no attention": without_attention,
    "softmax": with_softmax_attention,
    "softmax, random regions": with_random_regions,
    "HSPA": lambda network: network,
}
_SAVE_S: Final = 120.0
_TIMED_STEPS: Final = 5
_SAMPLED_ROWS: Final = 512
# Of the steps: those that the averaged weights are an average of.
_AVERAGED_SHARE: Final = 0.1


class Comparison:
    """The state of the trainings, in one folder each."""

    def __init__(self, config: TrainingConfig, pairs: list[Pair], folder: Path) -> None:
        self.trainings = {kind: Training(config, pairs, changed) for kind, changed in KINDS.items()}
        self._checkpoints = {kind: folder / kind.replace(", ", "-").replace(" ", "-") for kind in KINDS}
        for kind, training in self.trainings.items():
            if self._checkpoints[kind].is_file():
                training.restore(self._checkpoints[kind])

    @property
    def step_count(self) -> int:
        """Steps that all of them have."""
        return min(training.step_count for training in self.trainings.values())

    def step(self) -> None:
        """One batch for each that has no more steps than the others."""
        target = self.step_count + 1
        for training in self.trainings.values():
            if training.step_count < target:
                training.step()

    def save(self) -> None:
        """Each whole or not at all; one that is a few steps behind after a failure catches up."""
        for kind, training in self.trainings.items():
            training.save(self._checkpoints[kind])

    def train(self, *, on_step: Callable[[int], None] = lambda step: None) -> None:
        """To the last step, or to SIGINT or SIGTERM; either way the checkpoints are up to date at the end."""
        steps = next(iter(self.trainings.values())).config.steps
        saved_at = time.monotonic()
        with stop_requested() as stopped:
            while self.step_count < steps and not stopped():
                self.step()
                on_step(self.step_count)
                if time.monotonic() - saved_at > _SAVE_S:
                    self.save()
                    saved_at = time.monotonic()
        self.save()

    def psnrs_db(self, pairs: list[Pair]) -> dict[str, list[float]]:
        """PSNR-Y of each picture, attention over all of it: of bicubic interpolation, then of the averaged networks."""
        scale = next(iter(self.trainings.values())).config.scale
        psnrs = {"bicubic": [psnr_y(bicubic_pixels(pair.low, scale), pair.high, scale) for pair in pairs]}
        for kind, training in self.trainings.items():
            network = training.averaged_network.eval()
            psnrs[kind] = [psnr_y(upscaled_pixels(network, pair.low), pair.high, scale) for pair in pairs]
        return psnrs


def steps_in(minutes: float, config: TrainingConfig, pairs: list[Pair]) -> int:
    """How many steps of the slowest kind take so long; a few steps of each are timed."""
    seconds = []
    for changed in KINDS.values():
        training = Training(config, pairs, changed)
        training.step()  # the first one prepares
        started = time.perf_counter()
        for _ in range(_TIMED_STEPS):
            training.step()
        seconds.append((time.perf_counter() - started) / _TIMED_STEPS)
    return max(1, round(60 * minutes / max(seconds)))


def psnr_table(psnrs_db: Mapping[str, list[float]], names: list[str]) -> str:
    """One line per picture and the means."""
    rows = [
        [name, *(f"{values[index]:.2f}" for values in psnrs_db.values())] for index, name in enumerate(names)
    ]
    rows.append(["**mean**", *(f"{np.mean(values):.3f}" for values in psnrs_db.values())])
    return markdown_table(["picture", *psnrs_db], rows)


def kinds_table(comparison: Comparison, psnrs_db: Mapping[str, list[float]]) -> str:
    """One line per kind: its mean, how it stands against no attention, and its time."""
    without = np.array(psnrs_db["no attention"])
    rows = []
    for kind, training in comparison.trainings.items():
        gains = np.array(psnrs_db[kind]) - without
        rows.append(
            [
                kind,
                f"{np.mean(psnrs_db[kind]):.3f}",
                f"{gains.mean():+.3f}",
                f"{int((gains > 0).sum())} of {len(gains)}",
                f"{training.cpu_s / 60:.1f}",
            ]
        )
    head = ["attention", "PSNR-Y", "against none", "pictures above none", "minutes of CPU"]
    return markdown_table(head, rows)


def main() -> int:
    """Trains and prints the tables. Returns: the exit code."""
    parser = argparse.ArgumentParser(prog="compare_attention", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="of each training")
    length.add_argument(
        "--minutes", type=float, default=30.0, help="as many steps as the slowest does in [30]"
    )
    parser.add_argument("--scale", type=int, choices=(2, 4), default=4)
    parser.add_argument("--batch", type=int, default=8, help="patches in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=Path("training-output/data"))
    parser.add_argument(
        "--output", type=Path, default=Path("training-output/attention"), help="resumes there"
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    return exit_code("compare_attention", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    config = TrainingConfig(scale=arguments.scale, batch=arguments.batch, seed=arguments.seed)
    pairs = load_pairs(arguments.data / "train", config.scale)
    held_out = load_pairs(arguments.data / "heldout", config.scale)
    with sole_training_in(arguments.output):
        plan = arguments.output / "plan.json"
        if arguments.steps is None and plan.is_file():
            steps = int(json.loads(plan.read_text())["steps"])
        else:
            steps = arguments.steps or steps_in(arguments.minutes, config, pairs)
        config = replace(config, steps=steps, average_decay=1 - 1 / max(1, _AVERAGED_SHARE * steps))
        with atomic_path(plan) as temporary:
            temporary.write_text(json.dumps(asdict(config)))
        comparison = Comparison(config, pairs, arguments.output)
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("training", total=steps, completed=comparison.step_count)
            comparison.train(on_step=lambda step: bar.update(task, completed=step))
        done = f"{comparison.step_count} of {steps} steps of {config.batch} patches"
        print(f"{done}, seed {config.seed}, scale {config.scale}\n")
        if comparison.step_count < steps:
            raise HspanError(arguments.output, "is stopped before its last step", "run it again to go on")
        psnrs = comparison.psnrs_db(held_out)
        print(kinds_table(comparison, psnrs), psnr_table(psnrs, [p.name for p in held_out]), sep="\n\n")
        for kind in ("softmax", "HSPA"):
            network = comparison.trainings[kind].averaged_network
            samples = attention_samples(
                network, held_out[0].name, held_out[0].low, rows=_SAMPLED_ROWS, seed=0
            )
            print(f"\nScores of the network trained with {kind}:\n", support_table(samples), sep="\n")
