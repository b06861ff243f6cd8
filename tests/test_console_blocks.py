"""Every command block of README and docs that can run here, typed in a fresh environment of a fresh checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from PIL import Image
from support.synthetic_pictures import picture

from trt_hspan.native.cpu_attention import NativeLibrary

ROOT: Final = Path(__file__).parents[1]
DOCUMENTS: Final = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))

#: Why blocks are not run here: those of a document, or those of it that type these words.
NOT_RUN: Final = {
    "docs/gpu.md": "needs a GPU: tests/tools/gpu_report runs its steps on a stand-in",
    "docs/jetson.md": "compiles for minutes, and is for the board: tests/tools/jetson_package types it",
    "docs/jetson-first-picture.md": "is for the board: tests/tools/jetson_package types it under emulation",
    "docs/precision.md": "calibrates and measures for minutes: tests/cli and tests/precision",
    "docs/report.md": "validates three engines for minutes: tests/evaluation/report",
    "docs/serving.md": "servers run until they are stopped: tests/serving",
    "docs/interoperability.md": "exports again: tests/cli/test_export.py types these options",
    "README.md: .[export,gpu,plugin]": "needs a GPU",
    "README.md: trt-hspan evaluate HSPAN_x4.pt": "needs the published checkpoint and sets: tests/cli/test_evaluate.py",
    "README.md: trt-hspan serve": "a server runs until it is stopped: tests/serving",
    "README.md: sudo apt install": "is for the board",
    "docs/runtime.md: trt-hspan bench": "measures for a minute: tests/evaluation/speed",
    "docs/walk-through.md: make demo": "sets up everything: tests/test_demo.py runs the demo",
    "docs/walk-through.md: .[export,gpu,plugin]": "needs a GPU",
}
#: Exit codes other than 0 that are meant.
EXIT_CODES: Final = {"docs/runtime.md: trt-hspan doctor": 1}  # no GPU is here to run the engine


@dataclass(frozen=True)
class Block:
    """A block: `commands` is what is typed, continued lines included."""

    document: str
    text: str
    is_repeated: bool = False

    @property
    def commands(self) -> str:
        lines = re.findall(r"^\$ (.*(?:\\\n.*)*)", self.text, re.MULTILINE)
        return "\n".join(lines)

    @property
    def name(self) -> str:
        return f"{self.document} $ {self.commands}"

    @property
    def reason(self) -> str | None:
        """Why it is not run; None when it is."""
        if self.is_repeated:
            return "an earlier block has the same lines"
        return next((why for key, why in NOT_RUN.items() if self.is_meant(key)), None)

    def is_meant(self, key: str) -> bool:
        """Whether a key of the tables above is this block's."""
        document, _, words = key.partition(": ")
        return self.document == document and words in self.commands


def blocks() -> list[Block]:
    found: list[Block] = []
    lines: set[str] = set()
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for body in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            block = Block(document, body)
            typed = set(block.commands.splitlines())
            if typed:  # others continue a transcript
                found.append(Block(document, body, is_repeated=typed <= lines))
                lines |= typed if found[-1].reason is None else set()
    return found


BLOCKS: Final = blocks()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, plugin_library: Path, library: NativeLibrary) -> Path:
    """What is committed, with the libraries compiled and a smaller photograph, so that it takes seconds.

    Required packages are found in the environment of the tests instead of being downloaded again.
    """
    root = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    for path, folder in ((plugin_library, "plugin"), (library.path, "cpu")):
        (root / "build" / folder).mkdir(parents=True)
        shutil.copy2(path, root / "build" / folder / path.name)
    Image.fromarray(picture(96, 128, seed=3)).save(root / "trt_hspan" / "data" / "chelsea.png")
    return root


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.reason is None], ids=lambda block: block.name[:60]
)
def test_a_block_works_as_typed(block: Block, checkout: Path) -> None:
    activate = "if [ -e .venv/bin/activate ]; then . .venv/bin/activate; fi\n"
    completed = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", activate + block.commands],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    expected = next((code for key, code in EXIT_CODES.items() if block.is_meant(key)), 0)
    assert completed.returncode == expected, f"{block.commands}\n{completed.stdout}\n{completed.stderr}"
    for name in re.findall(r" -o (\S+\.(?:png|plan|onnx))", block.commands):
        assert (checkout / name).stat().st_size > 0


def test_reasons_name_blocks_that_exist() -> None:
    for key in (*NOT_RUN, *EXIT_CODES):
        assert any(block.is_meant(key) for block in BLOCKS), f"{key}: no such block"


def test_the_first_block_makes_the_environment_of_all_others() -> None:
    assert BLOCKS[0].commands.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install -e")
    assert BLOCKS[0].reason is None
    assert "activate` in each new terminal" in (ROOT / "README.md").read_text()
