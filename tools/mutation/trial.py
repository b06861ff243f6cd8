"""One mistake against the tests that mirror its module, in a copy of the package."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, Literal

from tools.mutation.mistakes import Mistake, source_with

Verdict = Literal["noticed", "survived"]
PACKAGE: Final = "trt_hspan"
_NO_TESTS: Final = 5  # pytest's exit code
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)  # and no line of a log


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
        """Whether a test fails with the mistake, or its file runs on after so many seconds, and passes without it.

        `passing` keeps which tests pass without any.
        """
        target = self.folder / mistake.module
        for test in mirroring_tests(self.root, mistake.module):
            target.write_text(source_with(self.root, mistake), encoding="utf-8")
            failing = self.failing(test, seconds)
            shutil.copyfile(self.root / mistake.module, target)
            if failing is not None and failing not in passing:
                passing[failing] = self.failing(failing, seconds) is None
            if failing is not None and passing[failing]:
                return "noticed"
        return "survived"

    def failing(self, test: str, seconds: float) -> str | None:
        """The first test that fails here, or the file if it runs on after so many seconds; None when all pass."""
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not slow and not soak"]
        with tempfile.TemporaryFile() as output:  # a pipe would be held open by servers that tests start
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *options, test],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"},
                stdout=output,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                return test
            finally:
                with contextlib.suppress(ProcessLookupError):  # servers and other processes of the tests too
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0)
            named = _FAILED.search(output.read().decode(errors="replace"))
        if code in (0, _NO_TESTS):
            return None
        return named[1] if named else test
