"""The attention operator for PyTorch, imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trt_hspan.ops.attention import high_similarity_pass_attention

__all__ = ["high_similarity_pass_attention"]


def __getattr__(name: str) -> Any:
    if name == "high_similarity_pass_attention":
        from trt_hspan.ops.attention import high_similarity_pass_attention

        return high_similarity_pass_attention
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
