"""High-similarity-pass attention as one PyTorch operator. Owns its mathematics on torch tensors, and its gradient.

On a CPU the native library computes it (`trt_hspan.native.cpu_attention`, plugins/cpu), on NVIDIA's GPUs the CUDA
kernels (`trt_hspan.ops.cuda`, plugins/cuda); `reference_attention` is the same in torch alone, for other devices, for
float64, and where there is no library.

The soft threshold of HSPAN is sparsemax (Martins & Astudillo 2016): the Euclidean projection of a row of
scores onto the probability simplex. Its threshold is found by Newton's method on the piecewise linear
function sum(max(s - tau, 0)) - 1, started below the root (Michelot 1986; Condat 2016, section 2): the
iterates rise, the active set shrinks, and the result is exact after finitely many steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from trt_hspan.names import TORCH_OP
from trt_hspan.native.cpu_attention import NativeLibrary, NativeOptions, Operand, native_library
from trt_hspan.ops.cuda import ELEMENT_TYPES, gpu_attention, output_format

# Score rows are worked on in chunks of about this size: on a CPU so that the Newton passes stay in the cache, on a GPU
# so that each operation has work for all of it.
_CHUNK_BYTES = 2 << 20
_GPU_CHUNK_BYTES = 128 << 20
# Newton's rounds between two looks at whether all rows are done: on a GPU a look waits for everything before it.
_GPU_ROUNDS = 8

# Of a row's scores, in units of 2^-24; more than that is computed in float64.
_LIKELY_ERROR_ALLOWED: Final = 16.0


def high_similarity_pass_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Exact sparsemax attention over all positions: out_i = sum_j sparsemax_j(q_i . k_j) v_j.

    The scores are not divided by sqrt(C), as in HSPAN. Memory is O(L) beyond inputs and output: the L x L
    scores, L = H * W, exist only a chunk of rows at a time.

    Args:
        query: (N, C, H, W); float16, bfloat16, float32 or float64.
        key: (N, C, H, W), same dtype.
        value: (N, D, H, W), same dtype.

    Returns:
        (N, D, H, W) in the inputs' dtype. Scores, thresholds and sums are float32; scores whose rounding would show
        are float64 until their row's maximum is subtracted (float64 inputs: all is float64). Rows of equal scores
        weigh every position 1 / L. A row with a NaN or +inf score is NaN; a score of -inf weighs 0, and a row of
        nothing but -inf is NaN.

    Raises:
        ValueError: the shapes, dtypes or devices do not fit together.
        OutOfMemoryError, CudaError: the GPU has not the memory, or CUDA reports an error.

    Example:
        >>> import torch
        >>> from trt_hspan.ops import high_similarity_pass_attention
        >>> query, key, value = torch.rand(2, 8, 5, 7), torch.rand(2, 8, 5, 7), torch.rand(2, 16, 5, 7)
        >>> high_similarity_pass_attention(query, key, value).shape
        torch.Size([2, 16, 5, 7])
    """
    _check(query, key, value)
    result: Tensor = torch.ops.hspan.high_similarity_pass_attention(query, key, value)
    return result


