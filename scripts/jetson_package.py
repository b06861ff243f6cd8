#!/usr/bin/env python3
"""Builds the packages for Jetson boards, on a machine that is none: what `make jetson` runs."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation
    from tools.running import run_script

    run_script("tools.jetson_package.command", extras="jetson-build")
