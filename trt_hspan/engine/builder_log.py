"""What TensorRT's log says in words, as data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_MEMORY = re.compile(r"^Total (?P<what>Activation|Weights) Memory: (?P<bytes>[0-9]+) bytes", re.ASCII)
_LAYERS = "Engine Layer Information:"
_LAYER = re.compile(r"^Layer\((?P<kind>[^)]*)\): ", re.ASCII | re.MULTILINE)
# TensorRT-RTX 1.7 says this once for each quantized convolution, however many targets, when scales are not float32.
_QUANTIZED_CONVOLUTION = "Converting conv weight scales to fp32"
_ABOUT_SCALES = re.compile(r"Converting conv (weight|activation) scales to fp32", re.ASCII)
_SOURCE_POSITION = re.compile(r"\s*\(?\bIn \S+ at \S+:\d+\s*(?=\)|$|\()")


@dataclass(frozen=True, kw_only=True)
class BuildFigures:
    """Figures from one engine's build. None: the log did not say.

    Args:
        activation_memory_bytes: for all activations at a profile's largest shapes, one figure a profile, in order.
        engine_layer_counts: layers of the built engine by kind; fused regions count once.
        quantized_convolutions: convolutions that the builder fused with their scales; None when it names none.
    """

    activation_memory_bytes: tuple[int, ...]
    weights_memory_bytes: int | None
    engine_layer_counts: Mapping[str, int] | None
    quantized_convolutions: int | None


def figures_from_log(messages: Iterable[str]) -> BuildFigures:
    """Reads the lines "Total Activation|Weights Memory: N bytes" and the "Engine Layer Information".

    *Measured* on TensorRT-RTX 1.7.1: however many targets, the activations' line comes once for each profile, in their
    order, the weights' once, and the layers' once, with the layers of all profiles.
    """
    activations: list[int] = []
    weights: int | None = None
    layers: Counter[str] | None = None
    fused = 0
    for message in messages:
        if (match := _MEMORY.match(message)) is not None:
            if match["what"] == "Activation":
                activations.append(int(match["bytes"]))
            else:
                weights = (weights or 0) + int(match["bytes"])
        elif message.startswith(_LAYERS):
            layers = (layers or Counter()) + Counter(layer["kind"] for layer in _LAYER.finditer(message))
        elif _QUANTIZED_CONVOLUTION in message:
            fused += 1
    return BuildFigures(
        activation_memory_bytes=tuple(activations),
        weights_memory_bytes=weights,
        engine_layer_counts=None if layers is None else dict(sorted(layers.items())),
        quantized_convolutions=fused or None,
    )


def is_figure(message: str) -> bool:
    """Whether `figures_from_log` reads this message; the others need not be kept."""
    return message.startswith(_LAYERS) or _MEMORY.match(message) is not None or is_about_scales(message)


def is_about_scales(message: str) -> bool:
    """Whether a warning only says that a quantized convolution's scales are taken in float32: no news to a user."""
    return _ABOUT_SCALES.search(message) is not None


def line_from_errors(errors: Iterable[str]) -> str | None:
    """The first error in one line, without TensorRT's own source positions; None when there are none.

    The first is the cause; what follows are its consequences, such as a failed look for a GPU.
    """
    first = next(iter(errors), None)
    if first is None:
        return None
    line = _SOURCE_POSITION.sub("", " ".join(first.split()))
    return line if len(line) <= 400 else f"{line[:397]}..."
