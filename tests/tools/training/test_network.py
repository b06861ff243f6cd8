from __future__ import annotations

import numpy as np
import pytest
import torch
from support.synthetic_pictures import pairs

from tools.training.data import upscaled_pixels
from tools.training.figures import bicubic_pixels
from tools.training.network import initial_network
from trt_hspan import HspanConfig
from trt_hspan.evaluation.metrics import psnr_y


@pytest.mark.parametrize("scale", [2, 4])
def test_an_untrained_network_already_interpolates_nearly_as_well_as_bicubic(scale: int) -> None:
    model = initial_network(
        HspanConfig(n_feats=16, n_groups=1, n_blocks=1, scale=scale, res_scale=1.0), seed=0
    )
    # Away from the border, where the network's zero padding darkens the picture.
    inner = (slice(4 * scale, -4 * scale),) * 2
    behind = []
    for pair in pairs(scale):
        network = psnr_y(upscaled_pixels(model, pair.low)[inner], pair.high[inner], scale)
        behind.append(psnr_y(bicubic_pixels(pair.low, scale)[inner], pair.high[inner], scale) - network)
    # A sharp edge costs the quadratic kernel a little more than the cubic one; a misplaced phase costs 5 dB.
    assert np.mean(behind) < 2.5


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_generator_alone() -> None:
    config = HspanConfig(n_feats=8, n_groups=1, n_blocks=1, scale=4)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second, other = (initial_network(config, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["body.0.body.0.body.0.weight"], other["body.0.body.0.body.0.weight"])


def test_queries_and_keys_start_alike() -> None:
    state = initial_network(HspanConfig(n_feats=8, n_groups=2, n_blocks=1, scale=2), seed=0).state_dict()
    for group in range(2):
        for part in ("0.weight", "0.bias", "1.weight"):
            prefix = f"body.{group}.body.1"
            assert torch.equal(state[f"{prefix}.conv_match1.{part}"], state[f"{prefix}.conv_match2.{part}"])
