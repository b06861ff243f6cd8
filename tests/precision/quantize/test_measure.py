"""What a variant costs on tiles, against figures computed tile by tile."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from support.small_networks import attention_network
from support.synthetic_pictures import picture

from trt_hspan.errors import HspanError
from trt_hspan.evaluation.metrics import psnr_y
from trt_hspan.graph import model_in_precision
from trt_hspan.media.pixels import image_from_tensor, tensor_from_image
from trt_hspan.precision.crops import Tile
from trt_hspan.precision.quantize.measure import HeldOut
from trt_hspan.runtime.onnxruntime_session import cpu_network

REFERENCE = attention_network()
VARIANT = model_in_precision(REFERENCE, "bf16")


def tiles(*, has_truth: bool) -> list[Tile]:
    return [
        Tile(
            name=str(seed),
            low=picture(16 + seed, 20, seed=seed),
            truth=picture(16, 18, seed=seed + 9) if has_truth else None,
            scale=1,
        )
        for seed in range(3)
    ]


def outputs(model: onnx.ModelProto, *, has_truth: bool) -> list[np.ndarray]:
    network = cpu_network(model, "net")
    return [network.run(tensor_from_image(tile.low)) for tile in tiles(has_truth=has_truth)]


def test_errors_are_those_of_raw_outputs_and_losses_those_of_the_part_with_ground_truth() -> None:
    done: list[int] = []
    held_out = HeldOut(REFERENCE, tiles(has_truth=True), where="net", on_tile=lambda: done.append(1))
    measured = held_out.measure(VARIANT)
    exact, low = (outputs(model, has_truth=True) for model in (REFERENCE, VARIANT))
    psnrs = [-10 * math.log10(np.mean((a.astype(float) - b) ** 2)) for a, b in zip(low, exact, strict=True)]
    assert (len(held_out), len(done)) == (3, 3)
    assert measured.psnr_db == pytest.approx(np.mean(psnrs), abs=1e-3)
    assert measured.worst_psnr_db == pytest.approx(min(psnrs), abs=1e-3)

    def quality(pictures: list[np.ndarray]) -> float:
        pairs = zip(pictures, tiles(has_truth=True), strict=True)
        parts = [
            psnr_y(image_from_tensor(o, where="net")[:16, :18], t.truth, 1)
            for o, t in pairs
            if t.truth is not None
        ]
        return float(np.mean(parts))

    assert measured.psnr_y_db == pytest.approx(quality(low))
    assert held_out.reference_psnr_y_db == pytest.approx(quality(exact))
    assert measured.loss_db == pytest.approx(quality(exact) - quality(low), abs=1e-9)


def test_without_ground_truth_there_is_no_loss_and_the_network_itself_has_no_error() -> None:
    held_out = HeldOut(REFERENCE, tiles(has_truth=False), where="net")
    assert held_out.reference_psnr_y_db is None
    measured = held_out.measure(VARIANT)
    assert (measured.psnr_y_db, measured.loss_db) == (None, None)
    assert 20 < measured.worst_psnr_db <= measured.psnr_db < 100
    assert held_out.measure(REFERENCE).worst_psnr_db == math.inf
    same = HeldOut(REFERENCE, tiles(has_truth=True), where="net").measure(REFERENCE)
    assert same.loss_db == 0.0


def test_no_pictures_and_an_output_that_is_no_number_are_errors() -> None:
    with pytest.raises(HspanError, match="net: there are no held-out pictures; name some with --held-out"):
        HeldOut(REFERENCE, [], where="net")
    broken = onnx.ModelProto()
    broken.CopyFrom(REFERENCE)
    weight = broken.graph.initializer[-1]
    weight.raw_data = np.full(tuple(weight.dims), np.nan, np.float32).tobytes()
    with pytest.raises(HspanError, match="net on 0"):
        HeldOut(broken, tiles(has_truth=True), where="net")
