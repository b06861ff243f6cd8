"""Places by path or URI, tasks and journals in them, networks as bytes, and the worker; without a cluster."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.runner_doubles import NearestRunner

from trt_hspan.engine import manifest as manifests
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.jobs.cluster import worker
from trt_hspan.jobs.cluster.bundle import NetworkBundle, bundle_from_network
from trt_hspan.jobs.cluster.storage import (
    exists,
    is_uri,
    joined,
    objects_in,
    read_bytes,
    suffix_of,
    write_bytes,
)
from trt_hspan.jobs.cluster.tasks import ClusterJournal, ClusterTask, cluster_tasks
from trt_hspan.jobs.cluster.worker import UpscaleWorker
from trt_hspan.jobs.folders import JOURNAL_NAME
from trt_hspan.media.pictures import decode_image
from trt_hspan.media.writing import encode_image
from trt_hspan.native import plugin as plugins
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
    assert not is_uri("file:///folder/a.png")
    assert joined("s3://bucket/in/", "a.png") == "s3://bucket/in/a.png"
    assert joined("folder", "a.png") == "folder/a.png"
    assert suffix_of("s3://bucket/A.PNG") == suffix_of("folder.x/A.PNG") == ".png"
    assert suffix_of("s3://bucket.x") == ".x"


def test_a_place_is_looked_for_where_it_is(store: str, tmp_path: Path) -> None:
    for place in (f"{store}/a.png", str(tmp_path / "new" / "a.png")):
        assert not exists(place)
        write_bytes(place, b"x")
        assert exists(place)
    assert (tmp_path / "new" / "a.png").read_bytes() == b"x"


class System:
    """A file system of fsspec's, by its protocols."""

    def __init__(self, protocol: str | tuple[str, ...]) -> None:
        self.protocol = protocol
        self.folders: list[str] = []
        self.files: dict[str, bytes] = {}

    def _parent(self, path: str) -> str:
        return path.rpartition("/")[0]

    def makedirs(self, path: str, *, exist_ok: bool) -> None:
        assert exist_ok
        self.folders.append(path)

    def pipe_file(self, path: str, data: bytes) -> None:
        self.files[path] = data

    def exists(self, path: str) -> bool:
        return True

    def find(self, path: str) -> list[str]:
        return [f"{path}/b", f"{path}/a/c", f"{path}side/d"]

    def cat_file(self, path: str) -> bytes:
        raise RuntimeError(path)


@pytest.mark.parametrize(
    ("protocol", "folders"),
    [("sftp", ["in/deep"]), (("ssh", "x"), ["in/deep"]), ("memory", []), (("s3", "s3a"), [])],
)
def test_folders_are_made_where_a_store_has_them(
    monkeypatch: pytest.MonkeyPatch, protocol: str | tuple[str, ...], folders: list[str]
) -> None:
    system = System(protocol)
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda uri: (system, "in/deep/a.png"))
    write_bytes("x://in/deep/a.png", b"x")
    assert (system.folders, system.files) == (folders, {"in/deep/a.png": b"x"})


@pytest.mark.parametrize(
    ("path", "line"), [("no\nway", "cannot be read: no way"), ("", "cannot be read: RuntimeError")]
)
def test_a_store_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, path: str, line: str) -> None:
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda uri: (System("x"), path))
    with pytest.raises(HspanError, match=line):
        read_bytes("x://a.png")


def test_objects_beside_a_place_are_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda uri: (System("x"), "in/"))
    monkeypatch.setattr(System, "find", lambda self, path: ["in/b", "in/a/c", "inside/d"])
    assert objects_in("x://in/") == ["a/c", "b"]


def test_without_fsspec_a_uri_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(HspanError, match=r"fsspec is missing; pip install .*\[cluster\]"):
        read_bytes("s3://bucket/a.png")


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
    for name in (".trt-hspan-journal/a.jsonl", ".a.png", "deep/.b/c.png"):
        write_bytes(f"{store}/in/{name}", b"x")
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


