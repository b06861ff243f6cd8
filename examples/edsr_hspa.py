"""A network of one's own with HSPA blocks, from training to TensorRT engines.

    python examples/edsr_hspa.py            # x2 super-resolution
    python examples/edsr_hspa.py --scale 1  # restoration: takes noise away

An EDSR-like network (Lim et al., 2017) with bicubic skip is trained for a few dozen steps on the photographs that come
with trt-hspan, which is enough to follow it through every step and far too little to be good. Needs PyTorch, ONNX
Runtime and tensorrt-rtx (`pip install trt-hspan[export,rtx]`), the plugin (`trt-hspan plugin build`), and no GPU.
"""

from __future__ import annotations

import argparse
import random
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
NOISE = 0.06  # of the restoration network: its standard deviation, for pixels in 0..1


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = features + 0.1 * self.body(features)
        return result


class EdsrHspa(nn.Module):
    """(N, 3, H, W) in 0..1 -> (N, 3, scale * H, scale * W). Groups of residual blocks, each with an HSPA block."""

    def __init__(self, scale: int, channels: int = 24, groups: int = 2, blocks: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        parts: list[nn.Module] = []
        for _ in range(groups):
            parts += [ResidualBlock(channels) for _ in range(blocks)]
            parts.append(trt_hspan.HighSimilarityPassAttention(channels, res_scale=0.1))
        self.body = nn.Sequential(*parts, nn.Conv2d(channels, channels, 3, padding=1))
        self.tail = nn.Sequential(
            nn.Conv2d(channels, channels * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
            nn.Conv2d(channels, 3, 3, padding=1),
        )
        nn.init.zeros_(self.tail[2].weight)  # training starts at the skip alone
        nn.init.zeros_(self.tail[2].bias)

    def forward(self, image: Tensor) -> Tensor:
        skip = image
        if self.scale > 1:
            skip = functional.interpolate(image, scale_factor=self.scale, mode="bicubic", align_corners=False)
        features = self.head(image)
        result: Tensor = skip + self.tail(features + self.body(features))
        return result


def degraded(truth: Tensor, scale: int) -> Tensor:
    """What the network gets to see of a picture: smaller, or with noise."""
    if scale == 1:
        return (truth + NOISE * torch.randn_like(truth)).clamp(0, 1)
    return functional.interpolate(truth, scale_factor=1 / scale, mode="bicubic", antialias=True).clamp(0, 1)


def tensor_of(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def save_picture(picture: Tensor, path: Path) -> None:
    pixels = (picture[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(path)


def trained(scale: int, steps: int, side: int = 24) -> EdsrHspa:
    """Trained on all photographs but the last two."""
    torch.manual_seed(0)
    random.seed(0)
    network, pictures = EdsrHspa(scale), [tensor_of(path) for path in PHOTOGRAPHS[:-2]]
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-4)
    for step in range(steps):
        size, crops = side * scale, []
        for picture in random.sample(pictures, 4):
            top, left = (random.randrange(length - size) for length in picture.shape[2:])
            crops.append(picture[:, :, top : top + size, left : left + size])
        truth = torch.cat(crops)
        loss = functional.l1_loss(network(degraded(truth, scale)), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: L1 {loss.item():.4f}")
    return network.eval()


def write_set(folder: Path, scale: int, side: int = 96) -> Path:
    """The middle of the last two photographs in the layout of benchmark sets: ground truth and the network's input."""
    high, low = folder / "HR", folder / "LR_bicubic" / f"X{scale}"
    high.mkdir(parents=True, exist_ok=True)
    low.mkdir(parents=True, exist_ok=True)
    for path in PHOTOGRAPHS[-2:]:
        truth = tensor_of(path)[:, :, 100 : 100 + side, 100 : 100 + side]
        save_picture(truth, high / f"{path.stem}.png")
        save_picture(degraded(truth, scale), low / f"{path.stem}x{scale}.png")
    return folder


def run(*words: object) -> None:
    """A command as it is typed."""
    line = ["trt-hspan", *map(str, words)]
    print("$", *line, flush=True)
    subprocess.run([sys.executable, "-m", "trt_hspan", *line[1:]], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="A network of one's own, from training to TensorRT engines.")
    parser.add_argument("--scale", type=int, default=2, choices=[1, 2, 3, 4], help="1 takes noise away")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path("edsr_hspa"), help="folder for all files")
    options = parser.parse_args()
    folder = options.output
    pictures = write_set(folder / "set", options.scale)

    network = trained(options.scale, options.steps)
    onnx.save(trt_hspan.onnx_from_model(network), folder / "edsr.onnx")  # checked against the module
    run("quantize", folder / "edsr.onnx", "-o", folder / "edsr_int8.onnx", "--calibration", pictures,
        "--held-out", pictures, "--budget-db", 0.1, "--tiles", 8)  # fmt: skip
    rtx = ("--flavor", "tensorrt-rtx", "--attention", "plugin")
    run("build", "--onnx", folder / "edsr.onnx", "--precision", "fp16", *rtx, "-o", folder / "edsr_fp16.plan")
    run("build", "--onnx", folder / "edsr_int8.onnx", *rtx, "-o", folder / "edsr_int8.plan")
    run("validate", folder / "edsr_fp16.plan", folder / "edsr_int8.plan", "--reference", folder / "edsr.onnx",
        "--images", pictures, "--budget-db", 0.1)  # fmt: skip
    run("upscale", next((pictures / "LR_bicubic").rglob("*.png")), "--engine", folder / "edsr_int8.plan",
        "-o", folder / "result.png")  # fmt: skip
    report = trt_hspan.validate(folder / "edsr_fp16.plan", network, pictures)  # the same, against the module
    print(f"FP16 against PyTorch: {report.total.worst_psnr_db:.1f} dB")


if __name__ == "__main__":
    main()
