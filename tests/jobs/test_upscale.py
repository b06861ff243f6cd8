"""Files as one job, with a network in numpy: what is refused before the network opens, and what is done again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.engine import manifest as manifests
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.jobs.folders import Task, TaskReport
from trt_hspan.jobs.upscale import JobOutcome, UpscaleJob, upscale_files
from trt_hspan.media.pictures import read_image
from trt_hspan.media.writing import write_picture
from trt_hspan.runtime.opening import RunnerOptions
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.pictures import WriteOptions
from trt_hspan.upscaling.video_encoder import VideoOptions


@dataclass
class Seen:
    """What a progress bar would show."""

    begun: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    tiles: list[tuple[int, int]] = field(default_factory=list)

    def begin(self, task: Task) -> None:
        self.begun.append(task.source.name)

    def end(self, report: TaskReport) -> None:
        self.ended.append(report.outcome)

    def on_tile(self, done: int, count: int) -> None:
        self.tiles.append((done, count))

    def on_frame(self, done: int, count: int | None) -> None: ...

    def note(self, line: str) -> None: ...


class Network:
    """Opens as `RunnerOptions` does; counts how often it was opened and loaded."""

    def __init__(self) -> None:
        self.opened, self.loaded = 0, 0
        self.facts: dict[str, Any] = {}

    def open(self, _: object) -> NearestRunner:
        self.opened += 1
        runner: Any = NearestRunner(scale=2, **self.facts)
        activate = runner.activate

        def counted() -> None:
            self.loaded += 1
            activate()

        runner.activate = counted
        return runner


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    double = Network()
    monkeypatch.setattr(RunnerOptions, "open", lambda _, source: double.open(source))
    return double


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, name in enumerate(("a.png", "b.png")):
        write_picture(tmp_path / "in" / name, np.full((4, 6, 3), 40 * index, np.uint8))
    return tmp_path / "in"


def job(*inputs: Path, output: Path, **changes: Any) -> UpscaleJob:
    plain = UpscaleJob(
        inputs=tuple(map(str, inputs)),
        output=str(output),
        network="net",
        execution=RunnerOptions(),
        options=UpscaleOptions(),
        writing=WriteOptions(),
        video=VideoOptions(),
        suffix=None,
        overwrite=False,
    )
    return replace(plain, **changes)


def done(request: UpscaleJob) -> tuple[JobOutcome, Seen]:
    seen = Seen()

    @contextlib.contextmanager
    def progress(_: list[Task]) -> Iterator[Seen]:
        yield seen

    return upscale_files(request, progress), seen


def test_one_picture_goes_to_one_file(network: Network, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "b.png"
    outcome, seen = done(job(folder / "b.png", output=target))
    assert outcome.reports is None
    assert read_image(target).shape == (8, 12, 3)
    assert (seen.begun, seen.tiles, network.loaded) == (["b.png"], [(1, 1)], 1)
    with pytest.raises(HspanError, match=r"b\.png: exists"):
        done(job(folder / "b.png", output=target))
    assert network.opened == 1
    done(job(folder / "b.png", output=target, overwrite=True))
    assert network.opened == 2


def test_a_comparison_must_be_free_too(network: Network, folder: Path, tmp_path: Path) -> None:
    target, writing = tmp_path / "b.png", WriteOptions(compare=True)
    (tmp_path / "b_compare.png").write_text("mine")
    with pytest.raises(HspanError, match=r"b_compare\.png: exists"):
        done(job(folder / "b.png", output=target, writing=writing))
    assert not target.exists()
    done(job(folder / "b.png", output=target, writing=writing, overwrite=True))
    assert read_image(tmp_path / "b_compare.png").shape[0] > 0


def test_a_comparison_is_neither_an_input_nor_another_result(
    network: Network, folder: Path, tmp_path: Path
) -> None:
    write_picture(folder / "a_compare.png", np.zeros((4, 4, 3), np.uint8))
    writing = WriteOptions(compare=True)
    with pytest.raises(
        UsageError, match=r"--compare: .*a_compare\.png, the comparison of .*another result too"
    ):
        done(job(folder, output=tmp_path / "out", writing=writing))
    with pytest.raises(
        UsageError, match=r"a_compare\.png, the comparison of .* is (an input|another result) too"
    ):
        done(job(folder, output=folder, writing=writing, suffix=".jpg"))
    assert network.opened == 0
    done(job(folder, output=tmp_path / "out"))


def test_a_folder_is_done_once_and_again_where_something_changed(
    network: Network, folder: Path, tmp_path: Path
) -> None:
    (folder / "notes.txt").touch()
    request = job(folder, output=tmp_path / "out")
    outcome, seen = done(request)
    assert outcome.reports is not None
    assert (seen.begun, seen.ended, network.loaded) == (["a.png", "b.png"], ["done", "done"], 1)
    assert outcome.left_out == (folder / "notes.txt",)
    assert done(request)[1].ended == ["skipped", "skipped"]
    assert network.loaded == 1  # nothing to do: never loaded
    (tmp_path / "out" / "b.png").unlink()
    assert done(request)[1].ended == ["skipped", "done"]
    assert done(replace(request, overwrite=True))[1].ended == ["done", "done"]


@pytest.mark.parametrize(
    ("runner", "changes"),
    [
        ({}, {"options": UpscaleOptions(tile=(16, 16))}),
        ({}, {"writing": WriteOptions(compare=True)}),
        ({}, {"video": VideoOptions(crf=20)}),
        ({"precision": "fp16"}, {}),
        ({"source_sha256": "2" * 64}, {}),
    ],
    ids=["options", "comparison", "video", "precision", "network"],
)
def test_other_settings_are_other_results(
    network: Network, folder: Path, tmp_path: Path, runner: dict[str, Any], changes: dict[str, Any]
) -> None:
    (folder / "v.mp4").write_bytes(b"\0\0\0\x08moov")  # is no video that can be read, and fails each time
    request = job(folder, output=tmp_path / "out")
    assert done(request)[1].ended == ["done", "done", "failed"]
    assert done(request)[1].ended == ["skipped", "skipped", "failed"]
    network.facts = runner
    assert done(replace(request, **changes))[1].ended == ["failed"] * 3


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"suffix": ".webp"}, "--format: is for folders and pipes"),
        ({"video": VideoOptions(codec="libx264")}, "--codec: is for videos, and there is none"),
        ({"video": VideoOptions(crf=20)}, "--crf: is for videos, and there is none"),
    ],
)
def test_options_for_what_is_not_there_are_wrong_usage(
    network: Network, folder: Path, tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(UsageError, match=line):
        done(job(folder / "a.png", output=tmp_path / "a.png", **changes))
    assert network.opened == 0


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"writing": WriteOptions(quality=50)}, "--quality"),
        ({"writing": WriteOptions(compare=True)}, "--compare"),
        ({"writing": WriteOptions(tile_effect=True)}, "--tile-effect"),
        ({"suffix": ".png"}, "--format"),
    ],
)
def test_options_of_pictures_need_one(
    tmp_path: Path, folder: Path, changes: dict[str, Any], option: str
) -> None:
    request = job(folder, output=tmp_path, **changes)
    picture = Task(source=folder / "a.png", target=tmp_path / "a.png")
    (tmp_path / "v.mp4").write_bytes(b"\0\0\0\x08moov")
    video = Task(source=tmp_path / "v.mp4", target=tmp_path / "w.mp4")
    request.require_used([picture])
    request.require_used([picture, video])
    with pytest.raises(UsageError, match=f"{option}: is for pictures, and there is none"):
        request.require_used([video])
    with_codec = job(folder, output=tmp_path, video=VideoOptions(codec="libx264", crf=20))
    with_codec.require_used([picture, video])


@pytest.mark.parametrize(("suffix", "digest"), [(".onnx", None), (".ONNX", None), (".plan", "5" * 64)])
def test_an_engine_is_its_onnx_file_and_that_is_its_content(
    network: Network,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    digest: str | None,
) -> None:
    manifest = SimpleNamespace(onnx_sha256=digest)
    monkeypatch.setattr(manifests, "read_manifest", lambda plan: manifest)
    network.facts = {"source_sha256": "1" * 64}
    file = tmp_path / f"net{suffix}"
    file.write_bytes(b"one")
    request = job(folder, output=tmp_path / "out", network=str(file))
    assert done(request)[1].ended == ["done", "done"]
    network.facts = {"source_sha256": "2" * 64}  # of the checkpoint: the network that is executed is the same
    assert done(request)[1].ended == ["skipped", "skipped"]
    file.write_bytes(b"another")
    manifest.onnx_sha256 = "6" * 64
    assert done(request)[1].ended == ["failed", "failed"]


def test_a_video_has_no_comparison_that_could_be_in_the_way(
    network: Network, folder: Path, tmp_path: Path
) -> None:
    (folder / "v.mp4").write_bytes(b"\0\0\0\x08moov")
    write_picture(folder / "v_compare.png", np.zeros((4, 4, 3), np.uint8))
    _, seen = done(job(folder, output=tmp_path / "out", writing=WriteOptions(compare=True)))
    assert seen.ended == ["done", "done", "failed", "done"]


def test_only_a_network_that_is_used_is_loaded_and_it_is_given_back(
    network: Network, folder: Path, tmp_path: Path
) -> None:
    outcome, _ = done(job(folder, output=tmp_path / "out"))
    assert not outcome.work.runner.active  # type: ignore[attr-defined]
    assert outcome.result is None
    assert outcome.left_out == ()
