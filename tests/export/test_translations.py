"""torch's attention in ONNX at every rank, under ONNX Runtime against torch."""

from __future__ import annotations

from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trt_hspan.export.translations import scaled_dot_product_attention

OPERATOR = torch.ops.aten.scaled_dot_product_attention.default


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, *mask, **self.options)


@pytest.mark.parametrize(
    ("batch", "mask", "options"),
    [
        ((), None, {}),
        ((), (4, 5), {"scale": 0.3}),
        ((3,), None, {"is_causal": True}),
        ((3,), (3, 4, 5), {}),
        ((3,), (4, 5), {"scale": 2.0}),
        ((2, 3), (4, 5), {}),
        ((2, 2, 3), None, {"is_causal": True}),
        ((2, 2, 3), (4, 5), {}),
        ((2, 2, 3), (3, 4, 5), {}),
        ((2, 2, 3), (2, 3, 4, 5), {"scale": 0.3}),
        ((2, 2, 3), (2, 2, 3, 4, 5), {}),
        ((2, 1, 2, 3), (1, 4, 5), {}),
    ],
    ids=str,
)
def test_attention_of_any_rank_is_that_of_torch(
    batch: tuple[int, ...], mask: tuple[int, ...] | None, options: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(*batch, 4, 6), (*batch, 5, 6), (*batch, 5, 7), *([] if mask is None else [mask])]
    inputs = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    module = Attention(**options).eval()
    program = torch.onnx.export(
        module,
        inputs,
        dynamo=True,
        opset_version=18,
        custom_translation_table={OPERATOR: scaled_dot_product_attention},
        verbose=False,
    )
    assert program is not None
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    (found,) = session.run(None, feeds)
    torch.testing.assert_close(torch.from_numpy(found), module(*inputs), rtol=1e-4, atol=1e-5)
