"""The factor on residual branches, `res_scale`: one function, several ways to write it down."""

from __future__ import annotations

import dataclasses

from trt_hspan.model.hspan import HSPAN


def rescaled_network(model: HSPAN, *, res_scale: float) -> HSPAN:
    """The same function with another factor on its residual branches, in eval mode.

    The factor can be folded exactly: a module's last convolution is linear, and the value branch is a
    convolution and a PReLU, which commute with a positive factor.

    Args:
        model: any network with a positive `res_scale`.
        res_scale: the factor of the result, positive; official checkpoints are loaded with 0.1.

    Example:
        >>> import torch
        >>> from trt_hspan import load_model
        >>> from trt_hspan.model.rescaling import rescaled_network
        >>> network = load_model("hspan-tiny-x2", res_scale=0.1)
        >>> image = torch.rand(1, 3, 8, 8)
        >>> torch.allclose(rescaled_network(network, res_scale=1.0)(image), network(image), atol=1e-5)
        True
    """
    factor = model.config.res_scale / res_scale
    rescaled = HSPAN(dataclasses.replace(model.config, res_scale=res_scale))
    state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    blocks = model.config.n_blocks
    for group in range(model.config.n_groups):
        for part in (f"{blocks}.conv_assembly.0", f"{blocks + 1}"):
            for kind in ("weight", "bias"):
                state[f"body.{group}.body.{part}.{kind}"] *= factor
    rescaled.load_state_dict(state)
    return rescaled.eval()
