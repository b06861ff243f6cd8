"""Slow, plain float64 oracles. They share no code and no algorithm with what they judge."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def sparsemax_reference(scores: ArrayLike) -> NDArray[np.float64]:
    """Sparsemax of each row by sorting (Martins & Astudillo 2016, algorithm 1). (..., L) -> (..., L)."""
    s = np.asarray(scores, dtype=np.float64)
    s = s - s.max(-1, keepdims=True)
    descending = -np.sort(-s, axis=-1)
    sums = np.cumsum(descending, axis=-1)
    ranks = np.arange(1, s.shape[-1] + 1)
    support = (1 + ranks * descending > sums).sum(-1, keepdims=True)
    tau = (np.take_along_axis(sums, support - 1, axis=-1) - 1) / support
    return np.maximum(s - tau, 0)


def attention_reference(query: ArrayLike, key: ArrayLike, value: ArrayLike) -> NDArray[np.float64]:
    """Dense sparsemax attention: (N, C, H, W), (N, C, H, W), (N, D, H, W) -> (N, D, H, W) float64."""
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (query, key, value))
    flat_q, flat_k, flat_v = (x.reshape(*x.shape[:2], -1) for x in (q, k, v))
    weights = sparsemax_reference(np.einsum("ncq,nck->nqk", flat_q, flat_k))
    return np.einsum("nqk,ndk->ndq", weights, flat_v).reshape(v.shape)