def sparsemax_threshold(scores: Tensor) -> Tensor:
    """The threshold tau of each row: sum(max(scores - tau, 0)) = 1.

    Further rounds leave a row that is done as it is, so the result does not depend on how often the rows are looked at:
    in every round on a CPU, in every eighth on a GPU, and never while a CUDA graph is captured, which takes
    `most_newton_rounds`.

    Args:
        scores: (..., L) float32 or float64, each row shifted so that its maximum is 0.

    Returns:
        (..., 1) thresholds in [-1, 0). A row that contains NaN gives -1 and takes part in no further step.
    """
    tau = torch.full_like(scores[..., :1], -1.0)
    excess = torch.empty_like(scores)
    looks_every = _rounds_between_looks(scores)
    most = most_newton_rounds(scores.shape[-1], torch.finfo(scores.dtype).eps)
    for round_number in itertools.count(1):
        # tau + (sum of the excess - 1) / size of the active set is the Newton step.
        torch.sub(scores, tau, out=excess).clamp_min_(0)
        surplus = excess.sum(-1, keepdim=True) - 1
        # sign_().sum() counts six times faster than count_nonzero, and exactly up to 2^24 positions.
        risen = tau + surplus / excess.sign_().sum(-1, keepdim=True)
        # Only a strict rise goes on. Each rise drops scores from the active set or is the last one that
        # rounding allows, so the loop ends; comparisons with NaN are false and end a row at once.
        rising = risen > tau
        tau = torch.where(rising, risen, tau)
        if looks_every is None:
            if round_number == most:
                return tau
        elif round_number % looks_every == 0 and not bool(rising.any()):
            return tau
    raise AssertionError("unreachable")


def most_newton_rounds(positions: int, epsilon: float) -> int:
    """Rounds after which no threshold of rows of so many scores rises any more; epsilon is that of their type.

    Let h be a round's surplus F(tau) - 1 and n the size of its active set. F is convex with slope -n, so from one round
    to the next h'/h + n'/n <= 1, and the product h n falls to a quarter at least (T. Radzik, "Newton's method for
    fractional combinatorial optimization", 1992, has this for Newton's method on any such function). It starts below
    L^2. The rise h / n <= h n is lost in rounding once it is half a unit in the last place of tau, which is at least
    epsilon / 4L, as tau <= -1 / L: after log4(4 L^3 / epsilon) rounds.

    Example:
        >>> from trt_hspan.ops.attention import most_newton_rounds
        >>> most_newton_rounds(9216, epsilon=2.0**-23)
        33
    """
    return math.ceil(0.5 * (math.log2(4 / epsilon) + 3 * math.log2(max(positions, 1))))


def _is_captured(tensor: Tensor) -> bool:
    """Whether the device's current stream records a CUDA graph: nothing can be read from the device then."""
    if tensor.device.type != "cuda":
        return False
    with torch.cuda.device(tensor.device):
        return torch.cuda.is_current_stream_capturing()


def _rounds_between_looks(tensor: Tensor) -> int | None:
    if _is_captured(tensor):
        return None
    return _GPU_ROUNDS if tensor.device.type == "cuda" else 1


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        raise ValueError(f"expected three (N, channels, H, W) tensors, got {shapes}")
    if query.shape != key.shape:
        raise ValueError(f"query and key must have one shape, got {shapes}")
    if query.shape[0] != value.shape[0] or query.shape[2:] != value.shape[2:]:
        raise ValueError(f"value must share N, H and W with query and key, got {shapes}")
    if not (query.dtype == key.dtype == value.dtype) or not query.dtype.is_floating_point:
        raise ValueError(f"expected one floating dtype, got {query.dtype}, {key.dtype}, {value.dtype}")
    if not (query.device == key.device == value.device):
        raise ValueError(f"expected one device, got {query.device}, {key.device}, {value.device}")


def _tokens(image: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H * W, C) in the dtype of the arithmetic, contiguous per token."""
    accumulate = torch.float64 if image.dtype == torch.float64 else torch.float32
    return image.flatten(2).transpose(1, 2).to(accumulate).contiguous()


def _image(tokens: Tensor, like: Tensor) -> Tensor:
    """(N, L, D) -> (N, D, H, W) with the batch, height, width and dtype of `like`."""
    return (
        tokens.transpose(1, 2)
        .reshape(tokens.shape[0], tokens.shape[2], *like.shape[2:])
        .to(like.dtype)
        .contiguous()
    )


def _chunk_rows(tokens: Tensor) -> int:
    chunk_bytes = _GPU_CHUNK_BYTES if tokens.device.type == "cuda" else _CHUNK_BYTES
    return max(1, chunk_bytes // (tokens.shape[1] * tokens.element_size()))


def _wide_type(tensor: Tensor) -> torch.dtype:
    """Float64 where the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _is_refined(query: Tensor, key: Tensor, wide: torch.dtype) -> Tensor:
    """(L,) for rows of float32 scores whose rounding would show: plugins/cpu/README.md derives when."""
    norms = torch.linalg.vector_norm(key, dim=-1, dtype=wide)
    largest = norms.where(norms.isfinite(), 0).amax()
    likely_error = query.shape[1] ** 0.5 * torch.linalg.vector_norm(query, dim=-1, dtype=wide) * largest
    result: Tensor = (likely_error > _LIKELY_ERROR_ALLOWED) & (query.dtype != wide)
    return result


