"""The command behind `make wheel`: arguments, progress, what is printed."""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.running import exit_code
from tools.wheel.build import MACHINES, build_distributions
from trt_hspan.errors import UsageError


def main(words: list[str] | None = None) -> int:
    """Builds the wheels and the source distribution. The exit code is that of the error, one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="build_wheels",
        description="Builds wheels with the compiled libraries, and the source distribution.",
    )
    parser.add_argument("machines", nargs="*", metavar="MACHINE", help=f"{', '.join(MACHINES)} (both)")
    parser.add_argument("-o", "--output", type=Path, default=Path("dist"), help="their folder (dist)")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (2)")
    arguments = parser.parse_args(words)
    return exit_code("build_wheels", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from trt_hspan.cli.progress import progress

    if arguments.jobs < 1:
        raise UsageError("--jobs", f"got {arguments.jobs}, expected at least 1")
    machines = arguments.machines or MACHINES
    with progress("building wheels") as bar:
        built = build_distributions(
            arguments.output, machines, jobs=arguments.jobs, on_progress=bar.phases("building wheels")
        )
    for path in built:
        print(f"{path.stat().st_size / 1e6:6.1f} MB  {path}")
