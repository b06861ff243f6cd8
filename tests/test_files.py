"""Files that appear together or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trt_hspan.errors import HspanError
from trt_hspan.files import check_writable, remove_abandoned_stages, staged_files, write_bytes


def targets_in(folder: Path) -> list[Path]:
    return [folder / name for name in ("x.plan", "x.onnx", "x.json")]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def write_new(targets: list[Path], *, count: int = 3, then: Exception | None = None) -> None:
    """Writes the first `count` files of the set; then raises."""
    with staged_files(targets) as staged:
        for path in staged[:count]:
            path.write_text("new")
        if then is not None:
            raise then


OLD = {"x.plan": "old plan", "x.onnx": "old onnx", "x.json": "old json"}
NEW = {"x.plan": "new", "x.onnx": "new", "x.json": "new"}


@pytest.fixture
def old_set(tmp_path: Path) -> Path:
    for name, text in OLD.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_all_files_appear_in_a_folder_that_is_made(tmp_path: Path) -> None:
    with staged_files(targets_in(tmp_path / "a" / "b")) as staged:
        for path in staged:
            path.write_text("new")
        assert [path for path in (tmp_path / "a" / "b").iterdir() if not path.name.startswith(".")] == []
    assert contents(tmp_path / "a" / "b") == NEW


def test_an_old_set_is_replaced_whole(old_set: Path) -> None:
    write_new(targets_in(old_set))
    assert contents(old_set) == NEW


def test_a_failing_block_leaves_the_old_set_and_no_trace(old_set: Path) -> None:
    with pytest.raises(RuntimeError):
        write_new(targets_in(old_set), then=RuntimeError())
    assert contents(old_set) == OLD


def test_a_failing_block_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staged_files(targets_in(tmp_path / "a" / "b")):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_rename_that_fails_brings_the_old_set_back(
    old_set: Path, monkeypatch: pytest.MonkeyPatch, failing: int, links: bool
) -> None:
    renamed = Path.replace
    name = targets_in(old_set)[failing].name

    def replace(self: Path, target: Path) -> Path:
        if self.parent.name.startswith(".") and target.name == name and target.parent == old_set:
            raise OSError(errno.EIO, "broken", str(self))
        return renamed(self, target)

    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(Path, "replace", replace)
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(HspanError, match=name):
        write_new(targets_in(old_set))
    assert contents(old_set) == OLD


def test_a_rename_that_fails_takes_new_files_away_again(tmp_path: Path) -> None:
    with pytest.raises(HspanError):
        write_new(targets_in(tmp_path), count=2)  # the third is never written, so its rename fails
    assert contents(tmp_path) == {}


def test_a_full_disk_is_reported_with_the_file_that_met_it(tmp_path: Path) -> None:
    with (
        pytest.raises(HspanError, match=r"x\.onnx: the disk is full"),
        staged_files(targets_in(tmp_path)) as staged,
    ):
        raise OSError(errno.ENOSPC, "No space left on device", str(staged[1]))
    assert contents(tmp_path) == {}


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").mkdir()
    with pytest.raises(HspanError, match=r"x\.onnx: is a folder"), staged_files(targets_in(tmp_path)):
        pass


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "x.onnx"
    os.mkfifo(pipe)
    with pytest.raises(HspanError, match=r"x\.onnx: is a pipe, a socket or a device"):
        write_bytes(pipe, b"x")
    assert pipe.is_fifo()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(HspanError, match=r"x\.plan: cannot write"):
        check_writable(tmp_path / "a" / "x.plan")


def test_the_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "x.plan")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission_is_refused(unwritable_folder: Path) -> None:
    with pytest.raises(HspanError, match=r"x\.plan: no permission to write here"):
        check_writable(unwritable_folder / "x.plan")


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib; from trt_hspan.files import staged_files\n"
        "with staged_files([pathlib.Path(sys.argv[1])]) as (path,):\n"
        "    path.write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.png")], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert (left / "a.png").read_text() == "half"
    (tmp_path / ".trt-hspan-journal.jsonl").write_text("{}")
    (tmp_path / ".trt-hspan-journal").mkdir()
    with staged_files([tmp_path / "b.png"]) as (path,):
        remove_abandoned_stages(tmp_path)
        assert not left.exists()
        (tmp_path / ".trt-hspan-journal").rmdir()  # of a cluster's run, and still here
        path.write_text("whole")
    assert contents(tmp_path) == {"b.png": "whole", ".trt-hspan-journal.jsonl": "{}"}
