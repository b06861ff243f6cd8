from __future__ import annotations

import torch

from tools.training.rescaling import rescaled_network
from trt_hspan import HSPAN, HspanConfig


def test_folding_the_residual_factor_changes_no_output() -> None:
    model = HSPAN(HspanConfig(n_feats=8, n_groups=2, n_blocks=1, scale=2, res_scale=1.0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # also biases and PReLU slopes, which start trivial
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    folded = rescaled_network(model, res_scale=0.1)
    assert folded.config.res_scale == 0.1
    image = torch.rand(1, 3, 10, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, got = model(image), folded(image)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        unfolded = rescaled_network(folded, res_scale=1.0).state_dict()
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(unfolded[key], tensor, rtol=1e-6, atol=0)
