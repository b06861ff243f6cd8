"""The official code's `--chop` and `--self_ensemble` in PyTorch, written down anew as a reference for tests.

It recurses and slices as the official code does; what is under test plans a grid of tiles instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Network = Callable[[torch.Tensor], torch.Tensor]


def chop_reference(
    network: Network, x: torch.Tensor, scale: int, *, shave: int = 10, min_size: int = 120_000
) -> torch.Tensor:
    """(1, 3, H, W) -> (1, 3, scale * H, scale * W): four corners, each by the network or chopped again."""
    height, width = x.shape[2:]
    top, left = height // 2, width // 2
    tall, wide = top + shave, left + shave
    tall += 4 - tall % 4
    wide += 8 - wide % 8
    y_of = {"upper": slice(0, tall), "lower": slice(height - tall, height)}
    x_of = {"left": slice(0, wide), "right": slice(width - wide, width)}
    output = x.new_full((x.shape[0], x.shape[1], scale * height, scale * width), float("nan"))
    for row, rows in y_of.items():
        for column, columns in x_of.items():
            corner = x[:, :, rows, columns]
            if tall * wide < min_size:
                result = network(corner)
            else:
                result = chop_reference(network, corner, scale, shave=shave, min_size=min_size)
            out_rows = slice(0, scale * top) if row == "upper" else slice(scale * top, None)
            out_columns = slice(0, scale * left) if column == "left" else slice(scale * left, None)
            kept_height, kept_width = output[:, :, out_rows, out_columns].shape[2:]
            result = result[:, :, :kept_height] if row == "upper" else result[:, :, -kept_height:]
            result = result[..., :kept_width] if column == "left" else result[..., -kept_width:]
            output[:, :, out_rows, out_columns] = result
    return output


def self_ensemble_reference(network: Network, x: torch.Tensor) -> torch.Tensor:
    """The mean over eight views of the picture: with or without a transposition, a flip up-down, a flip left-right."""
    results = []
    for transposed in (False, True):
        for vertical in (False, True):
            for horizontal in (False, True):
                flips = [axis for axis, is_flipped in ((2, vertical), (3, horizontal)) if is_flipped]
                view = torch.flip(x, flips)
                view = view.transpose(2, 3) if transposed else view
                result = network(view)
                result = result.transpose(2, 3) if transposed else result
                results.append(torch.flip(result, flips))
    return torch.cat(results).mean(dim=0, keepdim=True)
