"""What a range audit measured, as the manifest stores it: names, limits and what counts as a risk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

LowPrecision = Literal["fp16", "bf16"]
Risk = Literal["not finite", "weight", "activation", "score", "score precision", "update"]

# Largest finite values: IEEE 754 binary16 (5 exponent bits, 11 of precision); bfloat16 (8 and 8).
LIMITS: Final[Mapping[LowPrecision, float]] = {"fp16": 65504.0, "bf16": (2 - 2**-7) * 2.0**127}

# Pictures that were not audited may reach beyond those that were: a value within this factor of the limit counts.
RESERVE: Final = 2.0
# Sparsemax is 1-Lipschitz and its weights lie in [0, 1]: scores that are off by this much may shift half a weight.
SCORE_ERROR_LIMIT: Final = 0.5
# Rounding a residual sum loses a tenth of what the smaller summand adds.
UPDATE_SNR_LIMIT_DB: Final = 20.0

RISK_MEANINGS: Final[Mapping[Risk, str]] = {
    "not finite": "NaN or infinite in float32 already",
    "weight": "a weight does not fit the type",
    "activation": f"an activation comes within a factor of {RESERVE:g} of the type's limit",
    "score": f"an unscaled score comes within a factor of {RESERVE:g} of the type's limit",
    "score precision": f"rounding query and key moves a deciding score by more than {SCORE_ERROR_LIMIT:g}",
    "update": f"rounding the sum leaves less than {UPDATE_SNR_LIMIT_DB:g} dB of the smaller summand",
}


@dataclass(frozen=True, kw_only=True)
class NodeRange:
    """One node of the network on all audited pictures; engine/manifest.schema.json says what each figure is."""

    node: str
    op_type: str
    low: bool
    largest: float | None
    rounding_snr_db: float | None
    update_snr_db: float | None
    largest_weight: float | None
    largest_score: float | None
    score_error: float | None
    risks: tuple[str, ...]
    cure: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RangeAudit:
    """A network's ranges against the limits of a type."""

    precision: LowPrecision
    limit: float
    pictures: int
    tile: int
    nodes: tuple[NodeRange, ...]
    kept_fp32: tuple[str, ...] = ()

    @property
    def at_risk(self) -> tuple[NodeRange, ...]:
        """The nodes with risks, in the graph's order."""
        return tuple(node for node in self.nodes if node.risks)

    @property
    def cure(self) -> tuple[str, ...]:
        """Names of all nodes that must stay in float32 to remove every risk, in the graph's order."""
        cure = {name for node in self.at_risk for name in node.cure}
        return tuple(node.node for node in self.nodes if node.node in cure)
