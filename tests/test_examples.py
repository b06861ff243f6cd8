"""The examples in docstrings run and print what they say; every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import trt_hspan
import trt_hspan.ops

PUBLIC_NAMES = [
    *((trt_hspan, name) for name in trt_hspan.__all__ if not name.startswith("__")),
    *((trt_hspan.ops, name) for name in trt_hspan.ops.__all__),
]


def modules_with_examples() -> list[str]:
    """Read from the files: some modules without examples need a GPU's packages, and are not imported."""
    root = Path(trt_hspan.__file__).parent
    return [
        ".".join(path.relative_to(root.parent).with_suffix("").parts)
        for path in sorted(root.rglob("*.py"))
        if ">>> " in path.read_text(encoding="utf-8")
    ]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_print_what_they_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0, "see the captured output"


@pytest.mark.parametrize(
    ("package", "name"), PUBLIC_NAMES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_public_name_has_an_example(package: object, name: str) -> None:
    documentation = inspect.getdoc(getattr(package, name)) or ""
    assert "Example:\n" in documentation
    assert ">>> " in documentation
