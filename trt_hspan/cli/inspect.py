"""`trt-hspan inspect`: what an engine, an ONNX file, a checkpoint or a compiled library is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trt_hspan.inspection.files import Layer


def inspect(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A .plan, .onnx, .pt, .pth, .safetensors or .so file, or a preset's name."
        ),
    ],
    layers: Annotated[bool, typer.Option("--layers", help="List every layer in the table too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, layers included.")] = False,
) -> None:
    """Tell what FILE is: who built it, precisions, profiles, memory, layers. None of its code runs."""
    from dataclasses import asdict

    from trt_hspan.cli.output import print_json, print_rows, print_table
    from trt_hspan.inspection.files import inspect_file

    found = inspect_file(file)
    if json:
        print_json(asdict(found))
        return
    rows = {
        name.removesuffix("_bytes"): _readable(name, value)
        for name, value in found.facts.items()
        if value is not None
    }
    if found.layers:
        rows["layers"] = f"{len(found.layers)}, from {found.layers_from}"
    print_table(f"{found.path}: {found.kind}", rows)
    if layers and found.layers:
        print_rows(
            "Layers",
            ["name", "type", "precision", "shape"],
            [_row(layer) for layer in found.layers],
            [f"{len(found.layers)} in all", "", "", ""],
        )


def _row(layer: Layer) -> list[str]:
    shape = "-" if layer.shape is None else "x".join(map(str, layer.shape))
    return [layer.name, layer.type, layer.precision or "-", shape]


def _readable(name: str, value: Any) -> Any:
    """Sizes in MB, shapes with an x, lists of words with commas."""
    if name.endswith("_bytes") and isinstance(value, int):
        return _megabytes(value)
    if name == "profiles":
        return "\n".join(f"{index}: {_profile(item)}" for index, item in enumerate(value))
    if name == "weights_memory_by_type":
        return ", ".join(f"{kind} {_megabytes(size)}" for kind, size in value.items())
    if name == "tensors":
        return ", ".join(f"{item['mode']} {item['dtype']} {_shape(item['shape'])}" for item in value)
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return value if not isinstance(value, bool) else "yes" if value else "no"


def _profile(item: dict[str, Any]) -> str:
    shapes = ", ".join(f"{side} {_shape(item[side])}" for side in ("min", "opt", "max"))
    memory = item["activation_memory_bytes"]
    return shapes if memory is None else f"{shapes}, activations {_megabytes(memory)}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
