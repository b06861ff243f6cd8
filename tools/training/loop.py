"""The training loop: L1 loss, Adam, warm-up and cosine decay, averaged weights; resumable to the bit.

What a run leaves in its folder: `checkpoint.pt` (everything that resuming needs), `log.jsonl` (one line per
report) and `curve.png`.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tools.training.data import Pair, PatchSampler, upscaled_pixels
from tools.training.network import initial_network
from tools.training.rescaling import rescaled_network
from trt_hspan import HSPAN, HspanConfig, save_checkpoint
from trt_hspan.errors import HspanError
from trt_hspan.evaluation.metrics import psnr_y
from trt_hspan.files import atomic_path


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One run. `steps` may change when a run is resumed, the schedule then follows the new total; so may the decay."""

    scale: int
    n_feats: int = 32
    n_groups: int = 2
    n_blocks: int = 2
    steps: int = 15000
    batch: int = 8
    patch: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    average_decay: float = 0.999
    seed: int = 0

    @property
    def network(self) -> HspanConfig:
        return HspanConfig(
            n_feats=self.n_feats,
            n_groups=self.n_groups,
            n_blocks=self.n_blocks,
            scale=self.scale,
            res_scale=1.0,
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """One line of the log. Times add up over resumed runs; `psnr_db` is that of the averaged weights."""

    step: int
    loss: float
    learning_rate: float
    wall_s: float
    cpu_s: float
    psnr_db: float | None = None


class Training:
    """The state of a run: network, averaged network, optimizer, sampler, counters.

    `changed` gives what is trained in place of the network that it gets, such as one with other attention.
    """

    def __init__(
        self,
        config: TrainingConfig,
        pairs: list[Pair],
        changed: Callable[[HSPAN], HSPAN] = lambda network: network,
    ) -> None:
        self.config = config
        self.model = changed(initial_network(config.network, seed=config.seed)).train()
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = get_ema_multi_avg_fn(config.average_decay)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(self.model, multi_avg_fn=average)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, betas=(0.9, 0.99))
        self.sampler = PatchSampler(pairs, scale=config.scale, patch=config.patch, seed=config.seed)
        self.step_count = 0
        self.wall_s = 0.0
        self.cpu_s = 0.0

    @property
    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to a hundredth of the peak at the last step."""
        config, step = self.config, self.step_count
        rise, share = min(1.0, (step + 1) / config.warmup_steps), min(1.0, step / config.steps)
        return config.learning_rate * rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))

    def step(self) -> float:
        """One batch; returns its loss."""
        wall, cpu = time.perf_counter(), time.process_time()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        low, high = self.sampler.batch(self.config.batch)
        loss = F.l1_loss(self.model(low), high)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.averaged.update_parameters(self.model)
        self.step_count += 1
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu
        return float(loss.detach())

    def save(self, path: Path) -> None:
        """Writes everything that resuming needs, whole or not at all."""
        state = {
            "config": asdict(self.config),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state,
            "counters": (self.step_count, self.wall_s, self.cpu_s),
        }
        with atomic_path(path) as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path) -> None:
        """Continues from `save`. Raises: HspanError when the checkpoint is of another network."""
        state = load_checkpoint(path)
        saved = TrainingConfig(**state["config"])
        if replace(saved, steps=self.config.steps, average_decay=self.config.average_decay) != self.config:
            raise HspanError(path, f"is of another run: {saved}", "use another folder or the same settings")
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.state = state["sampler"]
        self.step_count, self.wall_s, self.cpu_s = state["counters"]

    @property
    def averaged_network(self) -> HSPAN:
        network = self.averaged.module
        assert isinstance(network, HSPAN)
        return network


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `Training.save` wrote. Raises: HspanError when there is none."""
    if not path.is_file():
        raise HspanError(path, "no such checkpoint", "start a run first")
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def export_averaged(checkpoint: Path, target: Path) -> dict[str, str]:
    """Writes the averaged weights in the official layout and scaling; returns the file's metadata.

    Args:
        checkpoint: what `Training.save` wrote.
        target: a `.safetensors` file.
    """
    state = load_checkpoint(checkpoint)
    config = TrainingConfig(**state["config"])
    model = HSPAN(config.network)
    averaged = {key[7:]: value for key, value in state["averaged"].items() if key.startswith("module.")}
    model.load_state_dict(averaged)
    step, wall_s, cpu_s = state["counters"]
    official = rescaled_network(model, res_scale=0.1)
    metadata = {
        "architecture": official.config.name,
        "res_scale": "0.1",
        "training_steps": f"{step} of a schedule of {config.steps}",
        "training_settings": json.dumps(asdict(config)),
        "training_wall_s": f"{wall_s:.0f}",
        "training_cpu_s": f"{cpu_s:.0f}",
        "license": "Apache-2.0",
    }
    save_checkpoint(official, target, metadata=metadata)
    return metadata


def quick_psnr_db(model: HSPAN, pairs: list[Pair], *, side: int = 48) -> float:
    """Mean PSNR-Y over the middle of each picture, at most side x side low-resolution pixels."""
    scale = model.config.scale
    figures = []
    for pair in pairs:
        y, x = (max(0, (length - side) // 2) for length in pair.low.shape[:2])
        low = pair.low[y : y + side, x : x + side]
        high = pair.high[y * scale : (y + side) * scale, x * scale : (x + side) * scale]
        figures.append(psnr_y(upscaled_pixels(model, low), high, scale))
    return float(np.mean(figures))


def train(
    training: Training,
    folder: Path,
    held_out: list[Pair],
    *,
    report_steps: int = 100,
    psnr_steps: int = 500,
    save_s: float = 180.0,
    on_report: Callable[[Report], None] = lambda report: None,
) -> None:
    """Runs to the last step, or to SIGINT or SIGTERM; either way the checkpoint is up to date at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / "checkpoint.pt", folder / "log.jsonl"
    saved_at, losses = time.monotonic(), []
    with stop_requested() as stopped, log.open("a") as stream:
        while training.step_count < training.config.steps and not stopped():
            rate = training.learning_rate
            losses.append(training.step())
            step = training.step_count
            if step % report_steps == 0 or step == training.config.steps:
                watch = step % psnr_steps == 0 or step == training.config.steps
                psnr = quick_psnr_db(training.averaged_network, held_out) if watch and held_out else None
                loss, losses = float(np.mean(losses)), []
                report = Report(
                    step=step,
                    loss=loss,
                    learning_rate=rate,
                    wall_s=round(training.wall_s, 1),
                    cpu_s=round(training.cpu_s, 1),
                    psnr_db=psnr,
                )
                stream.write(json.dumps(asdict(report)) + "\n")
                stream.flush()
                on_report(report)
            if time.monotonic() - saved_at > save_s:
                training.save(checkpoint)
                saved_at = time.monotonic()
        training.save(checkpoint)


@contextmanager
def sole_training_in(folder: Path) -> Iterator[None]:
    """Creates the folder and keeps its lock. Raises: HspanError when another process trains there."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "training.lock", timeout=0):
            yield
    except Timeout:
        raise HspanError(folder, "another training runs in this folder", "stop it or use --output") from None


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Turns SIGINT and SIGTERM into a question that the loop asks."""
    signals: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.signal(kind, lambda number, _: signals.append(number)) for kind in kinds}
    try:
        yield lambda: bool(signals)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
