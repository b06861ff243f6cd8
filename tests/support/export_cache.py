"""ONNX files that many tests read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.golden import load_golden_network


class ExportCache:
    """Exports each golden network once for each set of options and session; the files must not be changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: dict[tuple[object, ...], Path] = {}

    def __call__(self, name: str, **options: Any) -> Path:
        """The ONNX file of this golden network, with its own res_scale unless the options say another."""
        from trt_hspan import export_onnx

        golden = load_golden_network(name)
        key = (name, *sorted(options.items()))
        if key not in self._paths:
            path = self._folder / f"{name}_{len(self._paths)}.onnx"
            arguments = {"res_scale": golden.res_scale, **options}
            self._paths[key] = export_onnx(golden.checkpoint, path, **arguments)
        return self._paths[key]