def test_one_object_and_local_files_go_into_a_store(store: str, tmp_path: Path) -> None:
    write_bytes(f"{store}/in/deep/a.gif", b"x")
    for name in ("b.jpg", "notes.txt"):
        (tmp_path / name).touch()
    inputs = [str(tmp_path), f"{store}/in/deep/a.gif"]
    tasks, left_out = cluster_tasks(inputs, f"{store}/out")
    assert tasks == [
        ClusterTask(source=str(tmp_path / "b.jpg"), target=f"{store}/out/b.jpg"),
        ClusterTask(source=f"{store}/in/deep/a.gif", target=f"{store}/out/a.png"),
    ]
    assert left_out == [str(tmp_path / "notes.txt")]
    again = cluster_tasks(inputs, f"{store}/out", suffix=".webp").tasks
    assert [suffix_of(task.target) for task in again] == [".webp", ".webp"]


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


class Network:
    """Opens as `RunnerOptions` does, in numpy."""

    def __init__(self) -> None:
        self.options: list[RunnerOptions] = []
        self.places: list[str] = []

    def open(self, options: RunnerOptions, place: str) -> NearestRunner:
        self.options.append(options)
        self.places.append(place)
        return NearestRunner(scale=2)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    double = Network()

    def opened(options: RunnerOptions, place: str) -> NearestRunner:
        return double.open(options, place)

    monkeypatch.setattr(RunnerOptions, "open", opened)
    return double


def a_worker(attempts: int = 1, bundle: NetworkBundle | None = None, **options: Any) -> UpscaleWorker:
    bundle = bundle or NetworkBundle(name="net", options=RunnerOptions(device="cpu"))
    return UpscaleWorker(bundle, UpscaleOptions(), WriteOptions(), attempts, **options)


