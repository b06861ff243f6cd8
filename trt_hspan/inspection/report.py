"""What an inspection gives back. Pure data, ready for a table or JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["engine", "onnx", "checkpoint", "plugin", "CPU library"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer, node or weight.

    Attributes:
        name: as the file has it.
        type: operator, layer type, or kind of weight.
        precision: of its result or values, such as "float16"; None when the file does not say.
        shape: of its result or values; free dimensions keep their names, None when the file does not say.
    """

    name: str
    type: str
    precision: str | None = None
    shape: tuple[int | str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A file, described.

    Attributes:
        path: the file or preset.
        kind: what it is.
        facts: names and plain values: who built it, precisions, profiles, memory.
        layers: what it consists of.
        layers_from: where the layers were read.
    """

    path: str
    kind: Kind
    facts: dict[str, Any]
    layers: tuple[Layer, ...] = field(default=())
    layers_from: str = "the file"
