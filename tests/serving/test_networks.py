"""The raw models that a network of our Python backend becomes."""

from __future__ import annotations

import pytest

from trt_hspan.errors import UsageError
from trt_hspan.runtime.runner import ShapeLimit
from trt_hspan.serving import networks
from trt_hspan.serving.networks import network_from_source
from trt_hspan.serving.probe import ProbedSource
from trt_hspan.sizes import ImageSize

Ranges = tuple[tuple[ShapeLimit, ShapeLimit], ...]
GAP: Ranges = (((1, 3, 16, 16), (1, 3, 32, 32)), ((2, 3, 64, 64), (4, 3, 96, 96)))


def shapes(
    ranges: Ranges, monkeypatch: pytest.MonkeyPatch, *, tile: ImageSize | None = None
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], bool]]:
    """Smallest, largest, and whether batches are free, of each raw model."""
    probed = ProbedSource(scale=4, shape_ranges=ranges, label="CPU")
    monkeypatch.setattr(networks, "probe_source", lambda *_, **__: probed)
    network = network_from_source("hspan-tiny-x4", name="net", tile=tile)
    assert list(network.files) == [raw.name for raw in network.raw_models]
    assert all(len(raw.ranges) == 1 for raw in network.raw_models)
    return {raw.name: (raw.ranges[0].min, raw.ranges[0].max, raw.dynamic_batch) for raw in network.raw_models}


def test_an_engine_with_a_gap_between_its_profiles_becomes_two_raw_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert shapes(GAP, monkeypatch) == {
        "net_32x32": ((1, 3, 16, 16), (1, 3, 32, 32), True),
        "net_96x96": ((2, 3, 64, 64), (4, 3, 96, 96), True),
    }


def test_a_network_of_one_range_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shapes(GAP[1:], monkeypatch) == {"net": ((2, 3, 64, 64), (4, 3, 96, 96), True)}
    fixed = ((2, 3, 8, 8), (2, 3, 8, 8))
    assert shapes((fixed,), monkeypatch) == {"net": (*fixed, False)}


def test_requested_tiles_limit_each_raw_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shapes(GAP, monkeypatch, tile=ImageSize(80, 72))["net_80x72"] == (
        (2, 3, 64, 64),
        (4, 3, 80, 72),
        True,
    )
    with pytest.raises(UsageError, match="--tile: 97x96 is more than the network takes"):
        shapes(GAP, monkeypatch, tile=ImageSize(97, 96))