def test_a_worker_waits_twice_as_long_before_each_further_attempt(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    times = iter([100.0, 107.5])
    clock = SimpleNamespace(sleep=pauses.append, perf_counter=lambda: next(times))
    monkeypatch.setattr(worker, "time", clock)
    failures = iter([ZeroDivisionError("odd\nbug")] * 3)

    def upscale(self: UpscaleWorker, source: str, target: str) -> None:
        if (error := next(failures, None)) is not None:
            raise error

    monkeypatch.setattr(UpscaleWorker, "_upscale", upscale)
    row = a_worker(4)({"index": 3, "source": "a.png", "target": "b.png"})
    assert pauses == [1.0, 2.0, 4.0]
    assert (row["index"], row["error"], row["attempts"], row["seconds"]) == (3, "", 4, 7.5)
    failures, times = iter([ZeroDivisionError("odd\nbug")] * 9), iter([0.0, 1.0])
    row = a_worker(3, pause_s=0.5)({"index": 0, "source": "a.png", "target": "b.png"})
    assert pauses[3:] == [0.5, 1.0]
    assert (row["error"], row["attempts"]) == ("a.png: unexpected ZeroDivisionError: odd bug", 3)


def test_a_worker_takes_pictures_between_its_files_and_a_store(
    network: Network, store: str, tmp_path: Path
) -> None:
    local = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(local)
    write_bytes(f"{store}/a.png", local.read_bytes())
    places = {
        str(tmp_path / "new" / "b.png"): str(local),
        f"{store}/c.png": str(local),
        str(tmp_path / "deep" / "d.png"): f"{store}/a.png",
    }
    for target, source in places.items():
        assert a_worker()({"index": 0, "source": source, "target": target})["error"] == ""
        data = read_bytes(target) if is_uri(target) else Path(target).read_bytes()
        np.testing.assert_array_equal(decode_image(data).pixels, PIXELS.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("plugin", [None, "p.so"])
def test_a_worker_opens_the_files_that_travelled(network: Network, plugin: str | None) -> None:
    files = {"net.plan": b"plan", "p.so": b"library"}
    a_worker(bundle=NetworkBundle(name="net.plan", files=files, plugin=plugin))
    place = Path(network.places[0])
    assert place.name == "net.plan"
    assert network.options[0].plugin == (None if plugin is None else place.parent / plugin)


def test_a_journal_of_a_folder_is_the_local_one(tmp_path: Path) -> None:
    task = ClusterTask(source=str(tmp_path / "in.png"), target=str(tmp_path / "out" / "a.png"))
    journal = ClusterJournal(str(tmp_path / "out"), {"network": 1})
    assert journal.why_not(task) is None
    journal.begin(task)
    write_bytes(task.target, b"result")
    assert ClusterJournal(str(tmp_path / "out"), {"network": 1}).why_not(task) == ""
    journal.finish(task)
    journal.flush()
    assert (tmp_path / "out" / JOURNAL_NAME).read_text().count("finish") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", JOURNAL_NAME}


def test_a_part_of_the_journal_is_written_every_ten_seconds(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    journal = ClusterJournal(f"{store}/out", 1)
    tasks = [ClusterTask(source="a", target=f"{store}/out/{number}.png") for number in range(4)]

    def finished() -> int:
        names = objects_in(f"{store}/out/.trt-hspan-journal")
        return sum(len(read_bytes(f"{store}/out/.trt-hspan-journal/{name}").splitlines()) for name in names)

    journal.begin(tasks[0])  # a store's result counts when it is finished
    journal.flush()
    assert finished() == 0
    for task, now, count in zip(  # noqa: B007  # the clock reads it
        tasks, (110.0, 110.5, 120.5, 121.0), (0, 2, 2, 4), strict=True
    ):
        journal.finish(task)
        assert finished() == count


def test_lines_of_a_part_that_say_nothing_are_passed_over(store: str) -> None:
    task = ClusterTask(source="a", target=f"{store}/out/a.png")
    write_bytes(task.target, b"x")
    write_bytes(f"{store}/out/.trt-hspan-journal/a.jsonl", b'{"targ\n{"target": 1}\n3\n')
    assert ClusterJournal(f"{store}/out", 1).why_not(task) == "exists and was not written by this command"


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


def test_a_preset_travels_by_its_name() -> None:
    bundle = bundle_from_network("hspan-tiny-x2", RunnerOptions(threads=3))
    assert (bundle.name, bundle.files, bundle.plugin) == ("hspan-tiny-x2", {}, None)
    assert bundle.options == RunnerOptions(threads=3)
    with bundle.on_disk() as place:
        assert place == "hspan-tiny-x2"


def test_the_digest_is_of_names_and_contents_in_any_order() -> None:
    files = {"a": b"1", "b": b"22"}
    text = b"net" + b"\0a\0" + b"1\0" + b"1" + b"\0b\0" + b"2\0" + b"22"
    assert NetworkBundle(name="net", files=files).digest == hashlib.sha256(text).hexdigest()
    assert (
        NetworkBundle(name="net", files=dict(reversed(files.items()))).digest
        == NetworkBundle(name="net", files=files).digest
    )


@pytest.mark.parametrize(
    ("named", "beside", "needed", "library"),
    [
        (None, True, True, "beside.so"),
        (None, False, True, "default.so"),
        ("mine.so", True, True, "mine.so"),
        (None, True, False, None),  # it is inside of the plan
    ],
)
def test_the_plugin_library_travels_where_the_plan_does_not_contain_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: str | None,
    beside: bool,
    needed: bool,
    library: str | None,
) -> None:
    for name in ("net.plan", "net.json", "net.onnx", "default.so", "mine.so", *["beside.so"] * beside):
        (tmp_path / name).write_text(name)
    record = SimpleNamespace(
        onnx_file="net.onnx", plugin=SimpleNamespace(file="beside.so"), needs_library=needed
    )
    monkeypatch.setattr(manifests, "verify_manifest", lambda plan: record)
    monkeypatch.setattr(plugins, "default_plugin_path", lambda: tmp_path / "default.so")
    options = RunnerOptions(plugin=None if named is None else tmp_path / named)
    bundle = bundle_from_network(tmp_path / "net.plan", options)
    assert bundle.plugin == library
    assert bundle.files.keys() == {"net.plan", "net.json", "net.onnx", *filter(None, [library])}
    assert bundle.options.plugin is None
    if library == "default.so":
        (tmp_path / library).unlink()
        with pytest.raises(HspanError, match="plugin library is missing; trt-hspan plugin build"):
            bundle_from_network(tmp_path / "net.plan", options)


def test_a_file_of_an_engine_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = SimpleNamespace(onnx_file="net.onnx", plugin=None, needs_library=False)
    monkeypatch.setattr(manifests, "verify_manifest", lambda plan: record)
    for name in ("net.plan", "net.json"):
        (tmp_path / name).touch()
    with pytest.raises(HspanError, match=r"net\.onnx: no such file"):
        bundle_from_network(tmp_path / "net.plan")
