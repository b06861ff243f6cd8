"""One mistake against the tests that mirror its module, in a copy of the package."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final, Literal

from tools.mutation.mistakes import Mistake, source_with

Verdict = Literal["noticed", "survived"]
PACKAGE: Final = "trt_hspan"
_NO_TESTS: Final = 5  # pytest's exit code


def mirroring_tests(root: Path, module: str) -> list[str]:
    """The test files of the module's room that name it, the mirroring one first; if none does, those elsewhere that do,
    and then the whole room.

    trt_hspan/engine/spec.py is in the room tests/engine, and tests/engine/test_spec.py mirrors it.
    """
    path = Path(module).with_suffix("")
    parts = path.parts[1:]
    room = root / "tests" / (parts[0] if len(parts) > 1 else "")
    package, name = re.escape(".".join(path.parts[:-1])), re.escape(path.name)
    named = re.compile(rf"\b{package}(\.{name}\b| import [^\n]*\b{name}\b)")
    files = sorted(room.rglob("test_*.py") if len(parts) > 1 else room.glob("test_*.py"))
    naming, elsewhere = (
        [file for file in places if named.search(file.read_text(encoding="utf-8"))]
        for places in (files, sorted((root / "tests").rglob("test_*.py")))
    )
    mirrors = [file for file in files if file.stem == f"test_{path.name.lstrip('_')}"]
    chosen = dict.fromkeys([*mirrors, *naming] or [*elsewhere, *files])
    return [str(file.relative_to(root)) for file in chosen]


class Copy:
    """A checkout in which one module can be another: the package is copied, all else is linked."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        for path in root.iterdir():
            if path.name not in (PACKAGE, ".git"):
                (folder / path.name).symlink_to(path)
        shutil.copytree(root / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))

    def verdict(self, mistake: Mistake, seconds: float, passing: dict[str, bool]) -> Verdict:
        """Whether a test file fails with the mistake, or runs on after so many seconds, and passes without it.

        `passing` keeps which files pass without any.
        """
        target = self.folder / mistake.module
        for test in mirroring_tests(self.root, mistake.module):
            target.write_text(source_with(self.root, mistake), encoding="utf-8")
            failed = self.fails(test, seconds)
            shutil.copyfile(self.root / mistake.module, target)
            if failed and test not in passing:
                passing[test] = not self.fails(test, seconds)
            if failed and passing[test]:
                return "noticed"
        return "survived"

    def fails(self, test: str, seconds: float) -> bool:
        """Whether a test file fails here, or runs on after so many seconds. One without tests passes."""
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not slow and not soak"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, test],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(seconds) not in (0, _NO_TESTS)
        except subprocess.TimeoutExpired:
            return True
        finally:
            with contextlib.suppress(ProcessLookupError):  # servers and other processes of the tests too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
