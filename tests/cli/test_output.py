"""Tables of commands: names as they must be typed, numbers whole, lines that fit."""

from __future__ import annotations

import re

import pytest

from trt_hspan.cli import output
from trt_hspan.cli.output import print_report, print_rows, print_table

COLUMNS = ["picture", *(f"figure {letter}" for letter in "abcdefgh")]
NAME = "a_picture_whose_name_is_long_and_has_to_be_typed_again.png"
ROWS = [["cat.png", *["-123.4567890"] * 8], ["dog.png", *["1.234e-05"] * 8]]


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_wide_table_becomes_several_that_fit_with_whole_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(is_terminal)))
    print_rows("Figures", COLUMNS, ROWS, ["worst", *["1.0"] * 8])
    lines = printed(capsys)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert text.count("-123.4567890") == 8
    assert text.count("cat.png") == text.count("worst") > 1
    assert [column for column in COLUMNS if column not in text] == []
    assert text.count("Figures") == 1


def test_a_name_is_never_broken_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_rows("Figures", COLUMNS, [[NAME * 2, *ROWS[0][1:]]])
    print_table("", {"sha256 of a checkpoint": "f" * 100, "name": NAME})
    text = capsys.readouterr().out
    assert text.count(NAME * 2) > 1
    assert "f" * 100 in text


def test_names_are_printed_as_typed_and_fields_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    print_report("", {"size_bytes": 3}, {"size_bytes": 3, "conv_match1": 4}, as_json=False)
    print_table("", {"body.0/conv_match1": 1, "[bold]": 2})
    text = capsys.readouterr().out
    for name in ("size bytes", " conv_match1", "body.0/conv_match1", "[bold]"):
        assert name in text


def test_a_shape_is_printed_as_one_and_a_list_of_names_as_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", {"input": ["batch", 3, "height"], "architectures": ["sm_75", "sm_80"]})
    text = capsys.readouterr().out
    assert "batch x 3 x height" in text
    assert "sm_75, sm_80" in text


def test_columns_are_grouped_by_width() -> None:
    assert output._groups([10, 10, 10], 31) == [[0, 1, 2]]
    assert output._groups([10, 10, 10], 30) == [[0, 1], [0, 2]]
    assert output._groups([10, 99, 10], 30) == [[0, 1], [0, 2]]
    assert output._groups([10], 5) == [[0]]
