"""The float64 reference of `make gpu`, its bounds, and the inputs that are to lead the kernels into every route."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.reference import attention_reference

import trt_hspan
from tools.gpu_report.inputs import (
    PHOTOGRAPH,
    REGIMES,
    Inputs,
    Sizes,
    photograph_inputs,
    random_inputs,
    shipped_network,
)
from tools.gpu_report.reference import reference_of, wrong_in


def inputs_of(regime: str, positions: int, dtype: torch.dtype = torch.float32, images: int = 1) -> Inputs:
    sizes = Sizes(images=images, score_channels=16, value_channels=24, positions=positions)
    return random_inputs(sizes, regime, dtype, "cpu")


def supports(inputs: Inputs) -> torch.Tensor:
    """How many keys of each row get a weight."""
    scores = inputs.query[0].double() @ inputs.key[0].double().T
    descending = scores.sort(1, descending=True).values
    counts = torch.arange(1, scores.shape[1] + 1)
    return (descending > (descending.cumsum(1) - 1) / counts).sum(1)


@pytest.mark.parametrize("regime", ["sparse", "mid", "dense", "flat", "ties", "huge", "offset"])
def test_the_reference_is_the_definition(regime: str) -> None:
    inputs = inputs_of(regime, 70)
    reference = reference_of(inputs, most_rows=70)
    tensors = [tensor[0].T.double().numpy() for tensor in (inputs.query, inputs.key, inputs.value)]
    expected = attention_reference(*(tensor.reshape(1, *tensor.shape, 1) for tensor in tensors))
    np.testing.assert_allclose(reference.outputs[0].T.numpy(), expected[0, :, :, 0], rtol=0, atol=1e-9)


def test_of_many_rows_some_are_compared_the_first_and_the_last_among_them() -> None:
    inputs = inputs_of("mid", 300)
    some, every = reference_of(inputs, most_rows=16), reference_of(inputs, most_rows=300)
    assert (len(some.rows), int(some.rows[0]), int(some.rows[-1])) == (16, 0, 299)
    torch.testing.assert_close(some.outputs, every.outputs[:, some.rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("regime", REGIMES)
def test_the_rounded_reference_is_right_and_what_is_off_by_two_bounds_is_wrong(
    regime: str, dtype: torch.dtype
) -> None:
    inputs = inputs_of(regime, 65, dtype, images=2)
    reference = reference_of(inputs, most_rows=65)
    rounded = reference.outputs.to(dtype)
    of_bound, wrong = wrong_in(rounded, reference)
    assert wrong is None, wrong
    assert of_bound <= 1
    finite = reference.outputs.isfinite().nonzero()[-1]
    image, row, channel = (int(index) for index in finite)
    spoiled = reference.outputs.clone()
    spoiled[image, row, channel] += 2 * reference.bounds[image, row, channel]
    _, wrong = wrong_in(spoiled, reference)
    assert wrong is not None
    assert f"image {image} row {row} channel {channel}" in wrong


@pytest.mark.parametrize(
    ("expected", "actual"), [(torch.nan, 0.0), (0.0, torch.nan), (torch.inf, -torch.inf)]
)
def test_special_values_must_be_those_of_the_reference(expected: float, actual: float) -> None:
    reference = reference_of(inputs_of("mid", 5), most_rows=5)
    outputs = reference.outputs.clone()
    outputs[0, 3, 2] = expected
    reference = replace(reference, outputs=outputs)
    spoiled = outputs.clone()
    assert wrong_in(spoiled, reference)[1] is None
    spoiled[0, 3, 2] = actual
    assert "row 3 channel 2" in str(wrong_in(spoiled, reference)[1])


def test_regimes_are_what_they_are_called() -> None:
    assert supports(inputs_of("sparse", 1200)).double().mean() < 16
    assert 16 < supports(inputs_of("mid", 1200)).double().mean() < 100
    assert 100 < supports(inputs_of("long", 1200)).double().mean() < 512
    assert supports(inputs_of("dense", 1200)).min() > 1024  # more than a list takes
    assert set(supports(inputs_of("flat", 1200)).tolist()) == {1200}
    huge = inputs_of("huge", 65)
    lengths = (
        torch.linalg.vector_norm(huge.query[0], dim=1) * torch.linalg.vector_norm(huge.key[0], dim=1).max()
    )
    assert lengths.min() >= 1  # all rows are refined
    nan = reference_of(inputs_of("nan", 65), most_rows=65).outputs[0]
    assert nan[[0, 9, 11]].isnan().all()
    assert nan[[1, 10, 12]].isfinite().all()


def test_the_photograph_is_the_middle_of_the_shipped_one() -> None:
    picture = np.asarray(Image.open(Path(trt_hspan.__file__).parent / "data" / "chelsea.png").convert("RGB"))
    top, left = (picture.shape[0] - 256) // 2, (picture.shape[1] - 256) // 2
    np.testing.assert_array_equal(np.load(PHOTOGRAPH), picture[top : top + 256, left : left + 256])


def test_the_network_is_the_shipped_one() -> None:
    own, expected = shipped_network().state_dict(), trt_hspan.load_model("hspan-tiny-x4").state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[name], expected[name]) for name in own)


def test_a_photographs_tensors_are_the_attentions_inputs_and_lifting_keeps_the_scores() -> None:
    captured: list[torch.Tensor] = []
    model = trt_hspan.load_model("hspan-tiny-x4")
    module = next(each for each in model.modules() if isinstance(each, trt_hspan.HighSimilarityPassAttention))
    for layer in (module.conv_match1, module.conv_match2, module.conv_assembly):
        layer.register_forward_hook(lambda _, __, output: captured.append(output.flatten(2).transpose(1, 2)))
    inputs = photograph_inputs(12, torch.float32, "cpu")
    pixels = np.load(PHOTOGRAPH)[122:134, 122:134]
    with torch.inference_mode():
        model(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255)
    for own, expected in zip((inputs.query, inputs.key, inputs.value), captured, strict=False):
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-6)
    lifted = photograph_inputs(12, torch.float32, "cpu", published_channels=True)
    assert (lifted.query.shape[2], lifted.value.shape[2]) == (96, 192)
    # 16 products and 96 of them, numbers of one size: both within 1e-4 of scores of some tens.
    torch.testing.assert_close(lifted.query @ lifted.key.mT, inputs.query @ inputs.key.mT, rtol=0, atol=1e-3)
