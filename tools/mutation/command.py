"""The command behind `make mutation`: a seeded sample of mistakes, what no test noticed, and the score."""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tools.mutation.mistakes import Mistake, change, sample
from tools.mutation.trial import PACKAGE, Copy, Verdict
from tools.running import exit_code
from trt_hspan.errors import HspanError, UsageError

#: Of the package: what computes, decides or checks. The commands' own modules only pass on.
ROOMS: Final = (
    *(
        "engine",
        "evaluation",
        "export",
        "graph",
        "inspection",
        "jobs",
        "machine",
        "media",
        "model",
        "model_repository",
        "native",
    ),
    *("ops", "precision", "runtime", "serving", "upscaling"),
)
LEAST_SCORE: Final = 0.93
_ROOT: Final = Path(__file__).resolve().parents[2]


def modules(root: Path) -> list[str]:
    """The modules of these rooms, as paths from the root."""
    paths = (path for room in ROOMS for path in sorted((root / PACKAGE / room).rglob("*.py")))
    return [str(path.relative_to(root)) for path in paths if path.name != "__init__.py"]


def main(words: list[str] | None = None) -> int:
    """Plants the mistakes and prints what came of them. Exit code 1 where fewer than 93 % were noticed."""
    parser = argparse.ArgumentParser(
        prog="mutation",
        description="Plants small mistakes into the package, one at a time, and runs its tests.",
    )
    parser.add_argument("--count", type=int, default=150, help="mistakes (150)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, another sample (1)")
    parser.add_argument("--only", default="", help="of modules whose path contains this")
    parser.add_argument("--jobs", type=int, default=2, help="mistakes at a time (2)")
    parser.add_argument("--minutes", type=float, default=20, help="begins no further one after so long (20)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=120,
        help="of a test file, before it counts as failed (120)",
    )
    arguments = parser.parse_args(words)
    return exit_code("mutation", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    if min(arguments.count, arguments.jobs) < 1:
        raise UsageError("mutation", "--count and --jobs are at least 1")
    chosen = [module for module in modules(_ROOT) if arguments.only in module]
    planted = sample(_ROOT, chosen, arguments.count, arguments.seed)
    if not planted:
        raise UsageError("--only", f"no module's path contains {arguments.only!r}")
    with tempfile.TemporaryDirectory(prefix="trt-hspan-mutation-") as scratch:
        results = _verdicts(planted, Path(scratch), arguments)
    noticed = sum(verdict == "noticed" for _, verdict in results)
    score = noticed / len(results) if results else 0.0
    left = len(planted) - len(results)
    print(
        f"{noticed} of {len(results)} mistakes were noticed: {100 * score:.1f} %"
        + (f"; no time was left for {left} more" if left else "")
    )
    if score < LEAST_SCORE:
        raise HspanError(
            "mutation", f"fewer than {100 * LEAST_SCORE:.0f} % were noticed", "write tests for the rest"
        )


def _verdicts(
    planted: list[Mistake], scratch: Path, arguments: argparse.Namespace
) -> list[tuple[Mistake, Verdict]]:
    end = time.monotonic() + 60 * arguments.minutes
    passing: dict[str, bool] = {}
    copies: SimpleQueue[Copy] = SimpleQueue()
    for number in range(arguments.jobs):
        folder = scratch / str(number)
        folder.mkdir()
        copies.put(Copy(_ROOT, folder))

    def judge(mistake: Mistake) -> tuple[Mistake, Verdict] | None:
        if time.monotonic() > end:
            return None
        copy = copies.get()
        try:
            verdict = copy.verdict(mistake, arguments.seconds, passing)
        finally:
            copies.put(copy)
        print(f"{verdict}: {mistake.module}:{mistake.place[0]}: {change(_ROOT, mistake)}", flush=True)
        return mistake, verdict

    with ThreadPoolExecutor(arguments.jobs) as pool:
        return [result for result in pool.map(judge, planted) if result is not None]
