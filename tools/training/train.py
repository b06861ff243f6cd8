"""The command that trains a small HSPAN on a CPU. Run again with the same folder, it resumes."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from tools.running import exit_code
from tools.training.curve import write_curve
from tools.training.data import load_pairs
from tools.training.loop import (
    Report,
    Training,
    TrainingConfig,
    export_averaged,
    sole_training_in,
    train,
)
from trt_hspan.machine.memory import keep_freed_memory


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train_demo", description=__doc__)
    parser.add_argument("--scale", type=int, choices=(2, 4), default=4)
    parser.add_argument("--steps", type=int, default=15000, help="of the whole schedule")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("training-output/data"))
    parser.add_argument("--output", type=Path, help="the run's folder [training-output/hspan-tiny-xSCALE]")
    parser.add_argument("--export", type=Path, help="no training: write the averaged weights so far there")
    return parser.parse_args()


def _train(arguments: argparse.Namespace, folder: Path) -> None:
    config = TrainingConfig(scale=arguments.scale, steps=arguments.steps, seed=arguments.seed)
    training = Training(config, load_pairs(arguments.data / "train", config.scale))
    held_out = load_pairs(arguments.data / "heldout", config.scale)
    if (folder / "checkpoint.pt").exists():
        training.restore(folder / "checkpoint.pt")
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("first steps", total=config.steps, completed=training.step_count)
        psnr = ""

        def show(report: Report) -> None:
            nonlocal psnr
            psnr = psnr if report.psnr_db is None else f", held-out {report.psnr_db:.2f} dB"
            bar.update(task, completed=report.step, description=f"loss {report.loss:.5f}{psnr}")

        train(training, folder, held_out, on_report=show)
    print(f"{folder}: {training.step_count} of {config.steps} steps")


def main() -> int:
    """Trains, or exports what is trained so far. Returns: the exit code."""
    arguments = _arguments()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    return exit_code("train_demo", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    folder = arguments.output or Path(f"training-output/hspan-tiny-x{arguments.scale}")
    if arguments.export:
        print(*export_averaged(folder / "checkpoint.pt", arguments.export).items(), sep="\n")
    else:
        with sole_training_in(folder):
            _train(arguments, folder)
    write_curve(folder / "log.jsonl", folder / "curve.png")
