"""Planted mistakes: which there are, that each is in the source, and what their trial says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.mutation import command
from tools.mutation.mistakes import change, mistakes, sample, source_with
from tools.mutation.trial import Copy, mirroring_tests

SOURCE = '''
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import sys
def clamped(value: int | None, *, low: int = 2) -> int | None:
    """At least low."""
    if value is None or value < low and not value == 7:
        raise ValueError("got " + str(value) + f"{value:>4}")
    return max(value, low) - low
def until_zero(count):
    while count > 0:
        count = count - 3
    return True
def pairs(values):
    return list(zip(values, values, strict=True))
'''


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A package of one module, and its tests."""
    root = tmp_path / "checkout"
    for name, text in {
        "trt_hspan/room/module.py": SOURCE,
        "trt_hspan/room/__init__.py": "",
        "trt_hspan/__init__.py": "",
        "pyproject.toml": '[tool.pytest.ini_options]\nmarkers = ["slow", "soak"]\n',
        "tests/room/test_module.py": (
            "import logging\n"
            "from trt_hspan.room.module import clamped, until_zero\n"
            "def test_it():\n"
            "    logging.error('pytest shows this, as a line that begins with ERROR')\n"
            "    assert clamped(5) == 3 and until_zero(6)\n"
        ),
        "tests/room/test_broken.py": "import trt_hspan.room.module\ndef test_it(): assert 0\n",
        "tests/room/test_other.py": "def test_it(): assert 0\n",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MODULE = "trt_hspan/room/module.py"


def test_the_mistakes_that_change_something_are_these(checkout: Path) -> None:
    every = sorted(sample(checkout, [MODULE], 99, 1), key=lambda mistake: mistake.place)
    assert [(mistake.place, mistake.operator.split("_", 1)[-1]) for mistake in every] == [
        ((5, 45), "NumberReplacer"),
        ((7, 7), "AddNot"),
        ((7, 13), "Is_IsNot"),
        ((7, 21), "ReplaceOrWithAnd"),
        ((7, 30), "Lt_LtE"),
        ((7, 36), "ReplaceAndWithOr"),
        ((7, 40), "Delete_Not"),
        ((7, 50), "Eq_NotEq"),
        ((7, 53), "NumberReplacer"),
        ((9, 11), "Opposite"),
        ((9, 27), "Sub_Add"),
        ((11, 10), "AddNot"),
        ((11, 16), "Gt_GtE"),
        ((11, 18), "NumberReplacer"),
        ((12, 22), "Sub_Add"),
        ((12, 24), "NumberReplacer"),
        ((13, 11), "ReplaceTrueWithFalse"),
    ]


def test_membership_and_functions_become_their_opposites(checkout: Path) -> None:
    (checkout / MODULE).write_text("a = 1 in b\na = 1 not in b\na = b is not c\na = max(b)\na = any(max)\n")
    every = [mistake for mistake in mistakes(checkout, MODULE) if mistake.operator == "Opposite"]
    assert [change(checkout, mistake) for mistake in every] == [
        "a = 1 in b -> a = 1 not in b",
        "a = 1 not in b -> a = 1  in b",
        "a = max(b) -> a = min(b)",
        "a = any(max) -> a = all(max)",
    ]


def test_each_mistake_changes_one_line_alone(checkout: Path) -> None:
    for mistake in mistakes(checkout, MODULE):
        source = source_with(checkout, mistake)
        differing = [a for a, b in zip(source.splitlines(), SOURCE.splitlines(), strict=True) if a != b]
        assert len(differing) == 1


def test_a_sample_depends_on_its_seed_alone(checkout: Path) -> None:
    assert sample(checkout, [MODULE], 5, 1) == sample(checkout, [MODULE], 5, 1)
    assert sample(checkout, [MODULE], 5, 1) != sample(checkout, [MODULE], 5, 2)
    assert len(sample(checkout, [MODULE], 99, 1)) == 17


def test_the_mirroring_test_goes_first_and_others_that_name_the_module_follow(checkout: Path) -> None:
    assert mirroring_tests(checkout, MODULE) == ["tests/room/test_module.py", "tests/room/test_broken.py"]
    (checkout / "tests/elsewhere").mkdir()
    (checkout / "tests/elsewhere/test_x.py").write_text("from trt_hspan.room import module, elsewhere\n")
    assert mirroring_tests(checkout, MODULE)[0] == "tests/room/test_module.py"
    assert mirroring_tests(checkout, "trt_hspan/room/elsewhere.py")[0] == "tests/elsewhere/test_x.py"
    assert mirroring_tests(checkout, "trt_hspan/room/nowhere.py") == [
        f"tests/room/test_{name}.py" for name in ("broken", "module", "other")
    ]


def test_a_mistake_is_noticed_survives_or_is_stopped_and_leaves_nothing(
    checkout: Path, tmp_path: Path
) -> None:
    (tmp_path / "copy").mkdir()
    copy, passing = Copy(checkout, tmp_path / "copy"), dict[str, bool]()
    planted = {change(checkout, mistake): mistake for mistake in mistakes(checkout, MODULE)}
    smallest = planted["return max(value, low) - low -> return min(value, low) - low"]
    assert copy.verdict(smallest, 60, passing) == "noticed"
    otherwise = planted["while count > 0: -> while count > -1:"]
    assert copy.verdict(otherwise, 60, passing) == "survived"  # a test that always fails notices nothing
    module, broken = (f"tests/room/test_{name}.py::test_it" for name in ("module", "broken"))
    assert passing == {module: True, broken: False}
    endless = planted["count = count - 3 -> count = count + 3"]
    assert copy.verdict(endless, 1.5, {"tests/room/test_module.py": True}) == "noticed"
    assert (tmp_path / "copy" / MODULE).read_text() == SOURCE


def test_the_command_prints_the_score_and_fails_below_93_percent(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_ROOT", checkout)
    monkeypatch.setattr(command, "ROOMS", ("room",))
    monkeypatch.setattr(
        Copy,
        "failing",
        lambda self, test, seconds: test if "min(" in (self.folder / MODULE).read_text() else None,
    )
    assert command.main(["--count", "17", "--jobs", "1"]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "1 of 17 mistakes were noticed: 5.9 %"
    assert printed.out.count("survived: trt_hspan/room/module.py:") == 16
    assert "fewer than 93 % were noticed" in printed.err
    assert command.main(["--only", "nothing"]) == 2
    assert command.main(["--minutes", "0"]) == 1
    assert "no time was left for 17 more" in capsys.readouterr().out
