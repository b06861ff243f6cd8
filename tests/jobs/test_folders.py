"""Which files a command line means, and what happens to each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.jobs.folders import (
    JOURNAL_NAME,
    Journal,
    Task,
    TaskReport,
    run_tasks,
    settings_digest,
    tasks_from_inputs,
    turn_in_folder,
)
from trt_hspan.media.formats import VIDEO_SUFFIXES
from trt_hspan.upscaling.pictures import comparison_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """in/a.png, in/sub/b.jpg, in/sub/deep/c.gif, in/x.png/d.tif (a folder named x.png), in/v.mp4, and other files."""
    for name in (
        "a.png",
        "sub/b.jpg",
        "sub/deep/c.gif",
        "x.png/d.tif",
        "v.mp4",
        "notes.txt",
        ".hidden.png",
        ".git/e.png",
    ):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "in"


def names(tasks: list[Task], root: Path) -> dict[str, str]:
    return {os.path.relpath(t.source, root): os.path.relpath(t.target, root) for t in tasks}


def test_a_folder_is_mirrored_with_its_sub_folders(folder: Path, tmp_path: Path) -> None:
    tasks, is_folder, left_out = tasks_from_inputs([str(folder)], tmp_path / "out")
    assert is_folder
    assert names(tasks, tmp_path) == {
        "in/a.png": "out/a.png",
        "in/sub/b.jpg": "out/sub/b.jpg",
        "in/sub/deep/c.gif": "out/sub/deep/c.png",  # GIF is not written
        "in/x.png/d.tif": "out/x.png/d.tif",
        "in/v.mp4": "out/v.mp4",
    }
    assert left_out == [folder / "notes.txt"]  # hidden files are left out without a word


def test_the_output_folder_is_not_taken_for_input(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "z.png").touch()
    tasks = tasks_from_inputs([str(folder)], folder / "out").tasks
    assert "z.png" not in {task.source.name for task in tasks}
    assert len(tasks) == 5
    matched = tasks_from_inputs([str(folder / "**" / "*.png")], folder / "out").tasks
    assert [task.source.name for task in matched if task.source.name == "z.png"] == []


@pytest.mark.parametrize(("result", "is_video"), [("b.mkv", True), ("b.png", False)])
def test_a_file_whose_content_and_name_say_nothing_is_read_as_what_its_result_is(
    tmp_path: Path, result: str, is_video: bool
) -> None:
    source = tmp_path / "a.unheard"
    source.touch()
    (task,) = tasks_from_inputs([str(source)], tmp_path / result).tasks
    assert task.is_video == is_video


@pytest.mark.parametrize("inputs", ["", "*.png", "**/*.*"])
def test_results_in_the_folder_of_their_sources_are_not_taken_for_input(folder: Path, inputs: str) -> None:
    (folder / "v.mp4").unlink()
    words = [str(folder / inputs)]
    first = tasks_from_inputs(words, folder, suffix=".webp", companion=comparison_path).tasks
    assert "a.png" in {task.source.name for task in first}
    journal = Journal(folder, "settings")
    for task in first:
        journal.begin(task)
        task.target.touch()
        comparison_path(task.target).touch()
        journal.finish(task)
    again = tasks_from_inputs(words, folder, suffix=".webp", companion=comparison_path).tasks
    assert again == first
    assert {journal.why_not(task) for task in again} == {""}


def test_a_pattern_is_mirrored_below_its_fixed_part(folder: Path, tmp_path: Path) -> None:
    tasks = tasks_from_inputs([str(folder / "sub" / "**" / "*.*")], tmp_path / "out").tasks
    assert names(tasks, tmp_path) == {"in/sub/b.jpg": "out/b.jpg", "in/sub/deep/c.gif": "out/deep/c.png"}


def test_another_format_replaces_the_suffix_of_pictures_only(folder: Path, tmp_path: Path) -> None:
    tasks = tasks_from_inputs([str(folder)], tmp_path / "out", suffix=".webp").tasks
    assert {task.target.suffix for task in tasks} == {".webp", ".mp4"}


def test_one_file_goes_to_a_file_or_into_a_folder(folder: Path, tmp_path: Path) -> None:
    single = str(folder / "a.png")
    for output, target, is_folder in [
        (tmp_path / "b.jpg", tmp_path / "b.jpg", False),
        (tmp_path / "new", tmp_path / "new" / "a.png", True),
        (folder / "sub", folder / "sub" / "a.png", True),
        (folder / "x.png", folder / "x.png" / "a.png", True),  # a folder, whatever its name
    ]:
        tasks, is_job, _ = tasks_from_inputs([single], output)
        assert ([task.target for task in tasks], is_job) == ([target], is_folder)


def test_a_name_with_brackets_that_exists_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].png").touch()
    tasks = tasks_from_inputs([str(tmp_path / "a[1].png")], tmp_path / "b.png").tasks
    assert tasks[0].source.name == "a[1].png"


def test_missing_inputs_are_reported(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for text, message in [
        ("none.png", "none.png: no such file or folder"),
        ("in/*.bmp", r"in/\*.bmp: matches no picture or video; check the pattern"),
        ("empty", "empty: contains no pictures or videos"),
        ("a" * 300, "a name of 300 bytes, at most 255 are possible; shorten it"),
    ]:
        with pytest.raises(HspanError, match=message):
            tasks_from_inputs([str(tmp_path / text)], tmp_path / "out")


def test_a_folder_that_cannot_be_listed_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(place: object) -> None:
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(HspanError, match="in: no permission to read"):
        tasks_from_inputs([str(folder)], folder / "out")


def test_a_pattern_means_files_and_hidden_ones_only_where_it_says_so(folder: Path, tmp_path: Path) -> None:
    plain = tasks_from_inputs([str(folder / "**" / "*.png")], tmp_path / "out")
    assert (names(plain.tasks, folder).keys(), plain.left_out) == ({"a.png"}, [])  # x.png is a folder
    hidden = tasks_from_inputs([str(folder / ".*.png")], tmp_path / "out")
    assert names(hidden.tasks, folder).keys() == {".hidden.png"}


def test_a_pattern_below_the_output_folder_means_what_it_says(folder: Path) -> None:
    (task,) = tasks_from_inputs([str(folder / "sub" / "*.jpg")], folder).tasks
    assert (task.source, task.target) == (folder / "sub" / "b.jpg", folder / "b.jpg")


def test_an_earlier_result_is_a_source_where_it_goes_elsewhere(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    task = Task(source=folder / "a.png", target=out / "a.webp")
    Journal(out, 1).begin(task)
    task.target.touch()
    (again,) = tasks_from_inputs([str(out)], out, suffix=".png").tasks
    assert (again.source, again.target) == (out / "a.webp", out / "a.png")


def test_outputs_that_make_no_sense_are_wrong_usage(folder: Path, tmp_path: Path) -> None:
    (folder / "a.gif").touch()
    single = str(folder / "a.png")
    for inputs, output, message in [
        ([str(folder)], tmp_path / "out", r"a\.png: would be written from .*a\.gif and from .*a\.png"),
        ([str(folder / "sub")], tmp_path / "out.png", "is a file's name, but there may be several results"),
        ([single, str(folder / "v.mp4")], tmp_path / "b.png", "is a file's name"),
        ([str(folder / "sub" / "*")], tmp_path / "b.png", "is a file's name"),
        ([str(folder)], folder / "notes.txt", "notes.txt: is a file's name"),
        ([str(folder / "sub")], folder / "sub", "b.jpg: is the input itself"),
        ([single], folder / "a.png", "is the input itself"),
        ([single], tmp_path / "b.xyz", "cannot tell the format from '.xyz'"),
        ([single], tmp_path / "b.mp4", "a.png is a picture, this is a video's name"),
        ([str(folder / "v.mp4")], tmp_path / "b.png", "v.mp4 is a video, this is a picture's name"),
    ]:
        with pytest.raises(UsageError, match=message):
            tasks_from_inputs(inputs, output)


def test_a_folder_may_have_a_suffix(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.v2"
    assert tasks_from_inputs([str(folder / "sub")], out).is_folder
    out.mkdir()
    (task,) = tasks_from_inputs([str(folder / "a.png")], out).tasks
    assert task.target == out / "a.png"


# Doing them
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "target"),
    [
        ("a.ts", (b"G" + bytes(187)) * 3, "a.mkv"),
        ("a.m2ts", (b"\0\0\0\1G" + bytes(187)) * 3, "a.mkv"),
        ("a.mpg", b"\0\0\1\xba" + bytes(20), "a.mkv"),
        ("a.3gp", b"\0\0\0\x14ftyp3gp4" + bytes(20), "a.mkv"),
        ("a.wmv", b"0&\xb2u\x8ef\xcf\x11" + bytes(20), "a.mkv"),
        ("a.png", b"\x1aE\xdf\xa3" + bytes(20), "a.mkv"),  # Matroska under a picture's name
        ("a.y4m", b"YUV4MPEG2 W48 H32\n", "a.mkv"),
        ("a.264", b"\0\0\0\1\x67\x64", "a.mkv"),
        ("a.ogv", b"OggS" + bytes(24) + b"\x80theora", "a.mkv"),
        ("a.ogg", b"OggS" + bytes(24) + b"\1vorbis", None),
        ("a.avi", b"RIFF\1\0\0\0AVI LIST", "a.avi"),
        ("a.jfif", b"\xff\xd8\xff\xe0" + bytes(20), "a.jfif"),
        ("a", b"\xff\xd8\xff\xe0" + bytes(20), "a.png"),
        ("a.pbm", b"P4\n8 1\n\1", "a.png"),
        ("a.PNG", b"\x89PNG\r\n\x1a\n", "a.PNG"),
        ("a.mp4", b"\x89PNG\r\n\x1a\n", "a.png"),  # PNG under a video's name
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a.png"),
        ("a.bin", b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "a.png"),
        ("a.jxl", b"\xff\x0a\xfa", "a.png"),
        ("a.ts", b"export const a: number = 1;\n" * 30, None),  # TypeScript
        ("a.m4a", b"\0\0\0\x14ftypM4A " + bytes(20), None),
        ("a.wav", b"RIFF\1\0\0\0WAVEfmt ", None),
        ("a.txt", b"P7 is the next version", None),
        ("a.eps", b"%!PS-Adobe-3.0", None),
    ],
)
def test_the_content_of_a_file_says_what_it_is(
    tmp_path: Path, name: str, content: bytes, target: str | None
) -> None:
    source, out = tmp_path / "in" / name, tmp_path / "out"
    source.parent.mkdir()
    source.write_bytes(content)
    (source.parent / "z.png").touch()  # a name alone is enough where the content says nothing
    found = tasks_from_inputs([str(source.parent)], out)
    matched = tasks_from_inputs([str(source.parent / "*")], out)
    assert found == matched
    assert found.left_out == ([source] if target is None else [])
    expected = {source: out / target} if target else {}
    assert {task.source: task.target for task in found.tasks if task.source == source} == expected
    assert all(task.is_video == (task.target.suffix in VIDEO_SUFFIXES) for task in found.tasks)


def test_a_folder_without_pictures_says_how_many_files_it_has(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(HspanError, match="contains no pictures or videos, 1 other files"):
        tasks_from_inputs([str(tmp_path)], tmp_path / "out")


def test_one_run_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    """A second run, in another process, waits for the first; neither leaves a file of its own."""
    out = tmp_path / "new" / "out"
    script = (
        "import sys, pathlib; from trt_hspan.jobs.folders import turn_in_folder\n"
        "with turn_in_folder(pathlib.Path(sys.argv[1]), lambda: print('waits', flush=True)) as waited:\n"
        "    print(waited, flush=True)\n"
    )
    notes: list[str] = []
    with turn_in_folder(out, lambda: notes.append("waits")) as waited:
        command = [sys.executable, "-c", script, str(out)]
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert second.stdout is not None
        assert second.stdout.readline() == "waits\n"
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(0.2)
    assert (waited, notes) == (False, [])
    assert second.communicate()[0] == "True\n"
    assert second.returncode == 0
    assert not (tmp_path / "new").exists()


def test_what_killed_runs_left_in_any_folder_is_removed(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "a" / "b"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".trt-hspan-12345678").mkdir()
        (folder / "mine.png").touch()
    with turn_in_folder(tmp_path, lambda: None):
        left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
        assert left == ["a/b/mine.png", "mine.png"]
        assert not list(tmp_path.rglob(".trt-hspan-12345678"))


def copy(task: Task) -> str:
    task.target.parent.mkdir(parents=True, exist_ok=True)
    task.target.write_bytes(task.source.read_bytes())
    return task.source.name


def outcomes(folder: Path, out: Path, *, settings: object = 1, overwrite: bool = False) -> dict[str, str]:
    tasks = tasks_from_inputs([str(folder)], out).tasks
    reports = run_tasks(tasks, copy, journal=Journal(out, settings), overwrite=overwrite)
    return {entry.task.source.name: entry.outcome for entry in reports}


def test_finished_files_are_skipped_and_missing_ones_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    assert set(outcomes(folder, out).values()) == {"done"}
    (out / "sub" / "b.jpg").unlink()
    assert outcomes(folder, out) == {
        name: "done" if name == "b.jpg" else "skipped"
        for name in ("a.png", "b.jpg", "c.gif", "d.tif", "v.mp4")
    }
    assert set(outcomes(folder, out, overwrite=True).values()) == {"done"}


def test_a_file_that_somebody_else_wrote_is_neither_taken_for_finished_nor_replaced(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_text("mine")
    assert outcomes(folder, out)["a.png"] == "failed"
    assert (out / "a.png").read_text() == "mine"
    assert outcomes(folder, out, overwrite=True)["a.png"] == "done"
    assert outcomes(folder, out)["a.png"] == "skipped"


def test_a_companion_that_somebody_else_wrote_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tasks = tasks_from_inputs([str(folder / "a.png")], out).tasks
    mine = out / "a_compare.png"
    out.mkdir()
    mine.write_text("mine")
    os.utime(mine, (1, 1))

    def run(*, overwrite: bool = False, settings: int = 1) -> TaskReport:
        journal = Journal(out, settings, companion=comparison_path)
        (entry,) = run_tasks(tasks, copy, journal=journal, overwrite=overwrite)
        return entry

    assert "a_compare.png: exists and was not written by this command; give --overwrite" in str(run().error)
    assert not tasks[0].target.exists()
    assert run(overwrite=True).outcome == "done"
    tasks[0].target.unlink()
    assert run(settings=2).outcome == "failed"
    assert run().outcome == "done"
    tasks[0].target.unlink()
    Journal(out, 1).begin(tasks[0])
    assert run().outcome == "failed"  # it was there before
    mine.write_text("made by a process that was killed before the result was in place")
    assert run().outcome == "done"


def test_a_video_has_no_companion(folder: Path, tmp_path: Path) -> None:
    video = Task(source=folder / "v.mp4", target=tmp_path / "v.mp4")
    comparison_path(video.target).touch()
    assert Journal(tmp_path, 1, companion=comparison_path).companion_of_others(video) is None
    picture = Task(source=folder / "a.png", target=tmp_path / "v.png")
    journal = Journal(tmp_path, 1, companion=comparison_path)
    assert journal.companion_of_others(picture) == comparison_path(picture.target)


def test_a_journal_that_cannot_be_read_or_written_is_one_line(folder: Path, tmp_path: Path) -> None:
    journal = Journal(tmp_path, 1)
    (tmp_path / JOURNAL_NAME).mkdir()
    with pytest.raises(HspanError, match="journal"):
        journal.begin(Task(source=folder / "a.png", target=tmp_path / "a.png"))
    with pytest.raises(HspanError, match="journal"):
        Journal(tmp_path, 1)


def test_lines_of_the_journal_that_say_nothing_are_passed_over(folder: Path, tmp_path: Path) -> None:
    (tmp_path / JOURNAL_NAME).write_text('7\n{"target": "b.png"}\n[]\n')
    assert not Journal(tmp_path, 1).targets()


def test_settings_are_one_whatever_the_order_of_their_names() -> None:
    assert settings_digest({"a": 1, "b": Path("c")}) == settings_digest({"b": Path("c"), "a": 1})
    assert settings_digest({"a": 1}) != settings_digest({"a": 2})
    assert re.fullmatch("[0-9a-f]{16}", settings_digest(None))


def test_a_source_that_vanished_is_another_source(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    task = Task(source=folder / "a.png", target=out / "a.png")
    run_tasks([task], copy, journal=Journal(out, 1))
    task.source.unlink()
    assert "earlier state of its source" in str(Journal(out, 1).why_not(task))


def test_tasks_are_done_without_a_journal_and_timed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([10.0, 12.5, 20.0, 21.0, 30.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    tasks = [Task(source=folder / name, target=tmp_path / name) for name in ("a.png", "none.png")]
    begun: list[Task] = []
    done, failed = run_tasks(tasks, copy, on_begin=begun.append)
    assert begun == tasks
    assert (done.outcome, done.result, done.seconds, done.error) == ("done", "a.png", 2.5, None)
    assert (failed.outcome, failed.seconds) == ("failed", 1.0)
    journal = Journal(tmp_path, 1)
    (refused,) = run_tasks(tasks[:1], copy, journal=journal)
    assert (refused.outcome, refused.seconds) == ("failed", 0.0)


def test_other_settings_or_a_changed_source_are_not_passed_off_as_finished(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    outcomes(folder, out)
    assert set(outcomes(folder, out, settings=2).values()) == {"failed"}
    time.sleep(0.02)
    (folder / "a.png").write_text("changed")
    assert outcomes(folder, out)["a.png"] == "failed"
    tasks = tasks_from_inputs([str(folder)], out).tasks
    reports = run_tasks(tasks, copy, journal=Journal(out, 1))
    assert "was written from an earlier state of its source; give --overwrite" in str(reports[0].error)


def test_a_file_in_place_whose_end_was_never_noted_is_finished(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tasks = tasks_from_inputs([str(folder)], out).tasks
    Journal(out, 1).begin(tasks[0])
    copy(tasks[0])
    with (out / JOURNAL_NAME).open("a") as stream:
        stream.write('{"event": "fini')  # what a killed process leaves
    assert Journal(out, 1).why_not(tasks[0]) == ""
    assert Journal(out, 1).why_not(tasks[1]) is None
    Journal(out, 1).begin(tasks[1])
    copy(tasks[1])
    assert Journal(out, 1).why_not(tasks[1]) == ""


def test_a_failure_does_not_stop_the_rest(folder: Path, tmp_path: Path) -> None:
    tasks = tasks_from_inputs([str(folder)], tmp_path / "out").tasks
    ended: list[TaskReport] = []

    def do(task: Task) -> None:
        if task.source.name == "a.png":
            raise HspanError(task.source, "is broken")
        if task.source.name == "b.jpg":
            raise ZeroDivisionError("odd\nbug")
        copy(task)

    reports = run_tasks(tasks, do, journal=Journal(tmp_path / "out", 1), on_end=ended.append)
    assert reports == ended
    assert [entry.error for entry in reports if entry.outcome == "failed"] == [
        f"{folder / 'a.png'}: is broken",
        f"{folder / 'sub' / 'b.jpg'}: unexpected ZeroDivisionError: odd bug",
    ]
    assert [entry.outcome for entry in reports].count("done") == 3
    lines = (tmp_path / "out" / JOURNAL_NAME).read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines].count("finish") == 3


def test_an_interruption_is_not_a_failed_file(folder: Path, tmp_path: Path) -> None:
    tasks = tasks_from_inputs([str(folder)], tmp_path / "out").tasks

    def do(task: Task) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks(tasks, do)
