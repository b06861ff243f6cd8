#!/usr/bin/env python3
"""Trains one network with four kinds of attention and compares them: scripts/compare_attention.py --minutes 30."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation
    from tools.running import run_script

    run_script("tools.training.regions", extras="training")
