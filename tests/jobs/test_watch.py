"""The folder that is watched: what is taken when, where everything goes, and when the loop ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.permissions import read_only
from support.runner_doubles import NearestRunner
from support.small_engine import SmallEngine

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.jobs import watch
from trt_hspan.jobs.watch import (
    FAILURES_IN_A_ROW,
    FolderWatch,
    Handled,
    WatchSpec,
    notify_systemd,
    watch_folder,
)
from trt_hspan.media.pictures import read_image
from trt_hspan.media.writing import write_picture


class Network:
    """Copies; fails for contents that begin with "bad", and its probe does when it is broken."""

    def __init__(self) -> None:
        self.broken = False
        self.probes = 0

    def upscale(self, source: Path, target: Path) -> None:
        if self.broken or source.read_bytes().startswith(b"bad"):
            raise HspanError(source, "cannot be done")
        target.write_bytes(source.read_bytes())

    def probe(self) -> None:
        self.probes += 1
        if self.broken:
            raise HspanError("engine", "is broken", "start again")


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def folder(tmp_path: Path, network: Network) -> FolderWatch:
    spec = WatchSpec(incoming=tmp_path / "in", outgoing=tmp_path / "out")
    return FolderWatch(spec, network.upscale, network.probe)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_picture_is_taken_once_it_stands_still(tmp_path: Path, folder: FolderWatch) -> None:
    picture = tmp_path / "in" / "a.png"
    picture.write_bytes(b"half")
    assert folder.look() == []
    picture.write_bytes(b"half and the rest")
    assert folder.look() == []
    (done,) = folder.look()
    assert (done.outcome, done.source, done.target) == ("done", picture, tmp_path / "out" / "a.png")
    assert files(tmp_path) == {"in/done/a.png", "out/a.png"}
    assert folder.look() == []


def test_only_pictures_that_are_plain_files_are_taken(tmp_path: Path, folder: FolderWatch) -> None:
    incoming = tmp_path / "in"
    for name in (".hidden.png", "notes.txt", "noname"):
        (incoming / name).write_bytes(b"x")
    (incoming / "folder.png").mkdir()
    (incoming / "link.png").symlink_to(incoming / "notes.txt")
    os.mkfifo(incoming / "pipe.png")
    before = sorted(incoming.iterdir())
    for name in ("a.png", "b.png"):
        (incoming / name).write_bytes(b"x")
    assert folder.look() == []
    assert [one.source.name for one in folder.look()] == ["a.png", "b.png"]
    assert sorted(incoming.iterdir()) == before


def test_a_file_that_vanishes_while_it_is_looked_at_is_passed_over(
    tmp_path: Path, folder: FolderWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "in" / "b.png"
    picture.write_bytes(b"x")

    def vanished(*, follow_symlinks: bool) -> None:
        raise FileNotFoundError

    gone = SimpleNamespace(name="a.png", is_file=lambda *, follow_symlinks: True, stat=vanished)
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: contextlib.nullcontext([gone, *scandir(place)]))
    folder.look()
    assert [one.source for one in folder.look()] == [picture]


def test_the_oldest_comes_first_and_a_stop_leaves_the_rest(tmp_path: Path, folder: FolderWatch) -> None:
    for name, age in (("new.png", 10), ("old.jpg", 30), ("mid.gif", 20), ("newest.png", 5)):
        path = tmp_path / "in" / name
        path.write_bytes(b"x")
        os.utime(path, (1_000_000_000 - age,) * 2)
    folder.look()
    answers = iter([False, False, True])
    handled = folder.look(stop=lambda: next(answers))
    assert [one.source.name for one in handled] == ["old.jpg", "mid.gif"]
    assert handled[1].target.name == "mid.gif.png"
    assert (tmp_path / "in" / "new.png").is_file()


def test_a_failure_is_reported_beside_the_picture(tmp_path: Path, folder: FolderWatch) -> None:
    (tmp_path / "in" / "a.png").write_bytes(b"bad")
    folder.look()
    (failed,) = folder.look()
    assert failed.outcome == "failed"
    assert failed.line.endswith("a.png: cannot be done")
    assert (tmp_path / "in/failed/a.png.txt").read_text() == f"{failed.line}\n"
    assert files(tmp_path) == {"in/failed/a.png", "in/failed/a.png.txt"}


def test_done_pictures_may_be_deleted(tmp_path: Path, network: Network) -> None:
    spec = WatchSpec(incoming=tmp_path / "in", outgoing=tmp_path / "out", delete=True)
    folder = FolderWatch(spec, network.upscale, network.probe)
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    folder.look()
    folder.look()
    assert files(tmp_path) == {"out/a.png"}


@pytest.mark.parametrize("delete", [False, True])
def test_a_picture_that_somebody_took_meanwhile_is_done(tmp_path: Path, *, delete: bool) -> None:
    def upscale(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())
        source.unlink()

    spec = WatchSpec(incoming=tmp_path / "in", outgoing=tmp_path / "out", delete=delete)
    folder = FolderWatch(spec, upscale, lambda: None)
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    folder.look()
    assert [one.outcome for one in folder.look()] == ["done"]
    assert files(tmp_path) == {"out/a.png"}


def test_a_picture_that_cannot_be_moved_away_ends_the_loop(tmp_path: Path, folder: FolderWatch) -> None:
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    (tmp_path / "in" / "done" / "a.png").mkdir()
    folder.look()
    with pytest.raises(HspanError, match=r"in/a\.png"):
        folder.look()


@pytest.mark.parametrize(
    ("contents", "probes"),
    [
        ([b"bad"] * 10, 2),
        ([b"bad"] * 9, 1),
        ([b"bad"] * 4 + [b"good"] + [b"bad"] * 4, 0),
    ],
)
def test_five_bad_pictures_in_a_row_are_a_reason_to_test_the_network(
    tmp_path: Path, folder: FolderWatch, network: Network, contents: list[bytes], probes: int
) -> None:
    for number, content in enumerate(contents):
        path = tmp_path / "in" / f"{number}.png"
        path.write_bytes(content)
        os.utime(path, (1_000_000_000 + number,) * 2)
    folder.look()
    assert len(folder.look()) == len(contents)
    assert network.probes == probes


def test_a_network_that_fails_ends_the_loop(tmp_path: Path, folder: FolderWatch, network: Network) -> None:
    network.broken = True
    for n in range(2 * FAILURES_IN_A_ROW):
        (tmp_path / "in" / f"{n}.png").write_bytes(b"x")
    folder.look()
    with pytest.raises(HspanError, match="engine: is broken"):
        folder.look()
    assert len(list((tmp_path / "in").glob("*.png"))) == FAILURES_IN_A_ROW


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path, folder: FolderWatch) -> None:
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    with pytest.raises(HspanError, match="no such file or folder"):
        folder.look()


@pytest.mark.parametrize("name", ["in", "out", "in/done", "in/failed"])
def test_a_folder_that_cannot_be_written_is_reported_at_the_start(
    tmp_path: Path, folder: FolderWatch, network: Network, name: str
) -> None:
    spec = WatchSpec(incoming=tmp_path / "in", outgoing=tmp_path / "out")
    with (
        read_only(tmp_path / name),
        pytest.raises(HspanError, match=f"{name}.*: no permission to write here"),
    ):
        FolderWatch(spec, network.upscale, network.probe)


def test_folders_must_not_share_files() -> None:
    for outgoing in ("in", "in/out", "."):
        with pytest.raises(UsageError, match="name separate folders"):
            WatchSpec(incoming=Path("in"), outgoing=Path(outgoing))
    for seconds in (0, -1, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="--seconds"):
            WatchSpec(incoming=Path("in"), outgoing=Path("out"), seconds=seconds)


class Stop(threading.Event):
    """Set after so many waits; notes how long each would have been."""

    def __init__(self, waits: int = 99) -> None:
        super().__init__()
        self.waits, self.waited = waits, []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout)
        if len(self.waited) >= self.waits:
            self.set()
        return self.is_set()


@dataclass
class Watched:
    """What became of a watched folder."""

    runner: NearestRunner
    handled: list[Handled]
    states: list[str]
    begun: int = 0


def watched(monkeypatch: pytest.MonkeyPatch, spec: WatchSpec, stop: Stop) -> Watched:
    seen = Watched(NearestRunner(scale=2), [], [])
    monkeypatch.setattr(watch, "notify_systemd", seen.states.append)

    def begin() -> None:
        seen.begun += 1
        assert seen.runner.active
        assert spec.outgoing.is_dir()

    watch_folder(spec, seen.runner, stop, on_begin=begin, on_picture=seen.handled.append)
    assert not seen.runner.active
    return seen


def test_once_ends_when_two_looks_found_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = WatchSpec(incoming=tmp_path / "in", outgoing=tmp_path / "out", once=True)
    for name in ("a.png", "b.png"):
        write_picture(spec.incoming / name, np.full((4, 6, 3), 90, np.uint8))
    stop = Stop()
    seen = watched(monkeypatch, spec, stop)
    assert seen.begun == 1
    assert [one.outcome for one in seen.handled] == ["done", "done"]
    assert read_image(spec.outgoing / "a.png").shape == (8, 12, 3)
    assert stop.waited == [1.0] * 3  # the first look, the one with pictures, and one more; the fourth ends it
    label = seen.runner.label
    assert seen.states == [f"READY=1\nSTATUS={label}", f"STATUS={label}: 2 pictures", "STOPPING=1"]


def test_watching_goes_on_until_it_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = WatchSpec(incoming=tmp_path / "in", outgoing=tmp_path / "out", seconds=0.5)
    stop = Stop(waits=7)
    assert watched(monkeypatch, spec, stop).handled == []
    assert stop.waited == [0.5] * 7


def test_the_network_is_tested_on_a_small_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = WatchSpec(incoming=tmp_path / "in", outgoing=tmp_path / "out", once=True)
    spec.incoming.mkdir()
    for number in range(5):
        (spec.incoming / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")  # and nothing else
    seen = watched(monkeypatch, spec, Stop())
    assert [one.outcome for one in seen.handled] == ["failed"] * 5
    assert seen.runner.calls == [(1, 3, 16, 16)]


def test_systemd_may_have_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"trt-hspan-test-{os.getpid()}"
        manager.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert notify_systemd("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_systemd_is_notified_through_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify_systemd("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert notify_systemd("READY=1")
        assert manager.recv(100) == b"READY=1"
    assert not notify_systemd("READY=1")  # nobody listens any more


def test_the_command_works_until_a_signal_ends_it(tmp_path: Path, small_engine: SmallEngine) -> None:
    """As systemd runs it: ready when the engine is open, a picture, SIGTERM, exit code 0."""
    incoming, outgoing = tmp_path / "in", tmp_path / "out"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        command = [sys.executable, "-m", "trt_hspan", "jetson", "watch", str(small_engine.plan)]
        command += ["--from", str(incoming), "--to", str(outgoing), "--seconds", "0.1"]
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            try:
                assert manager.recv(1000).startswith(b"READY=1\nSTATUS=ONNX Runtime")
                write_picture(incoming / "a.png", pixels)
                assert manager.recv(1000).endswith(b"1 pictures")
                child.send_signal(signal.SIGTERM)
                out, err = child.communicate(timeout=60)
            finally:
                child.kill()
        assert manager.recv(1000) == b"STOPPING=1"
    assert child.returncode == 0, err
    assert b"emulating the engine" in err
    assert out.decode().startswith("a.png: ")
    assert read_image(outgoing / "a.png").shape == (80, 96, 3)
    assert files(incoming) == {"done/a.png"}
