"""The start of a training: a network that begins as an interpolation."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from trt_hspan.model.config import HspanConfig
from trt_hspan.model.hspan import HSPAN, HighSimilarityPassAttention

# Lagrange interpolation through three neighbors, a quarter pixel before and after the middle one.
_BEFORE: Final = torch.tensor([5 / 32, 15 / 16, -3 / 32])
_PHASES: Final = (_BEFORE, _BEFORE.flip(0))
_MIDDLE: Final = torch.tensor([0.0, 1.0, 0.0])


def initial_network(config: HspanConfig, *, seed: int) -> HSPAN:
    """A network whose output is close to a quadratic interpolation of its input, before any training.

    The first three feature channels carry the picture from the head to the last convolution; the upsampler's
    kernels for them interpolate. The other channels start random; residual branches and the last
    convolution's view of the other channels start small. Queries and keys start alike, so that the first
    scores measure similarity.

    Args:
        config: sizes; scale 2 or 4. `res_scale` is best 1 in training, see `tools.training.rescaling`.
        seed: of the random weights.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = HSPAN(config)
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d) and not name.endswith("_mean"):
                assert module.bias is not None
                nn.init.normal_(module.weight, std=_gain(name, config) / module.weight[0].numel() ** 0.5)
                nn.init.zeros_(module.bias)
        for module in model.modules():
            if isinstance(module, HighSimilarityPassAttention):
                module.conv_match2.load_state_dict(module.conv_match1.state_dict())
        weights = dict(model.named_parameters())
        for channel in range(3):
            weights["head.0.weight"][channel] = _kernel(channel, 3, _MIDDLE, _MIDDLE)
            weights["tail.1.weight"][channel, channel] = torch.outer(_MIDDLE, _MIDDLE)
            for stage in range(len(config.upsampler_factors)):
                for phase in range(4):
                    kernel = _kernel(channel, config.n_feats, _PHASES[phase // 2], _PHASES[phase % 2])
                    weights[f"tail.0.{2 * stage}.weight"][4 * channel + phase] = kernel
    return model


def _gain(name: str, config: HspanConfig) -> float:
    """Standard deviation of a convolution's weights times sqrt(fan-in)."""
    if name == "tail.1":
        return 0.03
    if name == f"body.{config.n_groups}" or name.endswith(f"body.{config.n_blocks + 1}"):
        return 0.1
    if name.endswith("body.2"):
        return 0.3
    if "conv_match" in name:
        return 2.0
    return 1.4 if name.endswith("body.0") else 1.0


def _kernel(channel: int, inputs: int, rows: Tensor, columns: Tensor) -> Tensor:
    """(inputs, 3, 3): a separable kernel that sees one input channel."""
    kernel = torch.zeros(inputs, 3, 3)
    kernel[channel] = torch.outer(rows, columns)
    return kernel
