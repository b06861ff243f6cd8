"""Sparsemax attention in float64 by its definition, and how far from it the kernels may be.

The bounds are those that plugins/README.md derives ("Accuracy") and that tests/ptx/cases/reference.cpp applies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from tools.gpu_report.inputs import Inputs

UNIT: Final = 2.0**-24  # the rounding unit of FP32
_CHUNK_BYTES: Final = 256 << 20
_ROUNDING: Final = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
_LEAST: Final = {
    torch.float32: 1e-38,
    torch.float16: 3e-8,
    torch.bfloat16: 1e-38,
}  # half the least subnormal number


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Outputs (N, R, D) of the rows `rows` (R,) of every image in float64, NaN in degenerate rows, and their bounds."""

    rows: Tensor
    outputs: Tensor
    bounds: Tensor


def reference_of(inputs: Inputs, *, most_rows: int) -> Reference:
    """All rows where there are at most `most_rows`, else so many, evenly spread, the first and the last among them."""
    length = inputs.sizes.positions
    rows = torch.arange(length)
    if length > most_rows:
        rows = torch.linspace(0, length - 1, most_rows).long()
    rows = rows.to(inputs.query.device)
    at_a_time = max(1, _CHUNK_BYTES // (8 * length))
    outputs, bounds = [], []
    for image in range(inputs.sizes.images):
        parts = [_rows_of_image(inputs, image, chunk) for chunk in torch.split(rows, at_a_time)]
        outputs.append(torch.cat([part[0] for part in parts]))
        bounds.append(torch.cat([part[1] for part in parts]))
    return Reference(rows=rows, outputs=torch.stack(outputs), bounds=torch.stack(bounds))


def _rows_of_image(inputs: Inputs, image: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    query, key = inputs.query[image, rows].double(), inputs.key[image].double()
    value, dtype = inputs.value[image].double(), inputs.value.dtype
    scores = query @ key.T  # (R, L)
    degenerate = scores.isnan().any(1) | (scores == torch.inf).any(1) | (scores == -torch.inf).all(1)
    scores = torch.where(degenerate[:, None], torch.zeros_like(scores), scores)
    scores -= scores.amax(1, keepdim=True)
    weights = scores - _threshold(scores)

    # A weight may be off by `error` where it is positive, and positive where it is above -2 `error`.
    error = _score_error(query, key, inputs.query.dtype, inputs.sizes.score_channels)[:, None]
    near = weights > -2 * error
    finite = torch.where(value.isfinite(), value, torch.zeros_like(value))
    greatest = _greatest_near(near, finite.abs().amax(1))[:, None]
    weights = weights.clamp_min(0)
    outputs = weights @ finite
    if not bool(value.isfinite().all()):
        outputs = _with_special_values(outputs, (weights > 0).double(), value)
    outputs[degenerate] = torch.nan

    length = inputs.sizes.positions
    dense = 0.0 if dtype == torch.float32 else 2.0**-17 + (130 + length / 512) * UNIT
    computed = (96 * UNIT + 2 * error * near.sum(1, keepdim=True) + dense) * greatest
    bounds = computed + _ROUNDING[dtype] * (outputs.abs() + computed) + _LEAST[dtype]
    return outputs, bounds


def _threshold(scores: Tensor) -> Tensor:
    """tau (R, 1) of rows whose greatest score is 0, by sorting (Martins and Astudillo 2016, algorithm 1)."""
    descending = scores.sort(1, descending=True).values
    counts = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=scores.dtype)
    candidates = (descending.cumsum(1) - 1) / counts
    support = (descending > candidates).sum(1, keepdim=True)
    return candidates.gather(1, support - 1)


def _score_error(query: Tensor, key: Tensor, dtype: torch.dtype, channels: int) -> Tensor:
    """(R,): twice the bound of a chain of C multiply-adds, or the bound of refined scores."""
    finite_query = torch.where(query.isfinite(), query, torch.zeros_like(query))
    finite_key = torch.where(key.isfinite(), key, torch.zeros_like(key))
    products = (finite_query.abs() @ finite_key.abs().T).amax(1)
    chain = 2 * channels * UNIT * products
    if dtype != torch.float32:
        return chain
    lengths = (
        torch.linalg.vector_norm(finite_query, dim=1) * torch.linalg.vector_norm(finite_key, dim=1).amax()
    )
    return torch.where(lengths >= 1, UNIT + channels**2 * 2.0**-46 * lengths, chain)


def _greatest_near(near: Tensor, magnitudes: Tensor) -> Tensor:
    """(R,): the greatest magnitude among the keys that are near."""
    return torch.where(near, magnitudes, torch.zeros_like(magnitudes)).amax(1)


def _with_special_values(outputs: Tensor, counts: Tensor, value: Tensor) -> Tensor:
    """Infinities and NaN of values that have a weight."""
    plus, minus = counts @ (value == torch.inf).double(), counts @ (value == -torch.inf).double()
    nan = (counts @ value.isnan().double() > 0) | ((plus > 0) & (minus > 0))
    outputs = torch.where(plus > 0, torch.inf, outputs)
    outputs = torch.where(minus > 0, -torch.inf, outputs)
    return torch.where(nan, torch.nan, outputs)


def wrong_in(actual: Tensor, reference: Reference) -> tuple[float, str | None]:
    """The greatest error over its bound, and what is wrong with the worst output; None: nothing.

    Args:
        actual: (N, R, D), the rows of the reference.
    """
    actual, expected = actual.double(), reference.outputs
    special = ~expected.isfinite()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    of_bound = torch.where(special, 0.0, (actual - expected).abs() / reference.bounds)
    of_bound = torch.where(special & ~same, torch.inf, of_bound)
    of_bound = torch.where(~special & ~actual.isfinite(), torch.inf, of_bound)
    worst = int(of_bound.argmax())
    greatest = float(of_bound.flatten()[worst])
    if greatest <= 1:
        return greatest, None
    image, row, channel = (int(index) for index in torch.unravel_index(torch.tensor(worst), of_bound.shape))
    return greatest, (
        f"image {image} row {int(reference.rows[row])} channel {channel}: {float(actual[image, row, channel])!r} "
        f"instead of {float(expected[image, row, channel])!r}, bound {float(reference.bounds[image, row, channel]):.3g}"
    )
