from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.jobs.cluster.bundle import bundle_from_network
from trt_hspan.jobs.cluster.storage import is_uri, joined, objects_in, read_bytes, suffix_of, write_bytes
from trt_hspan.jobs.cluster.tasks import ClusterJournal, ClusterTask, cluster_tasks
from trt_hspan.jobs.cluster.worker import UpscaleWorker
from trt_hspan.media.pictures import decode_image
from trt_hspan.media.writing import encode_image
from trt_hspan.runtime.opening import RunnerOptions
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.pictures import WriteOptions

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)


@pytest.fixture
def store(request: pytest.FixtureRequest) -> str:
    """A store of its own in this process's memory."""
    return f"memory://{request.node.name.replace('[', '-').replace(']', '')}"


def test_uris_and_paths_are_distinguished() -> None:
    assert is_uri("s3://bucket/a.png")
    assert not is_uri("folder/a.png")
    assert joined("s3://bucket/in/", "a.png") == "s3://bucket/in/a.png"
    assert suffix_of("s3://bucket/A.PNG") == ".png"


def test_objects_are_written_listed_and_read(store: str) -> None:
    write_bytes(f"{store}/b/two", b"2")
    write_bytes(f"{store}/one", b"1")
    assert objects_in(store) == ["b/two", "one"]
    assert read_bytes(f"{store}/b/two") == b"2"
    assert objects_in(f"{store}/nothing") == []


def test_a_missing_object_and_an_unknown_store_are_one_line() -> None:
    with pytest.raises(HspanError, match="no such object"):
        read_bytes("memory://none/at/all.png")
    with pytest.raises(HspanError, match="no access to this kind of store"):
        read_bytes("nosuchstore://bucket/a.png")


def test_pictures_in_a_store_are_mirrored(store: str) -> None:
    for name in ("a.png", "deep/b.jpg", "notes.txt", "deep/er/c.gif"):
        write_bytes(f"{store}/in/{name}", b"x")
    write_bytes(f"{store}/in/.trt-hspan-journal/a.jsonl", b"x")
    tasks, left_out = cluster_tasks([f"{store}/in"], f"{store}/out")
    assert left_out == [f"{store}/in/notes.txt"]
    assert [task.target.removeprefix(f"{store}/out/") for task in tasks] == [
        "a.png",
        "deep/b.jpg",
        "deep/er/c.png",
    ]
    (first, *_) = cluster_tasks(
        [f"{store}/in"], "folder"
    ).tasks  # workers have working directories of their own
    assert first.target == str(Path("folder/a.png").absolute())
    with pytest.raises(HspanError, match="contains no pictures"):
        cluster_tasks([f"{store}/out"], f"{store}/other")


def test_two_sources_for_one_target_are_refused(store: str) -> None:
    for name in ("a.png", "a.gif"):
        write_bytes(f"{store}/in/{name}", b"x")
    with pytest.raises(UsageError, match="would be written from"):
        cluster_tasks([f"{store}/in"], f"{store}/out")


def test_a_worker_takes_a_picture_from_store_to_store(store: str) -> None:
    write_bytes(f"{store}/in/a.png", encode_image(PIXELS))
    worker = UpscaleWorker(
        bundle_from_network("hspan-tiny-x2", RunnerOptions(device="cpu", threads=1)),
        UpscaleOptions(),
        WriteOptions(),
        attempts=1,
    )
    row = worker({"index": 5, "source": f"{store}/in/a.png", "target": f"{store}/out/a.png"})
    assert (row["index"], row["error"], row["attempts"]) == (5, "", 1)
    assert decode_image(read_bytes(f"{store}/out/a.png")).pixels.shape == (18, 22, 3)


def test_a_worker_tries_again_and_then_reports_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nothing")
    worker = UpscaleWorker(
        bundle_from_network("hspan-tiny-x2", RunnerOptions(device="cpu", threads=1)),
        UpscaleOptions(),
        WriteOptions(),
        attempts=2,
        pause_s=0.01,
    )
    row = worker({"index": 0, "source": str(bad), "target": str(tmp_path / "out.png")})
    assert row["attempts"] == 2
    assert "not a picture" in row["error"]
    assert "\n" not in row["error"]
    Image.fromarray(PIXELS).save(bad)  # it can be read by the time of another attempt
    assert worker({"index": 0, "source": str(bad), "target": str(tmp_path / "out.png")})["error"] == ""


def test_the_journal_of_a_store_outlives_its_process(store: str) -> None:
    task = ClusterTask(source=f"{store}/in/a.png", target=f"{store}/out/a.png")
    journal = ClusterJournal(f"{store}/out", {"network": 1})
    assert journal.why_not(task) is None
    write_bytes(task.target, b"result")
    assert journal.why_not(task) == "exists and was not written by this command"
    journal.finish(task)
    journal.flush()
    assert ClusterJournal(f"{store}/out", {"network": 1}).why_not(task) == ""
    assert "another network" in str(ClusterJournal(f"{store}/out", {"network": 2}).why_not(task))
    (part,) = objects_in(f"{store}/out/.trt-hspan-journal")
    assert json.loads(read_bytes(f"{store}/out/.trt-hspan-journal/{part}"))["target"] == task.target


def test_a_network_travels_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"a graph")
    bundle = bundle_from_network(tmp_path / "net.onnx")
    with bundle.on_disk() as place:
        assert Path(place).read_bytes() == b"a graph"
    assert not Path(place).exists()
    (tmp_path / "net.onnx").write_bytes(b"another")
    assert bundle_from_network(tmp_path / "net.onnx").digest != bundle.digest
    with pytest.raises(HspanError, match="no such file"):
        bundle_from_network(tmp_path / "none.onnx")
