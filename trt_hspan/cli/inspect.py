"""`trt-hspan inspect`: what an engine, an ONNX file, a checkpoint or a compiled library is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trt_hspan.cli import options
from trt_hspan.cli.output import print_json, print_rows, print_table, size_text
from trt_hspan.cli.request import argument, flag, takes_request


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    file: str = argument("A .plan, .onnx, .pt, .pth, .safetensors or .so file, or a preset's name.", "FILE")
    layers: bool = flag("List every layer in the table too, as --json does.")
    json: bool = options.json()


@takes_request
def inspect(request: InspectRequest) -> None:
    """Print what FILE is: who built it, precisions, profiles, memory, layers. None of its code runs."""
    from trt_hspan.inspection.files import inspect_file

    report = inspect_file(request.file)
    if request.json:
        print_json(asdict(report))
        return
    rows = {
        name.removesuffix("_bytes").replace("_", " "): _readable(name, value)
        for name, value in report.facts.items()
        if value is not None
    }
    if report.layers:
        rows["layers"] = f"{len(report.layers)}, from {report.layers_from}"
    print_table(f"{report.path}: {report.kind}", rows)
    if request.layers and report.layers:
        print_rows(
            "Layers",
            ["name", "type", "precision", "shape"],
            [
                [x.name, x.type, x.precision or "-", "-" if x.shape is None else _shape(x.shape)]
                for x in report.layers
            ],
            [f"{len(report.layers)} in all", "", "", ""],
        )


def _readable(name: str, value: Any) -> Any:
    """Sizes in MB, shapes with an x, lists of words with commas."""
    if name.endswith("_bytes") and isinstance(value, int):
        return size_text(value)
    if name == "profiles":
        return "\n".join(f"{index}: {_profile(item)}" for index, item in enumerate(value))
    if name == "weights_memory_by_type":
        return ", ".join(f"{kind} {size_text(size)}" for kind, size in value.items())
    if name == "tensors":
        return ", ".join(f"{item['mode']} {item['dtype']} {_shape(item['shape'])}" for item in value)
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return value if not isinstance(value, bool) else "yes" if value else "no"


def _profile(item: dict[str, Any]) -> str:
    shapes = ", ".join(f"{side} {_shape(item[side])}" for side in ("min", "opt", "max"))
    memory = item["activation_memory_bytes"]
    return shapes if memory is None else f"{shapes}, activations {size_text(memory)}"


def _shape(shape: Sequence[int | str]) -> str:
    return "x".join(map(str, shape))
