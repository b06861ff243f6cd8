#!/usr/bin/env python3
"""Prints figures of a demo network: scripts/evaluate_demo.py hspan-tiny-x4."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation
    from tools.running import run_script

    run_script("tools.training.evaluate", extras="training")
