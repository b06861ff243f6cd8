"""Which of the nodes at risk stay in float32 so that a network keeps within a budget of PSNR-Y."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import onnx

from trt_hspan.engine.range_record import (
    LIMITS,
    SCORE_ERROR_LIMIT,
    UPDATE_SNR_LIMIT_DB,
    NodeRange,
    RangeAudit,
)
from trt_hspan.errors import HspanError
from trt_hspan.evaluation.datasets import Sample
from trt_hspan.precision.crops import Crops, TilePlan, with_ground_truth
from trt_hspan.precision.quantize.measure import HeldOut
from trt_hspan.upscaling.tile_size import ANY_SIZE, SizeRange

# Tiles to measure on: enough to see a loss, few enough to measure a dozen times.
_TILES: Final = 4
_SIDE: Final = 48


def kept_within_budget(
    variant: Callable[[tuple[str, ...]], onnx.ModelProto],
    reference: onnx.ModelProto,
    audit: RangeAudit,
    samples: Sequence[Sample],
    budget_db: float,
    *,
    sizes: SizeRange = ANY_SIZE,
    where: str,
) -> tuple[str, ...]:
    """Cures the worst risks first, measuring again each time, until the loss of PSNR-Y is within the budget.

    The number of cured nodes doubles from step to step. Loss is against the float32 network, on tiles of the pictures;
    pictures without ground truth serve as it, shrunk to the input's size.

    Args:
        variant: gives the typed network that keeps these nodes in float32.
        reference: the network in float32.
        audit: of it.
        samples: at least one picture.
        budget_db: the most PSNR-Y that may be lost.
        sizes: of the network's inputs.
        where: what errors name.

    Returns:
        Names of the nodes to keep, in the graph's order; empty when nothing needs to be.

    Raises:
        HspanError: not even all cures together keep within the budget; it says the best loss.
    """
    held_out = HeldOut(
        reference,
        Crops(with_ground_truth(samples[:_TILES]), TilePlan(count=_TILES, side=_SIDE), sizes),
        where=where,
    )

    def loss_db(kept: tuple[str, ...]) -> float:
        try:
            measured = held_out.measure(variant(kept))
        except HspanError:  # a weight that does not fit, or an output that is not finite
            return math.inf
        return math.inf if measured.loss_db is None else measured.loss_db

    worst_first = sorted(audit.at_risk, key=lambda node: severity(node, audit), reverse=True)
    best, count = math.inf, 0
    while True:
        cure = {name for node in worst_first[:count] for name in node.cure}
        kept = tuple(node.node for node in audit.nodes if node.node in cure)
        best = min(best, loss_db(kept))
        if best <= budget_db:
            return kept
        if count >= len(worst_first):
            best_loss = "no finite output" if math.isinf(best) else f"{best:.4f} dB at best"
            raise HspanError(
                "--keep-fp32",
                f"a loss of at most {budget_db:g} dB cannot be reached with every node at risk in float32: {best_loss}",
                "take --precision fp32, or a larger budget",
            )
        count = min(len(worst_first), max(1, 2 * count))


def severity(node: NodeRange, audit: RangeAudit) -> float:
    """How far a node is past its threshold, as a factor; 1 is at the threshold. What is not finite is infinite."""
    limit = LIMITS[audit.precision]
    factors = [math.inf if node.largest is None else node.largest / limit]
    if node.largest_weight is not None:
        factors.append(node.largest_weight / limit)
    if node.largest_score is not None:
        factors.append(node.largest_score / limit)
        factors.append(math.inf if node.score_error is None else node.score_error / SCORE_ERROR_LIMIT)
    if node.update_snr_db is not None:
        factors.append(10 ** ((UPDATE_SNR_LIMIT_DB - node.update_snr_db) / 20))
    return max(factors)
