"""Commands of a build: their first error in one line, their progress as numbers, all they print in a log."""

from __future__ import annotations

from pathlib import Path

import pytest

from trt_hspan.errors import HspanError
from trt_hspan.native.cmake import run_cmake
from trt_hspan.native.progress import BuildProgress


def failing(lines: list[str]) -> list[str]:
    return ["sh", "-c", 'printf "%s\\n" "$@"; exit 3', "sh", *lines]


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        (["a", "x.cpp:3: error: no such type", "y.cpp:4: fatal error: late"], "x.cpp:3: error: no such type"),
        (["x.cu(7): Fatal Error: bad  "], "x.cu(7): Fatal Error: bad"),
        (["cp: No space left on device", "error"], "cp: No space left on device"),
        (["[3/9] Building errors of error.o", "terrors", "done"], "done"),
        (["[ 33%] error", "last", "", "  "], "last"),
        ([""], "no message"),
        (
            ["CMake Error at CMakeLists.txt:3 (message):", *(f"  {word}" for word in "abcdefgh")],
            "a b c d e f g",
        ),
        (["CMake Error: no generator"], "CMake Error: no generator"),
        (["error " + "x" * 400], "error " + "x" * 294),
    ],
)
def test_the_first_line_that_reads_like_an_error_is_shown(
    tmp_path: Path, lines: list[str], shown: str
) -> None:
    log = tmp_path / "new" / "build.log"
    with pytest.raises(HspanError) as refused:
        run_cmake([["true"], failing(lines), ["touch", str(tmp_path / "late")]], log, where="plugin")
    assert str(refused.value) == f"plugin: does not compile: {shown}; the whole log is {log}"
    assert log.read_text() == "\n".join(lines) + "\n"
    assert not (tmp_path / "late").exists()


def test_progress_is_that_of_ninja_or_of_make(tmp_path: Path) -> None:
    seen: list[BuildProgress] = []
    lines = [
        "-- Configuring",
        "[1/4] Building CXX object a/b/c.cpp.o",
        "[ 50%] Linking",
        "[4/4] Done",
        "[x] no",
    ]
    run_cmake([["printf", "%s\n", *lines]], tmp_path / "log", where="x", on_progress=seen.append)
    assert [progress.phase for progress in seen] == ["Building CXX object c.cpp.o", "Linking", "Done"]
    assert [progress.fraction for progress in seen] == pytest.approx([0.1 + 0.9 / 4, 0.55, 1.0])


def test_an_interrupt_ends_the_command(tmp_path: Path) -> None:
    def interrupted(_: BuildProgress) -> None:
        raise KeyboardInterrupt

    command = ["sh", "-c", "echo '[1/2] Building'; exec sleep 1000"]
    with pytest.raises(KeyboardInterrupt):
        run_cmake([command], tmp_path / "log", where="x", on_progress=interrupted)


def test_an_environment_is_passed_and_a_program_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run_cmake([["/bin/sh", "-c", "echo $NAME"]], log, where="x", environment={"NAME": "value"})
    assert log.read_text() == "value\n"
    with pytest.raises(HspanError, match="no such file"):
        run_cmake([[tmp_path / "none"]], log, where="x")


@pytest.mark.parametrize(
    ("line", "fraction", "phase"),
    [
        ("[0/4] Building CUDA object a/x.cu.o", 0.1, "Building CUDA object x.cu.o"),
        ("[  1%] Building CXX object b.cpp.o", 0.1 + 0.9 * 0.01, "Building CXX object b.cpp.o"),
        ("[100%] Built target x", 1.0, "Built target x"),
        ("[1/0x] no", None, None),
        ("[a%] no", None, None),
        ("text [1/2] no", None, None),
    ],
)
def test_a_line_of_progress_is_read(
    tmp_path: Path, line: str, fraction: float | None, phase: str | None
) -> None:
    seen: list[BuildProgress] = []
    run_cmake([["printf", "%s\n", line]], tmp_path / "log", where="x", on_progress=seen.append)
    assert [progress.phase for progress in seen] == ([] if phase is None else [phase])
    assert [progress.fraction for progress in seen] == ([] if fraction is None else pytest.approx([fraction]))


def test_an_error_of_cmake_is_shown_as_far_as_a_line_takes_it(tmp_path: Path) -> None:
    lines = ["CMake Error at x:", *(["y" * 50] * 7), "z"]
    with pytest.raises(HspanError) as refused:
        run_cmake([failing(lines)], tmp_path / "log", where="plugin")
    shown = " ".join(["y" * 50] * 7)[:300]
    assert f"does not compile: {shown}; " in str(refused.value)
    assert refused.value.next_step == f"the whole log is {tmp_path / 'log'}"


def test_bytes_that_are_no_text_and_both_streams_are_in_the_log(tmp_path: Path) -> None:
    run_cmake([["sh", "-c", r"printf '\\377\\n'; echo out >&2"]], tmp_path / "log", where="x")
    assert "out" in (tmp_path / "log").read_text()