def _weights_of_rows(query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
    """Sparsemax weights (R, L) of any R rows of query (L, C) over all keys (L, C), as a function of the rows.

    Where the rounding of float32 scores would show, they are computed in float64, and their distances from the row's
    maximum are what is rounded. The threshold's last step is one of float64.
    """
    wide = _wide_type(query)
    is_refined = _is_refined(query, key, wide)
    # Read from the device once for all rows; while a graph is captured it cannot be, and all are computed both ways.
    candidates = torch.ones_like(is_refined, device="cpu") if _is_captured(query) else is_refined.cpu()
    wide_key = key.to(wide) if bool(candidates.any()) else key

    def weights(rows: slice) -> Tensor:
        scores = query[rows] @ key.T
        scores -= scores.amax(-1, keepdim=True)
        refined = candidates[rows].nonzero().flatten()
        if len(refined):
            at = slice(None) if len(refined) == len(scores) else refined.to(scores.device)
            rounded = scores[at]
            exact = (query[rows][at].to(wide) @ wide_key.T).masked_fill_(rounded.isneginf(), -torch.inf)
            exact -= exact.amax(-1, keepdim=True)
            stays = rounded.isnan() | ~is_refined[rows][at, None]
            scores[at] = rounded.where(stays, exact.to(scores.dtype))
        excess = scores.sub_(sparsemax_threshold(scores)).clamp_min_(0)
        surplus = excess.sum(-1, keepdim=True, dtype=wide) - 1
        support = excess > 0
        correction = (surplus / support.sum(-1, keepdim=True)).to(excess.dtype)
        return excess.sub_(correction * support).clamp_min_(0)

    return weights


def reference_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The operator in torch alone; arguments and result as `high_similarity_pass_attention`.

    Example:
        >>> import torch
        >>> from trt_hspan.ops.attention import reference_attention
        >>> equal_scores = torch.zeros(1, 4, 1, 3)
        >>> reference_attention(equal_scores, equal_scores, torch.tensor([[[[3.0, 6.0, 9.0]]]]))
        tensor([[[[6., 6., 6.]]]])
    """
    q, k, v = _tokens(query), _tokens(key), _tokens(value)
    out = torch.empty_like(v)
    rows = _chunk_rows(q)
    for n in range(q.shape[0]):
        weights = _weights_of_rows(q[n], k[n])
        for start in range(0, q.shape[1], rows):
            span = slice(start, start + rows)
            torch.mm(weights(span), v[n], out=out[n, span])
    return _image(out, value)


def native_attention(
    library: NativeLibrary,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: NativeOptions | None = None,
) -> Tensor:
    """The operator by the native library: float32, float16 or bfloat16 tensors in main memory, of any strides.

    Returns:
        (N, D, H, W), contiguous.

    Raises:
        OutOfMemoryError: the library cannot allocate its workspace.
        ValueError: shapes, element type or options do not fit.
    """
    output = torch.empty_like(value, memory_format=torch.contiguous_format)
    # Copies, where there are any, must live until the call is over.
    inputs = [_with_one_position_stride(tensor) for tensor in (query, key, value)]
    library.attend(
        *(_operand(tensor) for tensor in (*inputs, output)),
        element_type=ELEMENT_TYPES[value.dtype],
        options=options or NativeOptions(threads=torch.get_num_threads()),
    )
    return output


def _with_one_position_stride(image: Tensor) -> Tensor:
    """The tensor, copied where its H * W positions are not at equal distances in memory."""
    height, width = image.shape[2:]
    if height == 1 or width == 1 or image.stride(2) == width * image.stride(3):
        return image
    return image.contiguous()


def _operand(image: Tensor) -> Operand:
    n, channels, height, width = image.shape
    position_stride = image.stride(2) if width == 1 else image.stride(3)
    return Operand(
        image.data_ptr(), (n, channels, height * width), (image.stride(0), image.stride(1), position_stride)
    )


@contextmanager
def _promised_arithmetic(tensor: Tensor) -> Iterator[None]:
    """Sums stay in the types that the operator promises: no autocast, and no TF32 or BF16 for float32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(tensor.device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


# Defined and implemented one by one: what `torch.library.custom_op` makes of the same imports PyTorch's compiler at its
# first call, 87 MB in a second or more.
_TAGS: Final = (torch.Tag.pt2_compliant_tag,)
torch.library.define(TORCH_OP, "(Tensor query, Tensor key, Tensor value) -> Tensor", tags=_TAGS)
torch.library.define(
    f"{TORCH_OP}_backward",
    "(Tensor gradient, Tensor query, Tensor key, Tensor value) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)


@torch.library.impl(TORCH_OP, "default")
def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if not value.numel():
        return torch.empty_like(value, memory_format=output_format(value))
    if value.dtype in ELEMENT_TYPES and query.numel():
        if value.device.type == "cpu" and (library := native_library()) is not None:
            return native_attention(library, query, key, value)
        if value.device.type == "cuda" and (output := gpu_attention(query, key, value)) is not None:
            return output
    with _promised_arithmetic(value):
        return reference_attention(query, key, value).contiguous(memory_format=output_format(value))


@torch.library.register_fake(TORCH_OP)  # type: ignore[untyped-decorator]
def _attention_shape(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(value, memory_format=output_format(value))


@torch.library.impl(f"{TORCH_OP}_backward", "default")
def _attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value. The weights are computed again, not stored: memory stays O(L).

    The Jacobian of sparsemax is diag(s) - s s^T / |S| with s the indicator of the support S
    (Martins & Astudillo 2016, proposition 2), so dscores = 1_S (dweights - mean over S of dweights).
    """
    if not value.numel():
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    with _promised_arithmetic(value):
        return _gradients(gradient, query, key, value)


def _gradients(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, g = _tokens(query), _tokens(key), _tokens(value), _tokens(gradient)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    rows = _chunk_rows(q)
    for n in range(q.shape[0]):
        weights_of = _weights_of_rows(q[n], k[n])
        for start in range(0, q.shape[1], rows):
            span = slice(start, start + rows)
            weights = weights_of(span)
            dv[n].addmm_(weights.T, g[n, span])
            support = weights > 0
            dweights = (g[n, span] @ v[n].T).mul_(support)
            mean = dweights.sum(-1, keepdim=True) / support.sum(-1, keepdim=True)
            dscores = dweights.sub_(mean).mul_(support)
            torch.mm(dscores, k[n], out=dq[n, span])
            dk[n].addmm_(dscores.T, q[n, span])
    return _image(dq, query), _image(dk, key), _image(dv, value)


@torch.library.register_fake(f"{TORCH_OP}_backward")  # type: ignore[untyped-decorator]
def _attention_backward_shape(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(query, memory_format=torch.contiguous_format),
        torch.empty_like(key, memory_format=torch.contiguous_format),
        torch.empty_like(value, memory_format=torch.contiguous_format),
    )


def _save_inputs(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor
) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.hspan.high_similarity_pass_attention_backward(
        gradient,
        *ctx.saved_tensors,  # type: ignore[attr-defined]
    )
    return result


torch.library.register_autograd(TORCH_OP, _differentiate, setup_context=_save_inputs)
