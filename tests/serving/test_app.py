"""Who may ask the server over HTTP, what it answers, and how a body may arrive: without a server."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import logging
import re
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.served_pictures import pixels_of, png
from support.service_double import Answer, Client, HeldRunner, asked, service_of, until

from trt_hspan.serving.admission import RefusedError, Reservation
from trt_hspan.serving.app import Access, Application
from trt_hspan.serving.service import Service
from trt_hspan.serving.v2 import TENSORS


def is_refused(call: object, *words: object) -> bool:
    try:
        call(*words)  # type: ignore[operator]
    except RefusedError as refused:
        return refused.status in (401, 403)
    return False


def test_without_a_token_anybody_may_ask() -> None:
    access = Access()
    assert not any(is_refused(access.check_token, given) for given in (None, "", "Bearer x", b"x"))


def test_a_token_is_text_of_http_or_bytes_of_grpc() -> None:
    access = Access(token="se cret")
    assert not is_refused(access.check_token, "Bearer se cret")
    assert not is_refused(access.check_token, b"Bearer se cret")
    for given in (None, "", b"", "se cret", "Bearer se cret ", "bearer se cret", "Bearer \u20ac", "\ud800"):
        assert is_refused(access.check_token, given)


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        *(
            (name, True)
            for name in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:9", "my.host.", "my.host")
        ),
        *(
            (name, False)
            for name in ("", "evil", "localhost.evil", "my.host.evil:80", "[::1", "[::2]", "my host")
        ),
    ],
)
def test_a_request_names_this_server_and_so_does_the_page_that_asks(host: str, is_own: bool) -> None:
    access = Access(names=("My.Host", "[fe80::1]"))
    assert is_refused(access.check_names, host, None) is not is_own
    assert is_refused(access.check_names, "localhost", f"https://{host}") is not is_own
    assert not is_refused(access.check_names, "[fe80::1]:80", None)
    assert is_refused(access.check_names, "localhost", "null")


# The application, asked in this process.

BATCH = np.random.default_rng(0).random((1, 3, 5, 6), np.float32)
OUTPUT = BATCH.repeat(2, 2).repeat(2, 3)
PICTURE = png(12, 8)


@pytest.fixture
def service() -> Iterator[Service]:
    with service_of(max_pixels=100, max_bytes=4000, body_time_ms=20_000) as made:
        yield made


@pytest.fixture
def application(service: Service) -> Application:
    return Application(service, Access(), page=False)


def json_request(batch: np.ndarray, **parameters: Any) -> bytes:
    tensor = {"name": "input", "datatype": "FP32", "shape": list(batch.shape), "data": batch.ravel().tolist()}
    return json.dumps({"id": "me", "inputs": [tensor], "parameters": parameters}).encode()


def refused(answer: Answer) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/json"
    (error,) = json.loads(answer.body).values()
    return answer.status, error


def test_a_picture_file_comes_back_as_one(application: Application, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "trt_hspan.serving"):
        answer = asked(application, "POST", "/upscale", PICTURE[:9], PICTURE[9:])
    np.testing.assert_array_equal(pixels_of(answer.body), pixels_of(PICTURE).repeat(2, 0).repeat(2, 1))
    timing = answer.headers.pop("Server-Timing")
    assert re.fullmatch(r"upscale;dur=\d+\.\d", timing)
    assert float(timing[12:]) < 60_000
    assert answer.status == 200
    assert answer.headers == {
        "Content-Type": "image/png",
        "Content-Length": str(len(answer.body)),
        "X-Content-Type-Options": "nosniff",
    }
    (record,) = caplog.records
    facts = record.event_fields  # type: ignore[attr-defined]
    assert (facts["status"], facts["bytes_out"], facts["peer"]) == ("200", len(answer.body), "1.2.3.4")
    assert (facts["method"], facts["path"], facts["why"]) == ("POST", "/upscale", None)


@pytest.mark.parametrize(
    ("kind", "media"), [("WebP", "image/webp"), ("jpg", "image/jpeg"), ("bmp", "image/bmp")]
)
def test_the_format_is_a_parameter(application: Application, kind: str, media: str) -> None:
    answer = asked(application, "POST", f"/upscale?format={kind}&model=net_image", PICTURE)
    assert (answer.status, answer.headers["Content-Type"]) == (200, media)
    assert pixels_of(answer.body).shape == (16, 24, 3)


def test_an_answer_is_sent_a_mebibyte_at_a_time() -> None:
    with service_of() as service:
        answer = asked(
            Application(service, Access(), page=False), "POST", "/upscale?format=bmp", png(300, 300)
        )
    assert [len(piece) for piece in answer.pieces] == [1 << 20, len(answer.body) - (1 << 20), 0]
    assert answer.more == [True, True, False]
    assert len(answer.body) == 54 + 600 * 600 * 3


def test_a_tensor_is_answered_as_json_or_as_bytes(application: Application) -> None:
    for path in ("/v2/models/net/infer", "/v2/models/net/versions/5/infer"):
        answer = asked(application, "POST", path, json_request(BATCH))
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
        facts = json.loads(answer.body)
        assert (facts["model_name"], facts["model_version"], facts["id"]) == ("net", "5", "me")
        assert facts["outputs"][0]["data"] == OUTPUT.ravel().tolist()
        assert "Inference-Header-Content-Length" not in answer.headers
    answer = asked(application, "POST", "/v2/models/net/infer", json_request(BATCH, binary_data_output=True))
    assert answer.headers["Content-Type"] == "application/octet-stream"
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert json.loads(answer.body[:length])["outputs"][0]["shape"] == list(OUTPUT.shape)
    assert answer.body[length:] == OUTPUT.tobytes()
    headers = {"inference-header-content-length": "0"}
    answer = asked(application, "POST", "/v2/models/net_image/infer", PICTURE, headers=headers)
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert pixels_of(answer.body[length:]).shape == (16, 24, 3)


@pytest.mark.parametrize(
    ("method", "target", "status", "words"),
    [
        ("GET", "/upscale", 405, "/upscale: does not take GET"),
        ("GET", "/nothing", 404, "/nothing: no such path; see /v2"),
        ("GET", "/v2/", 404, "/v2/: no such path; see /v2"),
        ("GET", "/", 404, "/: no such path; see /v2"),
        ("GET", "/" + "x" * 200, 404, "/" + "x" * 99 + ": no such path; see /v2"),
        ("POST", "/upscale?format=exe", 400, "format is 'exe', expected one of "),
        ("POST", "/upscale?model=net", 404, "takes no pictures: 'net'; leave out model"),
        ("POST", "/upscale", 400, "picture: is empty (0 bytes)"),
        ("POST", "/v2/models/other/infer", 404, "no such model: 'other'"),
        ("POST", "/v2/models/net/versions/4/infer", 404, "no such model: 'net' 4"),
        ("POST", "/v2/models/net/infer", 400, "cannot read the JSON"),
        ("GET", "/progress/unknown1", 404, "no request of this name is remembered"),
    ],
)
def test_what_is_refused_has_a_status_and_one_line(
    application: Application, method: str, target: str, status: int, words: str
) -> None:
    actual, message = refused(asked(application, method, target))
    assert actual == status
    assert message.startswith(words)


def test_questions_are_paths(application: Application) -> None:
    def answer(path: str, method: str = "GET") -> Any:
        answered = asked(application, method, path)
        assert answered.status == 200, path
        return json.loads(answered.body) if answered.body else None

    assert answer("/v2")["name"] == "trt-hspan"
    for path in (
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/net/ready",
        "/v2/models/net/versions/5/ready",
    ):
        assert answer(path) is None
    assert answer("/v2/models/net") == answer("/v2/models/net/versions/5") == TENSORS.metadata("net", 5)
    names = ["net", "net_image"]
    assert [each["name"] for each in answer("/v2/models/stats")["model_stats"]] == names
    assert [each["name"] for each in answer("/v2/models/net_image/stats")["model_stats"]] == names[1:]
    assert [each["name"] for each in answer("/v2/repository/index", "POST")] == names
    metrics = asked(application, "GET", "/metrics")
    assert metrics.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"trt_hspan_ready 1.0" in metrics.body


def test_a_server_that_stops_is_alive_and_not_ready(application: Application, service: Service) -> None:
    service.draining = True
    assert asked(application, "GET", "/v2/health/live").status == 200
    for answer in (
        asked(application, "GET", "/v2/health/ready"),
        asked(application, "POST", "/upscale", PICTURE),
    ):
        assert refused(answer) == (503, "the server stops; try another one, or again later")
        assert answer.headers["Retry-After"] == "1"
    assert asked(application, "GET", "/v2").status == 200


def test_a_server_whose_network_gives_nothing_is_not_ready(
    application: Application, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.model, "is_healthy", lambda: False)
    answer = asked(application, "GET", "/v2/models/net/ready")
    assert refused(answer) == (503, "no inference succeeded for a minute")
    assert "Retry-After" in answer.headers


def test_names_and_token_are_looked_at_before_anything_else(service: Service) -> None:
    application = Application(service, Access(token="secret"), page=True)
    given = {"authorization": "Bearer secret"}
    assert asked(application, "GET", "/v2", headers=given).status == 200
    answer = asked(application, "POST", "/upscale", PICTURE)
    assert refused(answer) == (401, "give this server's token: Authorization: Bearer TOKEN")
    assert answer.headers["Www-Authenticate"] == "Bearer"
    assert "Retry-After" not in answer.headers
    for path in ("/", "/v2/health/live", "/v2/health/ready"):
        assert asked(application, "GET", path).status == 200
        status, message = refused(asked(application, "GET", path, headers={"host": "e" * 200}))
        assert (status, message) == (
            403,
            f"Host {'e' * 100!r} is not this server; allow it with --allow-host",
        )
        status, message = refused(asked(application, "GET", path, headers={"origin": "http://" + "e" * 200}))
        assert status == 403
        assert message == f"pages of 'http://{'e' * 93}' may not ask; allow it with --allow-host"


def test_the_page_may_run_its_own_script_only(service: Service) -> None:
    answer = asked(Application(service, Access(), page=True), "GET", "/")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", answer.body.decode(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}'; ")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", ["x" * 8, "x" * 64, "0-aZ-1234"])
def test_progress_of_a_request_that_named_itself_is_remembered(application: Application, name: str) -> None:
    headers = {"x-request-id": name}
    assert asked(application, "POST", "/upscale", PICTURE, headers=headers).status == 200
    answer = asked(application, "GET", f"/progress/{name}")
    assert answer.headers["Cache-Control"] == "no-store"
    assert json.loads(answer.body) == {"state": "done", "tiles_done": 1, "tiles": 1}
    assert asked(application, "POST", "/upscale", b"no picture", headers=headers).status == 400
    assert json.loads(asked(application, "GET", f"/progress/{name}").body)["state"] == "failed"
    assert (
        asked(application, "POST", "/upscale", headers={"x-request-id": name, "content-encoding": "x"}).status
        == 415
    )
    assert json.loads(asked(application, "GET", f"/progress/{name}").body)["state"] == "failed"


@pytest.mark.parametrize("name", ["x" * 7, "x" * 65, "12345678\u00e9", "a b c d e", ""])
def test_other_names_are_refused(application: Application, name: str) -> None:
    answer = asked(application, "POST", "/upscale", PICTURE, headers={"x-request-id": name})
    assert refused(answer) == (400, "X-Request-ID: expected a UUID")


# How a body arrives.


def test_a_body_of_as_many_bytes_as_are_accepted_is_read(application: Application) -> None:
    for announced in ("4000", "many"):
        headers = {"content-length": announced}
        assert refused(asked(application, "POST", "/upscale", *[b"x" * 1000] * 4, headers=headers))[0] == 400
    too_many = (413, "the request has more than the 4000 bytes that are accepted")
    assert refused(asked(application, "POST", "/upscale", *[b"x" * 1000] * 4, b"x")) == too_many
    assert refused(asked(application, "POST", "/upscale", headers={"content-length": "4001"})) == too_many


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(PICTURE)),
        (" GZip ", gzip.compress(PICTURE)),
        ("deflate", zlib.compress(PICTURE)),
        ("identity", PICTURE),
    ],
)
def test_a_compressed_body_is_unpacked_however_it_is_cut(
    application: Application, encoding: str, packed: bytes
) -> None:
    headers = {"content-encoding": encoding}
    for parts in (
        (packed,),
        (packed[:5], b"", packed[5:]),
        tuple(packed[n : n + 7] for n in range(0, len(packed), 7)),
    ):
        answer = asked(application, "POST", "/upscale", *parts, headers=headers)
        assert pixels_of(answer.body).shape == (16, 24, 3)


@pytest.mark.parametrize(
    ("encoding", "body", "status", "words"),
    [
        ("br", PICTURE, 415, "Content-Encoding is 'br', expected gzip or deflate"),
        ("x" * 90, PICTURE, 415, f"Content-Encoding is {'x' * 40!r}, expected gzip or deflate"),
        ("gzip", gzip.compress(PICTURE)[:-1], 400, "the compressed body is cut short"),
        ("gzip", b"", 400, "the compressed body is cut short"),
        ("gzip", gzip.compress(PICTURE) + b"x", 400, "bytes follow the end of the compressed body"),
        ("gzip", PICTURE, 400, "the body is not what Content-Encoding says: "),
        (
            "gzip",
            gzip.compress(bytes(4001)),
            413,
            "the request has more than the 4000 bytes that are accepted",
        ),
    ],
)
def test_a_body_that_cannot_be_unpacked_is_refused(
    application: Application, service: Service, encoding: str, body: bytes, status: int, words: str
) -> None:
    answer = asked(application, "POST", "/upscale", body, headers={"content-encoding": encoding})
    assert refused(answer)[0] == status
    assert refused(answer)[1].startswith(words)
    assert service.bodies.held == 0


def test_what_unpacks_to_much_is_unpacked_a_mebibyte_at_a_time() -> None:
    """So that the limit comes before the memory."""
    sizes: list[int] = []
    with service_of(max_bytes=3 << 20) as service:
        application = Application(service, Access(), page=False)
        grow = Reservation.grow

        def growing(reservation: Reservation, to: int) -> None:
            sizes.append(to)
            grow(reservation, to)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Reservation, "grow", growing)
            bomb = gzip.compress(bytes(9 << 20))
            answer = asked(application, "POST", "/upscale", bomb, headers={"content-encoding": "gzip"})
    assert answer.status == 413
    assert sizes == [0, 1 << 20, 2 << 20, 3 << 20]


def client_of(application: Application, *parts: bytes) -> Client:
    return Client(application, "POST", "/upscale", parts, {})


def events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    fields = [record.event_fields for record in caplog.records]  # type: ignore[attr-defined]
    return [(each["status"], each["why"]) for each in fields if "status" in each]


def test_a_body_that_takes_too_long_is_refused() -> None:
    async def ask(application: Application) -> Answer:
        client = client_of(application, PICTURE)
        client.ends = False
        return await client.ask()

    with service_of(body_time_ms=30) as service:
        answer = asyncio.run(ask(Application(service, Access(), page=False)))
        assert service.bodies.held == 0
    assert refused(answer) == (408, "the request took too long to arrive: more than 0.03 s")


def test_a_body_that_goes_slowly_gives_way_and_the_next_is_read(
    application: Application, service: Service
) -> None:
    async def ask() -> tuple[Answer, Answer]:
        client = client_of(application, PICTURE)
        client.ends = False
        asking = asyncio.ensure_future(client.ask())
        await until(lambda: service.bodies.held == len(PICTURE))
        (reservation,) = service.bodies.open
        reservation._until = 0.0  # it is old
        with service.bodies.reserve(service.bodies.total):
            slow = await asking
        return slow, await client_of(application, PICTURE).ask()

    slow, other = asyncio.run(ask())
    assert refused(slow) == (408, "it went slowly, and another request needed its memory; try again")
    assert other.status == 200
    assert service.bodies.held == service.work.held == 0


@pytest.mark.parametrize("sends", ["half", "all"])
def test_a_client_that_leaves_is_given_no_answer_and_no_more_work(
    sends: str, caplog: pytest.LogCaptureFixture
) -> None:
    runner = HeldRunner()

    async def ask(service: Service) -> Answer:
        client = client_of(Application(service, Access(), page=False), PICTURE)
        client.ends = sends == "all"
        asking = asyncio.ensure_future(client.ask())
        await until(runner.has_begun.is_set if client.ends else lambda: service.bodies.held)
        client.leaves.set()
        answer = await asking
        runner.go.set()
        await until(lambda: not service._jobs)
        return answer

    with service_of(lambda: runner) as service, caplog.at_level(logging.INFO, "trt_hspan.serving"):
        answer = asyncio.run(ask(service))
        assert service.bodies.held == service.work.held == 0
    assert (answer.status, answer.pieces) == (0, [])
    assert events(caplog) == [("499", "the client has left")]


@pytest.mark.parametrize("why", ["it must", None])
def test_a_request_that_the_server_ends_ends(why: str | None, caplog: pytest.LogCaptureFixture) -> None:
    runner = HeldRunner()

    async def ask(service: Service) -> None:
        client = client_of(Application(service, Access(), page=False), PICTURE)
        asking = asyncio.ensure_future(client.ask())
        await until(runner.has_begun.is_set)
        asking.cancel(why)
        with pytest.raises(asyncio.CancelledError):
            await asking
        runner.go.set()
        await until(lambda: not service._jobs and not service.under_way)
        assert client.answer.status == 0

    with service_of(lambda: runner) as service, caplog.at_level(logging.INFO, "trt_hspan.serving"):
        asyncio.run(ask(service))
    assert events(caplog) == [("499", why or "the server ends")]


def test_memory_of_an_answer_is_held_until_it_has_left_unless_it_goes_slowly(
    application: Application, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask() -> int:
        client = client_of(application, PICTURE)
        client.reads.clear()
        asking = asyncio.ensure_future(client.ask())
        await until(lambda: client.answer.status)
        (reservation,) = service.work.open
        size = int(client.answer.headers["Content-Length"])
        assert service.work.held == size
        now = time.monotonic()
        assert now + 9 < reservation._until <= now + 10
        reservation._until = 0.0  # it is old
        with service.work.reserve(service.work.total), pytest.raises(asyncio.CancelledError):
            await asking
        return size

    with caplog.at_level(logging.INFO, "trt_hspan.serving"):
        assert asyncio.run(ask()) > 0
    assert service.work.held == 0
    assert events(caplog) == [("499", "it went slowly, and another request needed its memory; try again")]


def test_an_answer_that_fails_half_way_is_not_begun_again(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask() -> Client:
        client = client_of(application, PICTURE)
        client.reads.wait = broken  # type: ignore[method-assign]
        with pytest.raises(OSError, match="the wire broke"):
            await client.ask()
        await asyncio.sleep(0)
        return client

    async def broken() -> bool:
        raise OSError("the wire broke")

    with caplog.at_level(logging.INFO, "trt_hspan.serving"):
        client = asyncio.run(ask())
    assert (client.answer.status, client.answer.pieces) == (200, [])
    assert ("200", "unexpected OSError") in events(caplog)
