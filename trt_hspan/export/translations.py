"""Translations to ONNX that torch.onnx lacks."""

from __future__ import annotations

from typing import Any


def scaled_dot_product_attention(  # noqa: PLR0917 - torch's own order
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """torch's operator on tensors of any rank: onnxscript's own translation takes rank 4 alone."""
    import onnx_ir as ir
    from onnxscript import opset18 as op
    from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention as of_rank_4

    options = (dropout_p, is_causal, scale, enable_gqa)
    rank = len(query.shape)
    if rank == 4:
        return of_rank_4(query, key, value, attn_mask, *options)
    if attn_mask is not None and rank > 4:
        ones = op.Constant(value_ints=[1, 1, 1])
        last = [None] * 3 + list(attn_mask.shape)
        expanded = op.Expand(attn_mask, op.Concat(op.Shape(query, end=-3), ones, axis=0))
        expanded.shape, expanded.dtype = ir.Shape([*[None] * (rank - 3), *last[-3:]]), attn_mask.dtype
        attn_mask = expanded

    def in_rank_4(tensor: Any) -> Any:
        if rank > 4:
            last = op.Shape(tensor, start=-3)
            result = op.Reshape(tensor, op.Concat(op.Constant(value_ints=[-1]), last, axis=0))
            result.shape = ir.Shape([None, *tensor.shape[-3:]])
        else:
            added = 4 - len(tensor.shape)
            result = op.Unsqueeze(tensor, op.Constant(value_ints=list(range(added))))
            result.shape = ir.Shape([1] * added + list(tensor.shape))
        result.dtype = tensor.dtype
        return result

    tensors = [None if each is None else in_rank_4(each) for each in (query, key, value, attn_mask)]
    result = of_rank_4(*tensors, *options)
    if rank > 4:
        return op.Reshape(result, op.Concat(op.Shape(query, end=-1), op.Shape(value, start=-1), axis=0))
    return op.Squeeze(result, op.Constant(value_ints=list(range(4 - rank))))
