#!/usr/bin/env python3
"""Reports registers, spills, occupancy and the roofline of the CUDA kernels, without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation
    from tools.kernel_report.report import main

    sys.exit(main())
