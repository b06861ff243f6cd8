"""The search for layers, on losses that are known, and one real search whose loss is measured again from outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from support.quantization_plan import PLAN

from trt_hspan import HspanError
from trt_hspan.evaluation.metrics import psnr_y
from trt_hspan.graph import model_for_cpu
from trt_hspan.graph.quantized import convolution_macs, quantized_convolutions
from trt_hspan.media.pixels import image_from_tensor, tensor_from_image
from trt_hspan.precision.crops import Crops, Tile, samples_from_place, with_ground_truth
from trt_hspan.precision.quantize import budget
from trt_hspan.precision.quantize.budget import choose_layers
from trt_hspan.precision.quantize.layers import layers_to_quantize
from trt_hspan.precision.quantize.measure import HeldOut, Measurement
from trt_hspan.precision.quantize.pipeline import QuantizationRequest, Quantized, quantize
from trt_hspan.precision.quantize.recipe import Choice
from trt_hspan.precision.quantize.sensitivity import LayerSensitivity
from trt_hspan.precision.quantize.source import Source
from trt_hspan.runtime.onnxruntime_session import cpu_network

Result = tuple[dict[str, Choice], Measurement]


class KnownLosses(HeldOut):
    """Each quantized layer costs what it is said to cost; costs add up, but the first two halve each other."""

    def __init__(self, costs: dict[str, float], *, together: float = 1.0, db_per_loss: float = 3e4) -> None:
        self.costs, self.together, self.db_per_loss = costs, together, db_per_loss
        self.measured: list[set[str]] = []

    def measure(self, model: onnx.ModelProto) -> Measurement:
        quantized = set(quantized_convolutions(model))
        self.measured.append(quantized)
        loss = sum(self.costs[name] for name in quantized)
        if set(list(self.costs)[:2]) <= quantized:
            loss *= self.together
        psnr = 100.0 - self.db_per_loss * loss
        return Measurement(psnr_db=psnr, worst_psnr_db=psnr, psnr_y_db=30.0 - loss, loss_db=loss)


@pytest.fixture(scope="module")
def names(source: Source) -> list[str]:
    return [node.name for node in layers_to_quantize(source.base)]


def search(source: Source, int8: Quantized, held_out: HeldOut, budget_db: float) -> Result:
    assert int8.table is not None
    return choose_layers(source, layers_to_quantize(source.base), int8.table, held_out, budget_db)


def kept(result: Result) -> set[str]:
    return {name for name, choice in result[0].items() if not choice.quantized}


def test_a_network_within_the_budget_is_quantized_whole(
    source: Source, int8: Quantized, names: list[str]
) -> None:
    held_out = KnownLosses(dict.fromkeys(names, 0.001))
    result = search(source, int8, held_out, 0.1)
    assert not kept(result)
    assert len(held_out.measured) == 1
    assert result[1].loss_db == pytest.approx(0.001 * len(names))


def test_the_most_sensitive_layers_go_back_first_and_only_as_many_as_needed(
    source: Source, int8: Quantized, names: list[str]
) -> None:
    costs = {name: 0.001 * index for index, name in enumerate(names)}
    total = sum(costs.values())
    result = search(source, int8, KnownLosses(costs), total - costs[names[-1]] - costs[names[-2]] + 1e-9)
    assert kept(result) == set(names[-2:])
    assert set(result[0]) == set(names)
    assert "alone it loses" in result[0][names[-1]].why
    assert "the loss falls to" in result[0][names[-1]].why


def test_every_step_of_the_search_is_reported(source: Source, int8: Quantized, names: list[str]) -> None:
    costs = {name: 0.001 * index for index, name in enumerate(names)}
    most = sum(costs.values()) - costs[names[-1]] - costs[names[-2]] + 1e-9
    assert int8.table is not None
    shown: list[tuple[str, int, int]] = []
    choose_layers(
        source,
        layers_to_quantize(source.base),
        int8.table,
        KnownLosses(costs),
        most,
        on_step=lambda *step: shown.append(step),
    )
    count = len(names)
    assert shown == [
        ("everything quantized", 0, 1),
        *(("layer by layer", step, count) for step in range(1, count + 1)),
        *(("back to the base type", step, count) for step in (1, 2)),
        ("trying again", 0, 2),
    ]


def test_error_counts_by_the_work_and_what_has_none_counts_as_a_little() -> None:
    for share, weight in ((0.5, 2.0), (0.0, 1e4), (0.5e-4, 1e4), (1.0, 1.0)):
        layer = LayerSensitivity(name="n", mac_share=share, psnr_db=30.0, loss_db=0.1)
        assert budget._energy_per_work(layer) == pytest.approx(1e-3 * weight)


@pytest.mark.parametrize(("loss_db", "is_within"), [(0.1, True), (0.11, False), (-1.0, True), (None, False)])
def test_a_loss_that_cannot_be_measured_is_in_no_budget(loss_db: float | None, is_within: bool) -> None:
    measured = Measurement(psnr_db=50.0, worst_psnr_db=50.0, psnr_y_db=None, loss_db=loss_db)
    assert budget.fits(measured, 0.1) is is_within


def test_of_two_layers_with_one_error_the_one_with_less_work_goes_back(
    source: Source, int8: Quantized, names: list[str]
) -> None:
    work = convolution_macs(source.base)
    large, small = "body.0.body.0.body.0/Conv", "body.0.body.2.conv_match1.0/Conv"
    assert work[large] > 2 * work[small]
    costs = dict.fromkeys(names, 0.0) | {large: 0.1, small: 0.1}
    assert kept(search(source, int8, KnownLosses(costs, db_per_loss=100.0), 0.1 + 1e-9)) == {small}


def test_a_layer_whose_return_was_not_needed_in_the_end_is_quantized_again(
    source: Source, int8: Quantized, names: list[str]
) -> None:
    costs = dict.fromkeys(names, 0.0) | {names[2]: 0.05, names[0]: 0.04, names[1]: 0.04}
    # The first two cost five times as much together, so taking one of them back is what helps.
    result = search(source, int8, KnownLosses(costs, together=5.0), 0.095)
    assert names[2] not in kept(result)
    assert len(kept(result)) == 1
    choice = result[0][names[2]]
    assert choice.quantized
    assert "tried again" in choice.why


def test_a_budget_that_cannot_be_met_is_an_error_with_the_best_that_was_found(
    source: Source, int8: Quantized, names: list[str]
) -> None:
    costs = {name: 0.01 + 0.001 * index for index, name in enumerate(names)}
    with pytest.raises(HspanError) as caught:
        search(source, int8, KnownLosses(costs), 0.005)
    assert f"0.005 dB cannot be met: the best choice loses 0.0100 dB with 1 of {len(names)}" in str(
        caught.value
    )


def test_measured_losses_are_those_of_an_independent_run(
    source: Source, int8: Quantized, photographs: Path
) -> None:
    samples = with_ground_truth(samples_from_place(str(photographs), 2))
    tiles = list(Crops(samples, PLAN))
    measured = HeldOut(source.reference, tiles, where="test").measure(int8.model)

    from trt_hspan.graph import model_with_attention_function

    def outputs(model: onnx.ModelProto) -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return [session.run(None, {"input": tensor_from_image(tile.low)})[0] for tile in tiles]

    exact = outputs(model_with_attention_function(source.reference))
    low = outputs(model_for_cpu(int8.model))
    psnrs = [-10 * np.log10(np.mean((a.astype(float) - b) ** 2)) for a, b in zip(low, exact, strict=True)]
    assert measured.psnr_db == pytest.approx(np.mean(psnrs), abs=0.01)
    assert measured.worst_psnr_db == pytest.approx(np.min(psnrs), abs=0.01)

    def quality(pictures: list[np.ndarray]) -> float:
        pairs = zip(pictures, tiles, strict=True)
        return float(
            np.mean([psnr_y(image_from_tensor(o), t.truth, 2) for o, t in pairs if t.truth is not None])
        )

    assert measured.loss_db == pytest.approx(quality(exact) - quality(low), abs=1e-3)


def test_a_budget_is_met_on_real_pictures_and_written_into_the_recipe(
    source: Source, photographs: Path
) -> None:
    request = QuantizationRequest(
        precision="int8",
        calibration=str(photographs),
        budget_db=0.5,
        tiles=PLAN,
        method="minmax",
        rounding="nearest",
    )
    result = quantize(source, request)
    assert result.table is not None
    assert result.table.pictures == 5  # the sixth is held out
    assert result.recipe.budget_db == 0.5
    assert result.measurement is not None
    assert result.recipe.loss_db == result.measurement.loss_db
    assert result.measurement.loss_db is not None
    assert result.measurement.loss_db <= 0.5


def test_tiles_that_float32_gets_exactly_right_do_not_count(source: Source, int8: Quantized) -> None:
    """Their PSNR is infinite; black pictures are such."""
    low = np.zeros((24, 24, 3), np.uint8)
    first = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    network = cpu_network(source.reference, "net")
    exact = image_from_tensor(network.run(tensor_from_image(low)), where="net")
    black = Tile(name="black", low=low, truth=exact, scale=2)
    other = Tile(name="other", low=first, truth=np.repeat(np.repeat(first, 2, 0), 2, 1), scale=2)
    alone = HeldOut(source.reference, [other], where="net").measure(int8.model)
    both = HeldOut(source.reference, [black, other], where="net").measure(int8.model)
    assert alone.loss_db is not None
    assert np.isfinite(alone.loss_db)
    assert both.loss_db == alone.loss_db
    with pytest.raises(HspanError, match="every held-out picture exactly right, so that no loss can be"):
        HeldOut(source.reference, [black], where="net")
