"""A store that speaks S3, on the loopback address: listing, reading, writing, the journal, and a whole job."""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from support.command_line import CommandLine

from trt_hspan.errors import HspanError
from trt_hspan.jobs.cluster import job, tasks
from trt_hspan.jobs.cluster.storage import objects_in, read_bytes, write_bytes
from trt_hspan.jobs.cluster.tasks import ClusterJournal, ClusterTask, cluster_tasks
from trt_hspan.media.pictures import decode_image
from trt_hspan.media.writing import encode_image

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
pytest.importorskip("moto", reason="moto is not installed")
BUCKET = "s3://pictures"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket; its address and keys come from the environment, as users give them, workers included."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
    return BUCKET


def picture(seed: int) -> bytes:
    return encode_image(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8))


def test_objects_are_written_listed_and_read(store: str) -> None:
    write_bytes(f"{store}/b/two", b"2" * 100_000)
    write_bytes(f"{store}/one", b"1")
    assert objects_in(store) == ["b/two", "one"]
    assert objects_in(f"{store}/b") == ["two"]
    assert objects_in(f"{store}/nothing") == []
    assert read_bytes(f"{store}/b/two") == b"2" * 100_000
    write_bytes(f"{store}/one", b"another")
    assert (read_bytes(f"{store}/one"), objects_in(store)) == (b"another", ["b/two", "one"])


def test_missing_objects_and_buckets_are_one_line(store: str) -> None:
    with pytest.raises(HspanError, match="no such object"):
        read_bytes(f"{store}/none.png")
    with pytest.raises(HspanError) as failed:
        write_bytes("s3://no-such-bucket/a.png", b"x")
    assert "\n" not in str(failed.value)
    assert "no-such-bucket" in str(failed.value)
    with pytest.raises(HspanError):  # nor was it made on the way
        read_bytes("s3://no-such-bucket/a.png")
    assert s3fs.S3FileSystem(skip_instance_cache=True).ls("") == ["pictures"]
    with pytest.raises(HspanError, match="contains no pictures"):
        cluster_tasks([f"{store}/empty"], f"{store}/out")


def test_journal_has_parts_that_the_next_run_reads(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_FLUSH_S", -1.0)  # each picture at once
    output = f"{store}/out"
    done = [ClusterTask(source=f"{store}/in/{n}.png", target=f"{output}/{n}.png") for n in range(3)]
    for part in (done[:2], done[2:]):
        journal = ClusterJournal(output, {"network": 1})
        for task in part:
            write_bytes(task.target, b"result")
            journal.finish(task)
    names = objects_in(f"{output}/.trt-hspan-journal")
    assert len(names) == 2, "a part for each run"
    lines = [read_bytes(f"{output}/.trt-hspan-journal/{name}").decode().splitlines() for name in names]
    assert sorted(len(part) for part in lines) == [1, 2]
    again = ClusterJournal(output, {"network": 1})
    assert [again.why_not(task) for task in done] == ["", "", ""]
    assert "another network" in str(ClusterJournal(output, {"network": 2}).why_not(done[0]))


def test_job_reads_and_writes_the_store_and_the_next_one_skips_what_is_finished(
    run: CommandLine, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "deep/b", "deep/er/c", "other"):
        write_bytes(f"{store}/in/{name}.png", picture(len(name)))
    write_bytes(f"{store}/in/broken.png", b"no picture")
    write_bytes(f"{store}/x2/other.png", b"the user's")
    words = (
        "upscale",
        f"{store}/in",
        "-o",
        f"{store}/x2",
        "--checkpoint",
        "hspan-tiny-x2",
        "--device",
        "cpu",
    )
    words += ("--cluster", "local", "--workers", "1", "--json")
    first = run(*words)
    assert first.out, first.err
    report = json.loads(first.out)
    assert (first.code, report["done"], report["failed"]) == (1, 3, 2), first.err
    assert "broken.png" in first.err
    assert read_bytes(f"{store}/x2/other.png") == b"the user's"
    results = [name for name in objects_in(f"{store}/x2") if not name.startswith(".")]
    assert results == ["a.png", "deep/b.png", "deep/er/c.png", "other.png"]
    for name in results[:3]:
        assert decode_image(read_bytes(f"{store}/x2/{name}")).pixels.shape == (24, 32, 3)
    files = s3fs.S3FileSystem()  # the instance that the package has, which remembers what folders contain
    for name in ("in/broken.png", "x2/other.png", "in/other.png"):
        files.rm(f"{store}/{name}")
    monkeypatch.setattr(job, "_cluster", None)  # none is started for nothing
    second = run(*words)
    assert second.out, second.err
    report = json.loads(second.out)
    assert (second.code, report["skipped"], report["done"], report["failed"]) == (0, 3, 0, 0), second.err
