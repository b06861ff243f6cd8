#!/usr/bin/env python3
"""Sends pictures to a server; prints latencies, errors and memory: scripts/load_test.py IMAGE... --url URL."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation
    from tools.running import run_script

    run_script("tools.load_test.command", extras="serve")
