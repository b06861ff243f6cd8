"""Which nodes stay in float32 within a budget: the worst first, on losses that are known."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import onnx
import pytest

from trt_hspan.engine.range_record import NodeRange, RangeAudit
from trt_hspan.errors import HspanError
from trt_hspan.evaluation.datasets import Sample, shipped_samples
from trt_hspan.precision.audit import budgeted_ranges
from trt_hspan.precision.audit.budgeted_ranges import kept_within_budget, severity
from trt_hspan.precision.crops import Crops, Tile
from trt_hspan.precision.quantize.measure import Measurement


def node(name: str = "n", *, largest: float | None = 1.0, **figures: object) -> NodeRange:
    unknown = dict.fromkeys(
        ("rounding_snr_db", "update_snr_db", "largest_weight", "largest_score", "score_error")
    )
    figures = {"risks": ("activation",), "cure": (name,), **unknown, **figures}
    return NodeRange(node=name, op_type="Conv", low=True, largest=largest, **figures)  # type: ignore[arg-type]


def audit(*nodes: NodeRange, precision: str = "fp16") -> RangeAudit:
    return RangeAudit(precision=precision, limit=65504.0, pictures=1, tile=8, nodes=nodes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "factor"),
    [
        (node(largest=32752.0), 0.5),
        (node(largest=None), math.inf),
        (node(largest_weight=2 * 65504.0), 2.0),
        (node(largest_score=3 * 65504.0, score_error=0.25), 3.0),
        (node(largest_score=1.0, score_error=1.5), 3.0),
        (node(largest_score=1.0), math.inf),
        (node(update_snr_db=0.0), 10.0),
        (node(update_snr_db=40.0), 0.1),
        (node(largest_weight=65504.0, largest_score=2.0, score_error=1.0, update_snr_db=14.0), 2.0),
    ],
)
def test_severity_is_the_largest_factor_past_a_threshold(one: NodeRange, factor: float) -> None:
    assert severity(one, audit(one)) == pytest.approx(factor)


def test_the_limit_is_that_of_the_type() -> None:
    assert severity(node(largest=65504.0), audit(precision="bf16")) < 1e-30


@dataclass
class Losses:
    """A network's loss by how many nodes are kept; None is no finite output, nan no loss that can be measured."""

    by_count: dict[int, float | None]
    measured: list[tuple[str, ...]] = field(default_factory=list)
    tiles: Iterable[Tile] = ()

    def held_out(self, _: onnx.ModelProto, tiles: Crops, *, where: str) -> Losses:
        self.tiles = tiles
        return self

    def variant(self, kept: tuple[str, ...]) -> onnx.ModelProto:
        self.measured.append(kept)
        return onnx.ModelProto()

    def measure(self, _: onnx.ModelProto) -> Measurement:
        loss = self.by_count[len(self.measured[-1])]
        if loss is None:
            raise HspanError("net", "gives no finite output")
        shown = None if math.isnan(loss) else loss
        return Measurement(psnr_db=60.0, worst_psnr_db=60.0, psnr_y_db=30.0, loss_db=shown)


NODES = tuple(
    node(name, largest=65504.0 * factor, risks=("activation",) if factor > 1 else ())
    for name, factor in (("a", 2.0), ("safe", 0.1), ("b", 9.0), ("c", 3.0), ("d", 4.0), ("e", 5.0))
)


@pytest.fixture
def samples() -> list[Sample]:
    return list(shipped_samples(2))


def kept(
    monkeypatch: pytest.MonkeyPatch, samples: list[Sample], losses: dict[int, float | None], budget_db: float
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    known = Losses(losses)
    monkeypatch.setattr(budgeted_ranges, "HeldOut", known.held_out)
    result = kept_within_budget(
        known.variant, onnx.ModelProto(), audit(*NODES), samples, budget_db, where="net"
    )
    return result, known.measured


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({0: 0.1}, ()),
        ({0: 0.2, 1: 0.1}, ("b",)),
        ({0: math.nan, 1: None, 2: 0.05}, ("b", "e")),
        ({0: 1.0, 1: 0.9, 2: 0.8, 4: 0.0}, ("b", "c", "d", "e")),
        ({0: 1.0, 1: 0.9, 2: 0.8, 4: 0.11, 5: 0.1}, ("a", "b", "c", "d", "e")),
    ],
)
def test_the_worst_are_kept_until_the_loss_is_within_the_budget(
    monkeypatch: pytest.MonkeyPatch,
    samples: list[Sample],
    losses: dict[int, float | None],
    expected: tuple[str, ...],
) -> None:
    result, measured = kept(monkeypatch, samples, losses, 0.1)
    assert result == expected
    assert [len(names) for names in measured] == list(losses)


def test_losses_are_measured_on_one_tile_of_each_of_four_pictures(
    monkeypatch: pytest.MonkeyPatch, samples: list[Sample]
) -> None:
    known = Losses({0: 0.0})
    five = [replace(samples[0], name=str(number)) for number in range(5)]
    monkeypatch.setattr(budgeted_ranges, "HeldOut", known.held_out)
    kept_within_budget(known.variant, onnx.ModelProto(), audit(*NODES), five, 0.1, where="net")
    tiles = list(known.tiles)
    assert [tile.name for tile in tiles] == ["0", "1", "2", "3"]
    assert {tile.low.shape for tile in tiles} == {(48, 48, 3)}
    assert all(tile.truth is not None for tile in tiles)


@pytest.mark.parametrize(
    ("last", "words"), [(0.3, "0.2500 dB at best"), (0.2, "0.2000 dB at best"), (None, "0.2500 dB at best")]
)
def test_a_budget_out_of_reach_is_an_error_with_the_best_loss(
    monkeypatch: pytest.MonkeyPatch, samples: list[Sample], last: float | None, words: str
) -> None:
    with pytest.raises(HspanError, match=rf"at most 0\.1 dB cannot be reached .*: {words}"):
        kept(monkeypatch, samples, {0: 1.0, 1: 0.9, 2: 0.8, 4: 0.25, 5: last}, 0.1)
    with pytest.raises(HspanError, match="no finite output"):
        kept(monkeypatch, samples, dict.fromkeys((0, 1, 2, 4, 5)), 0.1)
