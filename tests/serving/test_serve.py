"""A server's life in this process, with a network in numpy: ports, signals, reloads, and what stops it."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.runner_doubles import NearestRunner
from support.served_pictures import png
from support.service_double import HeldRunner, InProcessPool, until

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.runtime.runner import Runner
from trt_hspan.serving import serve as module
from trt_hspan.serving.serve import ServeSpec, Serving, serve
from trt_hspan.upscaling.scheduler import Model


def spec(**changes: Any) -> ServeSpec:
    return ServeSpec(**{"source": "net", **changes})


def test_a_server_is_for_this_machine_alone_and_on_tritons_ports() -> None:
    assert (spec().host, spec().http_port, spec().grpc_port) == ("127.0.0.1", 8000, 8001)
    assert (spec().page, spec().devices, spec().instances) == (False, ("auto",), 1)
    assert (spec().token, spec().watch_seconds, spec().tile) == (None, None, None)


def test_ports_are_those_that_there_are_and_two() -> None:
    for name, option in (("http_port", "--port"), ("grpc_port", "--grpc-port")):
        for port in (0, 65535):
            assert getattr(spec(**{name: port}), name) == port
        for port in (-1, 65536):
            with pytest.raises(UsageError, match=f"^{option}: got {port}, expected 0 to 65535"):
                spec(**{name: port})
    assert spec(http_port=0, grpc_port=0).http_port == 0
    with pytest.raises(UsageError, match="they are the same port; give two different ones"):
        spec(http_port=1, grpc_port=1)


def test_a_token_is_printable_ascii_and_a_device_one_that_there_is() -> None:
    assert spec(token="!~").token == "!~"
    for token in ("", "a b", "\x7f", "\u00e9", "a\n"):
        with pytest.raises(UsageError, match="TRT_HSPAN_TOKEN: is empty or contains spaces"):
            spec(token=token)
    with pytest.raises(UsageError, match="--device: got 'tpu'"):
        spec(devices=("cpu", "tpu"))


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        ("folder/my net.plan", None, "my_net"),
        ("hspan-tiny-x4", None, "hspan-tiny-x4"),
        ("folder.d/net", None, "folder_d_net"),
        ("folder/net.plan", "mine", "mine"),
    ],
)
def test_the_network_is_called_after_its_file(source: str, name: str | None, expected: str) -> None:
    assert spec(source=source, name=name).model_name == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "my.host")),
    ],
)
def test_only_this_machine_reaches_the_loopback(host: str, expected: bool) -> None:
    assert module._is_loopback(host) is expected


def test_what_may_change_of_an_engine_are_its_three_files(tmp_path: Path) -> None:
    for suffix in (".plan", ".json", ".onnx"):
        (tmp_path / f"net{suffix}").write_text(suffix)
    state = (tmp_path / "net.onnx").stat()
    assert module._signature(str(tmp_path / "net.onnx")) == (("net.onnx", 5, state.st_mtime_ns),)
    files = module._signature(str(tmp_path / "net.plan"))
    assert [name for name, _, _ in files] == ["net.plan", "net.json", "net.onnx"]
    assert module._signature("hspan-tiny-x4") == ()


def test_a_port_is_had_before_anybody_may_connect() -> None:
    with module._bound("127.0.0.1", 0, "--port") as bound:
        address = bound.getsockname()
        with socket.socket() as other, pytest.raises(ConnectionRefusedError):
            other.connect(address)
        bound.listen()
        line = rf"127\.0\.0\.1:{address[1]}: another program listens there; give --port another port, or 0"
        with pytest.raises(HspanError, match=line):
            module._bound("127.0.0.1", address[1], "--port")
        with socket.socket() as client:
            client.connect(address)
            bound.accept()[0].close()  # and lingers from now on
    module._bound("127.0.0.1", address[1], "--port").close()


def test_a_port_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HspanError, match=r"--host: 203\.0\.113\.7 is no address of this machine"):
        module._bound("203.0.113.7", 0, "--port")

    class Protected(socket.socket):
        def bind(self, _: object) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.socket, "socket", Protected)
    with pytest.raises(
        HspanError, match="port 80: needs permission to be listened on; give --port above 1023"
    ):
        module._bound("127.0.0.1", 80, "--port")


# A server in this process.


@dataclass
class Running:
    """A server, or what became of it."""

    task: asyncio.Task[None]
    stop: asyncio.Event
    serving: Serving | None
    runners: dict[str, Any]
    closed: list[Model]

    async def status(self, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """Of one HTTP request."""
        assert self.serving is not None

        def ask() -> tuple[int, bytes]:
            address = self.serving.http_url.removeprefix("http://")  # type: ignore[union-attr]
            with closing(http.client.HTTPConnection(address, timeout=20)) as connection:
                connection.request("POST" if body else "GET", path, body=body or None, headers=headers)
                response = connection.getresponse()
                return response.status, response.read()

        return await asyncio.to_thread(ask)


Opener = Callable[[str], Runner]


@asynccontextmanager
async def running(
    opener: Opener | None = None, *, source: str = "net", **options: Any
) -> AsyncIterator[Running]:
    """A server that is ready, or has ended before; it is stopped afterwards."""
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    runners: dict[str, Any] = {}
    closed: list[Model] = []

    def opened(device: str) -> Runner:
        runners[device] = opener(device) if opener else NearestRunner(scale=2)
        return runners[device]

    close = Model.close

    def closing_model(model: Model, seconds: float = 2.0) -> None:
        closed.append(model)
        close(model, seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DecoderPool", lambda *_, **__: Pool())
        patch.setattr(Model, "close", closing_model)
        chosen = ServeSpec(**{"source": source, "http_port": 0, "grpc_port": 0, **options})
        task = asyncio.ensure_future(serve(chosen, on_ready=ready.set_result, stop=stop, open_runner=opened))
        await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
        try:
            yield Running(task, stop, ready.result() if ready.done() else None, runners, closed)
        finally:
            stop.set()
            await asyncio.wait((task,))


class Pool(InProcessPool):
    def close(self) -> None: ...


def events(caplog: pytest.LogCaptureFixture, *names: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        (record.getMessage(), record.event_fields)  # type: ignore[attr-defined]
        for record in caplog.records
        if record.name == "trt_hspan.serving" and record.getMessage() in names
    ]


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trt_hspan.serving")


def in_time(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


@pytest.mark.parametrize(("host", "page"), [("127.0.0.1", False), ("0.0.0.0", True), ("localhost", False)])
def test_it_says_where_it_is_and_what_it_serves(
    host: str, page: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with running(host=host, page=page, allowed_hosts=("my.host",)) as server:
            assert server.serving is not None
            shown = "localhost" if host == "localhost" else "127.0.0.1"
            assert server.serving.http_url.startswith(f"http://{shown}:")
            assert server.serving.grpc_url.startswith(f"{shown}:")
            assert (server.serving.models, server.serving.network) == (("net", "net_image"), "numpy, FP32")
            assert (await server.status("/v2/models/net"))[0] == 200
            assert (await server.status("/"))[0] == (200 if page else 404)
            for name, status in (("my.host", 200), (host, 403 if page else 200), ("other", 403)):
                assert (await server.status("/v2", Host=name))[0] == status
            ((_, ready),) = events(caplog, "ready")
            assert ready["http"] == server.serving.http_url
            assert ready["models"] == "net,net_image"
            assert ready["page"] == (f"{server.serving.http_url}/" if page else None)
            assert [fields["why"][:14] for _, fields in events(caplog, "warning")] == [
                "other machines"
            ] * page
            (model,) = {type(server.runners["auto"])}
            assert model is NearestRunner
        server.task.result()
        assert len(server.closed) == 1

    in_time(test())
    assert [name for name, _ in events(caplog, "stopping", "stopped")] == ["stopping", "stopped"]


def test_an_address_of_ipv6_has_brackets() -> None:
    try:
        module._bound("::1", 0, "--port").close()
    except HspanError:
        pytest.skip("this machine has no IPv6")

    async def test() -> None:
        async with running(host="::1") as server:
            assert server.serving is not None
            assert server.serving.http_url.startswith("http://[::1]:")
            assert (await server.status("/v2"))[0] == 200

    in_time(test())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_what_is_under_way_end_and_a_second_one_does_not(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        for hurries in (False, True):
            runner = HeldRunner()
            async with running(lambda _: runner) as server:  # noqa: B023
                asking = asyncio.ensure_future(server.status("/upscale", png(12, 8)))
                await until(runner.has_begun.is_set)
                signal.raise_signal(number)
                await until(lambda: len(events(caplog, "stopping")) == 1 + hurries)  # noqa: B023
                assert (await server.status("/v2/health/ready"))[0] == 503
                if hurries:
                    signal.raise_signal(number)
                    await asyncio.sleep(0.05)
                    runner.go.set()  # of the tile that was running
                    status, body = await asking
                    assert (status, b"the server stops" in body) == (503, True)
                else:
                    await asyncio.sleep(0.05)
                    assert not asking.done()
                    runner.go.set()
                    assert (await asking)[0] == 200
                await asyncio.wait((server.task,))
                server.task.result()
            assert events(caplog, "stopping")[-1][1]["under_way"] == 1
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL

    in_time(test())


def test_a_network_is_loaded_anew_on_sighup_and_the_one_before_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    openings: list[str] = []

    def opener(device: str) -> Runner:
        openings.append(device)
        if len(openings) == 3:
            raise HspanError("net", "damaged", "give another")
        return NearestRunner(scale=3 if len(openings) == 4 else 2)

    async def test() -> None:
        async with running(opener, devices=("cpu",)) as server:
            for count, (name, words) in enumerate(
                (
                    ("reload", ""),
                    ("reload-failed", "net: damaged"),
                    ("reload-failed", "net: enlarges by 3, the "),
                ),
                1,
            ):
                signal.raise_signal(signal.SIGHUP)
                await until(lambda: len(events(caplog, "reload", "reload-failed")) == count)  # noqa: B023
                event, fields = events(caplog, "reload", "reload-failed")[-1]
                assert (event, str(fields.get("why", ""))[: len(words)]) == (name, words)
                status, body = await server.status("/v2/models/net")
                assert (status, json.loads(body)["versions"]) == (200, ["2"])
            await until(lambda: len(server.closed) >= 2)
            assert (await server.status("/upscale", png(12, 8)))[0] == 200
            ((_, fields),) = events(caplog, "reload")
            assert fields["version"] == 2
            assert 0 <= fields["seconds"] < 30
        assert {model.version for model in server.closed} == {1, 2, 3}
        assert openings == ["cpu"] * 4

    in_time(test())


def test_a_network_whose_file_has_changed_and_rests_is_loaded_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("one")

    async def test() -> None:
        async with running(source=str(path), watch_seconds=0.04):
            await asyncio.sleep(0.15)
            assert not events(caplog, "reload")
            for time in range(4):  # it goes on changing
                os.utime(path, (time, time))
                await asyncio.sleep(0.02)
            await until(lambda: events(caplog, "reload"))
            await asyncio.sleep(0.15)
            assert len(events(caplog, "reload")) == 1

    in_time(test())


def test_a_server_that_is_stopped_while_it_loads_does_not_begin(caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()

    def opener(_: str) -> Runner:
        assert go.wait(20)
        return NearestRunner(scale=2)

    async def test() -> None:
        async def stopping(stop: asyncio.Event) -> None:
            await asyncio.sleep(0.02)
            stop.set()

        stop = asyncio.Event()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "DecoderPool", lambda *_, **__: Pool())
            asyncio.ensure_future(stopping(stop))  # noqa: RUF006
            await serve(
                spec(http_port=0, grpc_port=0),
                stop=stop,
                open_runner=opener,
                on_ready=lambda _: pytest.fail("it began"),
            )
        go.set()

    in_time(test())
    assert not events(caplog, "ready", "stopping")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize(("name", "option"), [("http_port", "--port"), ("grpc_port", "--grpc-port")])
def test_a_port_that_is_taken_while_the_network_loads_is_one_line(name: str, option: str) -> None:
    port = free_port()

    async def test() -> None:
        with socket.socket() as other:

            def opener(_: str) -> Runner:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                other.bind(("127.0.0.1", port))
                other.listen()
                return NearestRunner(scale=2)

            async with running(opener, **{name: port}) as server:
                with pytest.raises(HspanError, match=f"another program listens there; give {option} another"):
                    await server.task

    in_time(test())


def test_a_gpu_that_fails_ends_the_server_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(NearestRunner):
        on_gpu = True

        def infer(self, batch: Any) -> Any:
            if self.calls:
                raise HspanError("net.plan", "CUDA: an illegal memory access", "see trt-hspan doctor")
            return super().infer(batch)

    async def test() -> None:
        async with running(lambda _: Failing(scale=2)) as server:
            status, body = await server.status("/upscale", png(12, 8))
            assert (status, b"the GPU failed; the server ends" in body) == (503, True)
            with pytest.raises(HspanError) as caught:
                await server.task
            assert caught.value.where == "nearest"
            assert caught.value.what.startswith("the GPU failed: net.plan: CUDA: an illegal memory access")
            assert caught.value.next_step == "start the server again, as a service manager does"

    in_time(test())
    assert not events(caplog, "stopped")
