"""All cases of the compiled kernels, for four targets, and all mistakes: `make ptx`.

Prints a line per list and per mistake. The exit code is 1 where a case fails or a mistake is not noticed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ptx.mistakes import MISTAKES, Mistake, is_noticed
from tools.kernel_report.interpreter import build_program, missing_for_interpreter

#: Everything for the least architecture of the tiled kernels, and of others whose code differs what is quick.
LISTS = {
    80: ("quick", "sizes", "overflow", "wide", "special", "plain", "large"),
    75: ("quick", "plain"),
    90: ("quick", "special"),
    120: ("quick",),
}


def run_list(target: int, name: str) -> tuple[bool, str]:
    """One list: whether all its cases pass, and the lines to print."""
    start = time.monotonic()
    command = [build_program("run_cases", target, jobs=1), str(target), name]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = process.stdout.splitlines()
    cases = [line for line in lines if " runs " in line]
    bad = [line for line in cases if not line.endswith(" ok")]
    greatest = max((float(share) for share in re.findall(r"of bound (\S+)", process.stdout)), default=0.0)
    text = (
        f"compute_{target} {name}: {len(cases)} cases, {len(bad)} failed; greatest error {greatest:.3f} of its bound; "
        f"{time.monotonic() - start:.0f} s"
    )
    return process.returncode == 0, "\n  ".join([text, *bad[:20], *process.stderr.splitlines()[:1]])


def run_mistake(mistake: Mistake) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as folder:
        noticed, line = is_noticed(mistake, Path(folder))
    verdict = re.sub(r"^.* M  ", "", line)[:150] if noticed else "not noticed"
    if mistake.harmless:
        return not noticed, f"{mistake.what}: {verdict}, as expected: {mistake.harmless}"
    return noticed, f"{mistake.what}: {verdict}"


def results(jobs: int) -> Iterator[tuple[bool, str]]:
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run_list, target, name) for target, names in LISTS.items() for name in names]
        futures += [pool.submit(run_mistake, mistake) for mistake in MISTAKES]
        for future in futures:
            yield future.result()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (2)")
    arguments = parser.parse_args()
    if (missing := missing_for_interpreter()) is not None:
        print(f"ptx: error: {missing}", file=sys.stderr)
        return 1
    wrong = 0
    for passed, text in results(arguments.jobs):
        wrong += not passed
        print(("ok      " if passed else "FAILED  ") + text, flush=True)
    print(
        f"{wrong} of {sum(map(len, LISTS.values()))} lists and {len(MISTAKES)} mistakes are not as expected"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
