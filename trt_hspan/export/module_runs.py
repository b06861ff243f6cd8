"""Runs a module on pictures of some sizes: which ones it takes, and whether it returns one picture."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trt_hspan.errors import HspanError
from trt_hspan.graph.taken_sizes import NotTakenError, TakenSizes, taken_sizes
from trt_hspan.sizes import ImageSize

_PICTURE_ALONE: Final = (
    "wrap it in a module whose forward() takes and returns the picture alone, and export that"
)


class StandInAttention(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it without types
    """In its block the attention operator computes what `graph.model_with_stand_in_attention` does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.hspan.high_similarity_pass_attention.default:
            return func(*args, **(kwargs or {}))
        query, key, value = (tensor.float() for tensor in args)
        weight = (2 * query + key).mean(1, keepdim=True).sigmoid()
        return (weight * value).to(args[2].dtype)


def taken_by_module(
    model: nn.Module, channels: int, *, fixed: ImageSize | None = None, size_multiple: int | None = None
) -> TakenSizes:
    """As `graph.taken_sizes`. Raises: HspanError as that, or the module returns anything but one picture."""
    where, device = type(model).__name__, device_of(model)

    def run(size: ImageSize) -> ImageSize:
        try:
            with torch.no_grad(), StandInAttention():  # type: ignore[no-untyped-call]
                result = model(torch.zeros((1, channels, *size), device=device))
        except Exception as error:  # whatever forward() raises
            reason = " ".join(str(error).split())[:300]
            sizes = (
                "name what it takes, channels= and static=(height, width) or size_multiple=, or pad in forward() to "
                "the sizes that it takes"
            )
            raise NotTakenError(
                where,
                f"does not run on a picture of {channels} channels and {size}: {reason}",
                _PICTURE_ALONE if ".forward() missing " in reason else sizes,
            ) from error
        if (what := _no_picture(result)) is not None:
            raise HspanError(
                where,
                f"returns {what}, expected one tensor, the picture, (N, C, H, W) of floating point",
                _PICTURE_ALONE,
            )
        return ImageSize(*result.shape[2:])

    return taken_sizes(run, fixed=fixed, size_multiple=size_multiple)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside torch.compile, DataParallel or a holder of averaged weights.

    Raises: HspanError for what is no module of Python.
    """
    holders = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
    inner: object = model
    while isinstance(inner, nn.Module):
        model = inner
        if isinstance(model, torch.jit.ScriptModule):
            break
        inner = getattr(model, "_orig_mod", None) or getattr(model, "ema_model", None)
        cannot_run = type(model).forward is nn.Module.forward
        if inner is None and (isinstance(model, holders) or cannot_run) and len([*model.children()]) == 1:
            inner = next(model.children())
    if not isinstance(model, nn.Module) and isinstance(inner := getattr(model, "ema", None), nn.Module):
        return unwrapped(inner)
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise HspanError(
            type(model).__name__,
            "is no network that can be exported, expected a torch.nn.Module",
            "give the module itself, with its weights loaded",
        )
    return model


def device_of(model: nn.Module) -> torch.device:
    """Where a module's weights are."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """In its block the module is evaluated, nothing in it is compiled, and it returns float32; then it is as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    hook = model.register_forward_hook(
        lambda _module, _inputs, result: result.float() if _no_picture(result) is None else result
    )
    try:
        with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hook.remove()
        for module, was_training in training.items():
            module.training = was_training


def _no_picture(result: object) -> str | None:
    """What a module returned instead of a picture; None for a picture."""
    if not isinstance(result, Tensor):
        return f"a {type(result).__name__}"
    if result.ndim != 4 or 0 in result.shape:
        return f"a tensor of shape {tuple(result.shape)}"
    return None if result.is_floating_point() else f"a tensor of {str(result.dtype).removeprefix('torch.')}"
