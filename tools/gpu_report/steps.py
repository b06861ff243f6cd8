"""One step in a process of its own: a kernel that fails leaves a CUDA context in which nothing works any more.

python -m tools.gpu_report.steps STEP FOLDER [--quick] [--device cpu] [--budget SECONDS]
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from trt_hspan.files import atomic_path

KERNELS, TIMING, NETWORK, ENGINES, PROGRAMS, SERVER = "c", "d", "e", "f", "g", "h"


def answer_of(options: argparse.Namespace) -> dict[str, Any]:
    """The step's report. Imports what the step needs and no more."""
    folder, library = options.folder, options.library or options.folder / "libhspan_cuda.so"
    answer: dict[str, Any]
    if options.step == KERNELS:
        from tools.gpu_report import kernels

        answer = kernels.run(
            library, device=options.device, budget_seconds=options.budget, quick=options.quick
        )
    elif options.step == TIMING:
        from tools.gpu_report import timing

        answer = timing.run(library, budget_seconds=options.budget)
    elif options.step == NETWORK:
        from tools.gpu_report import network

        answer = network.run(library, os.environ)
    elif options.step == ENGINES:
        from tools.gpu_report import engines

        answer = engines.run(folder, budget_seconds=options.budget)
    else:
        from tools.gpu_report import programs

        answer = (programs.run_programs if options.step == PROGRAMS else programs.run_server)(folder)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=[KERNELS, TIMING, NETWORK, ENGINES, PROGRAMS, SERVER])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--library", type=Path)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--name", default=None, help="of the file with the answer")
    options = parser.parse_args()
    answer = answer_of(options)
    with atomic_path(options.folder / f"{options.name or options.step}.json") as temporary:
        temporary.write_text(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
