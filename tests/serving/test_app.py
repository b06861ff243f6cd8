"""Who may ask the server, and how a body may arrive: without a server."""

from __future__ import annotations

import h11
import pytest

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.serving.admission import RefusedError
from trt_hspan.serving.app import Access
from trt_hspan.serving.connections import HEADER_BYTES, _CountingConnection
from trt_hspan.serving.limits import ServerLimits, ServingLimits, limits_from_parameters


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


def connection() -> _CountingConnection:
    made = _CountingConnection(h11.SERVER, HEADER_BYTES)
    made.receive_data(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
    assert isinstance(made.next_event(), h11.Request)
    return made


def pieces_taken(made: _CountingConnection, size: int, most: int) -> int:
    for count in range(most):
        made.receive_data(f"{size:x}\r\n{size * 'a'}\r\n".encode())
        try:
            assert isinstance(made.next_event(), h11.Data)
        except h11.RemoteProtocolError:
            assert made.failure == "a body in too many small pieces"
            return count
    return most


@pytest.mark.parametrize(("size", "taken"), [(1, 1024), (255, 1024), (256, 1100)])
def test_a_body_of_many_pieces_has_pieces_of_some_size(size: int, taken: int) -> None:
    assert pieces_taken(connection(), size, 1100) == taken


def test_pieces_are_counted_anew_for_each_request() -> None:
    made = connection()
    assert pieces_taken(made, 1, 1000) == 1000
    made.receive_data(b"0\r\n\r\n")
    assert isinstance(made.next_event(), h11.EndOfMessage)
    made.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
    made.send(h11.EndOfMessage())
    made.start_next_cycle()
    made.receive_data(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
    assert isinstance(made.next_event(), h11.Request)
    assert pieces_taken(made, 1, 1000) == 1000


def test_limits_are_whole_numbers_from_1() -> None:
    assert ServingLimits(queue_length=1).queue_length == 1
    for bad in (0, -1, True, 1.5):
        with pytest.raises(UsageError, match=r"--queue-length: got .*, expected at least 1"):
            ServingLimits(queue_length=bad)  # type: ignore[arg-type]
    assert ServerLimits(max_bytes=9, held_bytes=9).held_bytes == 9
    with pytest.raises(UsageError, match="--held-bytes: 8 is less than --max-bytes 9"):
        ServerLimits(max_bytes=9, held_bytes=8)
    with pytest.raises(UsageError, match="--work-time-ms"):
        ServerLimits(work_time_ms=0)


def test_limits_from_texts_leave_the_rest_as_it_is() -> None:
    limits = limits_from_parameters({"max_pixels": "7", "other": "x"}, where="config.pbtxt")
    assert limits == ServingLimits(max_pixels=7)
    with pytest.raises(HspanError, match=r"config\.pbtxt: a limit is no number"):
        limits_from_parameters({"max_pixels": "many"}, where="config.pbtxt")
