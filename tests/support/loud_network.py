"""An HSPAN that computes what another one does, with features that are larger by a power of two."""

from __future__ import annotations

from pathlib import Path

import torch

from trt_hspan import load_model, save_checkpoint
from trt_hspan.model.hspan import HSPAN


def loud_network(model: HSPAN, factor: float) -> HSPAN:
    """Scales every feature between head and last convolution by `factor`, and the last convolution back.

    ReLU and PReLU are positively homogeneous, attention is linear in its value; query and key are scaled back,
    so that scores stay. Factors that are powers of two change no rounding: the outputs are equal bit for bit.
    """
    with torch.no_grad():
        model.head[0].weight *= factor
        model.head[0].bias *= factor
        for module in model.body[:-1]:
            *blocks, attention, convolution = module.body
            for block in blocks:
                block.body[0].bias *= factor
                block.body[2].bias *= factor
            attention.conv_match1[0].weight /= factor
            attention.conv_match2[0].weight /= factor
            attention.conv_assembly[0].bias *= factor
            convolution.bias *= factor
        model.body[-1].bias *= factor
        for layer in model.tail[0]:
            if isinstance(layer, torch.nn.Conv2d):
                layer.bias *= factor
        model.tail[1].weight /= factor
    return model


def write_loud_checkpoint(source: Path, target: Path, *, factor: float) -> Path:
    save_checkpoint(loud_network(load_model(source), factor), target)
    return target
