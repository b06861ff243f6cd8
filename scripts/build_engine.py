#!/usr/bin/env python3
"""Builds a TensorRT engine from a checkpoint or an ONNX file: `trt-hspan build` under the name users expect."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation
    from tools.running import run_script

    run_script("trt_hspan.cli", "build", *sys.argv[1:], extras="export,plugin,rtx")
