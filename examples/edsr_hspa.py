"""A network of one's own with HSPA blocks, from training to TensorRT engines.

    python examples/edsr_hspa.py            # x2 super-resolution
    python examples/edsr_hspa.py --scale 1  # restoration: takes noise away

An EDSR-like network (Lim et al., 2017) with bicubic skip is trained for a few dozen steps on the photographs that come
with trt-hspan: enough to follow it through every step, far too little to be good. Needs PyTorch, ONNX Runtime,
tensorrt-rtx, the plugin (`trt-hspan plugin build`), and no GPU."""

from __future__ import annotations

import argparse
import random
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import trt_hspan

PHOTOGRAPHS = sorted((Path(trt_hspan.__file__).parent / "data" / "calibration").glob("*.jpg"))
RTX = "--flavor tensorrt-rtx --attention plugin"


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels), nn.ReLU(), conv(channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = features + 0.1 * self.body(features)
        return result


class EdsrHspa(nn.Module):
    """(N, 3, H, W) in 0..1 -> (N, 3, scale * H, scale * W). Groups of residual blocks, each with an HSPA block."""

    def __init__(self, scale: int, channels: int = 24, groups: int = 2, blocks: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.head = conv(3, channels)
        parts: list[nn.Module] = []
        for _ in range(groups):
            parts += [ResidualBlock(channels) for _ in range(blocks)]
            parts.append(trt_hspan.HighSimilarityPassAttention(channels, res_scale=0.1))
        self.body = nn.Sequential(*parts, conv(channels, channels))
        self.up = nn.Sequential(conv(channels, channels * scale**2), nn.PixelShuffle(scale))
        self.tail = conv(channels, 3)
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)  # training starts at the skip alone

    def forward(self, image: Tensor) -> Tensor:
        up = self.scale > 1
        skip = functional.interpolate(image, scale_factor=self.scale, mode="bicubic") if up else image
        features = self.head(image)
        result: Tensor = skip + self.tail(self.up(features + self.body(features)))
        return result


def degraded(truth: Tensor, scale: int) -> Tensor:
    """What the network gets to see of a picture: smaller, or with noise."""
    if scale == 1:
        return (truth + 0.06 * torch.randn_like(truth)).clamp(0, 1)
    return functional.interpolate(truth, scale_factor=1 / scale, mode="bicubic", antialias=True).clamp(0, 1)


def tensor_of(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def save_picture(picture: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (picture[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(path)


def trained(scale: int, steps: int, side: int = 24) -> EdsrHspa:
    """Trained on all photographs but the last two."""
    torch.manual_seed(0)
    random.seed(0)
    network, pictures = EdsrHspa(scale), [tensor_of(path) for path in PHOTOGRAPHS[:-2]]
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-4)
    for step in range(1, steps + 1):
        size, crops = side * scale, []
        for picture in random.sample(pictures, 4):
            top, left = (random.randrange(length - size) for length in picture.shape[2:])
            crops.append(picture[:, :, top : top + size, left : left + size])
        truth = torch.cat(crops)
        loss = functional.l1_loss(network(degraded(truth, scale)), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} of {steps}: L1 {loss.item():.4f}")
    return network.eval()


def write_set(folder: Path, scale: int, side: int = 96) -> Path:
    """Parts of the last two photographs as a benchmark set, ground truth and inputs; the last input is returned."""
    for path in PHOTOGRAPHS[-2:]:
        truth = tensor_of(path)[:, :, 100 : 100 + side, 100 : 100 + side]
        low = folder / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png"
        save_picture(truth, folder / "HR" / f"{path.stem}.png")
        save_picture(degraded(truth, scale), low)
    return low


def run(words: str, folder: Path) -> None:
    """A command as it is typed in the folder."""
    print("$", words, flush=True)
    subprocess.run([sys.executable, "-m", "trt_hspan", *shlex.split(words)[1:]], check=True, cwd=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="A network of one's own, from training to TensorRT engines.")
    parser.add_argument("--scale", type=int, default=2, choices=[1, 2, 3, 4], help="1 takes noise away")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path("edsr_hspa"), help="folder for all files")
    options = parser.parse_args()
    folder = options.output
    picture = write_set(folder / "set", options.scale).relative_to(folder)

    network = trained(options.scale, options.steps)
    onnx.save(trt_hspan.onnx_from_model(network), folder / "edsr.onnx")  # run once against the module
    pictures = "--calibration set --held-out set --tiles 8"
    run(f"trt-hspan quantize edsr.onnx -o int8.onnx {pictures} --budget-db 0.1", folder)
    run(f"trt-hspan build --onnx edsr.onnx --precision fp16 {RTX} -o fp16.plan", folder)
    run(f"trt-hspan build --onnx int8.onnx {RTX} -o int8_engine.plan", folder)
    run(
        "trt-hspan validate fp16.plan int8_engine.plan --reference edsr.onnx --images set --budget-db 0.1",
        folder,
    )
    run(f"trt-hspan upscale {picture} --engine int8_engine.plan -o result.png", folder)
    report = trt_hspan.validate(folder / "fp16.plan", network, folder / "set")  # the same, against the module
    print(f"FP16 against PyTorch: {report.total.worst_psnr_db:.1f} dB")


if __name__ == "__main__":
    main()
