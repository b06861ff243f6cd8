"""What a range audit counts as a risk, and which nodes are its cure."""

from __future__ import annotations

import numpy as np
import torch

from trt_hspan.engine.range_record import (
    LIMITS,
    RESERVE,
    RISK_MEANINGS,
    SCORE_ERROR_LIMIT,
    UPDATE_SNR_LIMIT_DB,
    NodeRange,
    RangeAudit,
)


def node(name: str, *, risks: tuple[str, ...] = (), cure: tuple[str, ...] = ()) -> NodeRange:
    figures = dict.fromkeys(
        ("largest", "rounding_snr_db", "update_snr_db", "largest_weight", "largest_score", "score_error")
    )
    return NodeRange(node=name, op_type="Conv", low=True, risks=risks, cure=cure, **figures)  # type: ignore[arg-type]


def test_limits_are_the_largest_finite_values_of_the_types() -> None:
    assert {name: LIMITS[name] for name in ("fp16", "bf16")} == {
        "fp16": float(np.finfo(np.float16).max),
        "bf16": torch.finfo(torch.bfloat16).max,
    }


def test_what_is_a_risk_is_said_with_its_figure() -> None:
    """A sparsemax weight moves by half, as its scores do; a tenth of the smaller summand is 20 dB below it."""
    assert (RESERVE, SCORE_ERROR_LIMIT, 10 ** (-UPDATE_SNR_LIMIT_DB / 20)) == (2, 1 / 2, 1 / 10)
    assert "within a factor of 2 of the type's limit" in RISK_MEANINGS["activation"]
    assert "by more than 0.5" in RISK_MEANINGS["score precision"]
    assert "less than 20 dB" in RISK_MEANINGS["update"]


def test_the_cure_is_of_the_nodes_at_risk_in_the_order_of_the_graph() -> None:
    nodes = (
        node("a"),
        node("b", risks=("weight",), cure=("d", "b")),
        node("c", cure=("a",)),
        node("d", risks=("score",), cure=("d",)),
    )
    audit = RangeAudit(precision="fp16", limit=65504.0, pictures=1, tile=64, nodes=nodes)
    assert [each.node for each in audit.at_risk] == ["b", "d"]
    assert audit.cure == ("b", "d")
    assert audit.kept_fp32 == ()
