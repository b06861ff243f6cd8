"""What a platform wheel contains beside the package: compiled libraries, named by the environment (tools/wheel)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledLibraries(BuildHookInterface):
    """Without the two variables the wheel is for any platform, and the libraries are compiled where it is installed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        folder = os.environ.get("TRT_HSPAN_WHEEL_LIBRARIES")
        if folder is None or version != "standard":
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{os.environ['TRT_HSPAN_WHEEL_PLATFORM']}"
        for library in Path(folder).glob("*.so"):
            build_data["force_include"][str(library)] = f"trt_hspan/_libraries/{library.name}"
