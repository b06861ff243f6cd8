"""Costs of the published networks, so that a device without PyTorch can plan for them. A test counts them again."""

from __future__ import annotations

from typing import Final

from trt_hspan.edge.network_cost import GRAPH_SOURCE, AttentionSizes, NetworkCost
from trt_hspan.errors import UsageError

# By scale: bytes of the weights in fp32, fp16 and bf16; activation elements and multiply-accumulates of a pixel.
_WEIGHTS: Final = {
    2: {"fp32": 129154792, "fp16": 64588200, "bf16": 64588196},
    3: {"fp32": 135794152, "fp16": 67907880, "bf16": 67907876},
    4: {"fp32": 134466280, "fp16": 67243944, "bf16": 67243940},
}
_ELEMENTS: Final = {2: 1536, 3: 3456, 4: 6144}
_MACS: Final = {2: 32281965, 3: 33966810, 4: 37652697}


def published_cost(scale: int, precision: str) -> NetworkCost:
    """The published network of a scale, as `network_cost` counts it in what `trt-hspan export` writes.

    Raises:
        UsageError: another scale than 2, 3 and 4, or another precision than fp32, fp16 and bf16.
    """
    if scale not in _WEIGHTS:
        raise UsageError("--scale", f"got {scale}, expected 2, 3 or 4")
    if precision not in _WEIGHTS[scale]:
        raise UsageError("--precision", f"got {precision!r}, expected one of {', '.join(_WEIGHTS[scale])}")
    element_bytes = 4 if precision == "fp32" else 2
    return NetworkCost(
        scale=scale,
        precision=precision,
        element_bytes=element_bytes,
        weights_bytes=_WEIGHTS[scale][precision],
        activation_bytes_per_pixel=float(_ELEMENTS[scale] * element_bytes),
        macs_per_pixel=float(_MACS[scale]),
        attention=(AttentionSizes(score_channels=96, value_channels=192),) * 10,
        source=GRAPH_SOURCE,
    )
