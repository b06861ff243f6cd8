"""A whole server in one process: the network, the decoders, HTTP and gRPC; started, reloaded, drained and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import importlib
import ipaddress
import logging
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import uvicorn

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.machine.memory import keep_freed_memory
from trt_hspan.media.decoders import DecoderPool
from trt_hspan.runtime.opening import RunnerOptions, device_from_text
from trt_hspan.runtime.runner import Runner
from trt_hspan.serving.admission import refusal_from_error, stopping
from trt_hspan.serving.client_protocol import TOKEN_VARIABLE
from trt_hspan.serving.events import log_event
from trt_hspan.serving.limits import ServerLimits
from trt_hspan.serving.service import Service, in_thread
from trt_hspan.serving.v2 import model_name_from_text
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.scheduler import DeviceError, Model

#: Seconds that requests under way are given when the server stops.
GRACE_SECONDS: Final = 30.0
_DECODERS: Final = 2
_EVERY_ADDRESS: Final = ("0.0.0.0", "::", "")
_NOT_LOOPBACK: Final = (
    "other machines can reach this server, and it does not encrypt: put a proxy with TLS in front of it, set "
    f"{TOKEN_VARIABLE}, and name it with --allow-host"
)


@dataclass(frozen=True, kw_only=True)
class ServeSpec:
    """A server to run.

    Attributes:
        source: as `open_runner` takes it.
        name: of the network; None takes that of the source.
        devices: one runner for each, as `open_runner` takes them; "auto" is one.
        runner: how a network is opened; its device is taken from `devices`.
        instances: of the network on a CPU.
        tile: largest tile; None is the engine's largest, and on a CPU `tile_size.CPU_TILE`.
        http_port, grpc_port: 0 takes a free one.
        allowed_hosts: names of this server beside the loopback's.
        token: which clients must give; None is none.
        page: whether to serve the page at /.
        watch_seconds: how often to look for a new version of the source; None only when SIGHUP asks for it.

    Raises:
        UsageError: a port that makes no sense, or one for both protocols; no device; an empty token.
    """

    source: str
    name: str | None = None
    devices: tuple[str, ...] = ("auto",)
    runner: RunnerOptions = field(default_factory=RunnerOptions)
    instances: int = 1
    tile: ImageSize | None = None
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    allowed_hosts: tuple[str, ...] = ()
    token: str | None = None
    limits: ServerLimits = field(default_factory=ServerLimits)
    page: bool = False
    watch_seconds: float | None = None

    def __post_init__(self) -> None:
        for option, port in (("--port", self.http_port), ("--grpc-port", self.grpc_port)):
            if not 0 <= port <= 65535:
                raise UsageError(option, f"got {port}, expected 0 to 65535")
        if self.http_port == self.grpc_port != 0:
            raise UsageError("--port --grpc-port", "they are the same port", "give two different ones")
        for device in self.devices:
            device_from_text(device)
        if self.token is not None and not re.fullmatch(r"[\x21-\x7e]+", self.token):
            what = "is empty or contains spaces"
            raise UsageError(TOKEN_VARIABLE, what, "give it printable ASCII, or unset it")

    @property
    def model_name(self) -> str:
        """A name that URLs take: letters, digits, dash and underscore."""
        path = Path(self.source)
        return model_name_from_text(self.name or (path.stem if path.suffix else self.source))


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Where a server that is ready can be reached, and what it runs."""

    http_url: str
    grpc_url: str
    models: tuple[str, str]
    network: str


async def serve(
    spec: ServeSpec,
    *,
    on_ready: Callable[[Serving], None] = lambda _: None,
    stop: asyncio.Event | None = None,
    open_runner: Callable[[str], Runner] | None = None,
) -> None:
    """Runs a server until a signal stops it.

    SIGINT and SIGTERM stop it, when this is the main thread: new requests are refused, those under way have
    `GRACE_SECONDS`; a second signal ends it at once. SIGHUP loads the source anew beside the old network.

    Args:
        spec: what to run.
        on_ready: called once everything is ready.
        stop: set it to stop the server.
        open_runner: opens the source on a device; None does as `spec` says.

    Raises:
        HspanError: a port is taken, the network cannot be loaded, or a GPU failed.
    """

    def opened(device: str) -> Runner:
        return replace(spec.runner, device=device).open(spec.source)

    await _Server(spec, stop or asyncio.Event(), open_runner or opened).run(on_ready)


class _Server:
    def __init__(self, spec: ServeSpec, stop: asyncio.Event, open_runner: Callable[[str], Runner]) -> None:
        self._spec, self._stop, self._open_runner = spec, stop, open_runner
        self._name = spec.model_name
        self._reload_asked, self._hurry = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._failure: DeviceError | None = None

    async def run(self, on_ready: Callable[[Serving], None]) -> None:
        spec = self._spec
        keep_freed_memory()  # before any other thread
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._signals())
            http_socket = stack.enter_context(_bound(spec.host, spec.http_port, "--port"))
            _bound(spec.host, spec.grpc_port, "--grpc-port").close()
            on_death = functools.partial(log_event, "decoder-died", level=logging.WARNING)
            pool = DecoderPool(_DECODERS, on_death=lambda pid: on_death(pid=pid))  # starts beside the network
            stack.callback(pool.close)
            model = await self._loaded(version=1)
            if model is None:
                return
            service = Service(model, pool, spec.limits)
            stack.callback(lambda: service.model.close())  # noqa: PLW0108  # whichever it is then
            serving = await self._listen(stack, service, http_socket)
            if not _is_loopback(spec.host):
                log_event("warning", level=logging.WARNING, why=_NOT_LOOPBACK)
            log_event(
                "ready",
                http=serving.http_url,
                grpc=serving.grpc_url,
                models=",".join(serving.models),
                network=serving.network,
                page=f"{serving.http_url}/" if spec.page else None,
            )
            on_ready(serving)
            for work in (service.keep_tidy(), self._keep_loaded(service)):
                stack.callback(asyncio.ensure_future(work).cancel)
            await self._stop.wait()
            await self._drain(service)
        if self._failure is not None:
            where, _, what = str(self._failure).partition(": ")
            raise HspanError(where, what, "start the server again, as a service manager does")
        log_event("stopped")

    async def _loaded(self, *, version: int) -> Model | None:
        """The network, open; None when the server was stopped meanwhile."""
        model = Model(
            [functools.partial(self._open_runner, device) for device in self._spec.devices],
            cpu_instances=self._spec.instances,
            name=self._name,
            tile=self._spec.tile,
            version=version,
            on_failure=lambda error: self._loop.call_soon_threadsafe(self._fail, error),
        )
        opening = in_thread(model.open)
        for name in ("connections", "v2_grpc"):  # for `_listen`, while the network is loaded
            importlib.import_module(f"trt_hspan.serving.{name}")
        stopped = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait((opening, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not opening.done():
            opening.cancel()
            return None
        opening.result()
        return model

    def _fail(self, error: DeviceError) -> None:
        self._failure = self._failure or error
        self._stop.set()

    async def _listen(
        self, stack: contextlib.AsyncExitStack, service: Service, http_socket: socket.socket
    ) -> Serving:
        """Takes requests from now on."""
        from trt_hspan.serving.app import Access, Application
        from trt_hspan.serving.connections import LimitedProtocol
        from trt_hspan.serving.v2_grpc import GrpcServer

        spec, limits = self._spec, self._spec.limits
        own = () if spec.host in _EVERY_ADDRESS else (spec.host,)
        access = Access((*spec.allowed_hosts, *own), spec.token)
        grpc_server = GrpcServer(service, access)
        host = f"[{spec.host}]" if ":" in spec.host else spec.host
        # gRPC does not say why it cannot have a port.
        _bound(spec.host, spec.grpc_port, "--grpc-port").close()
        try:
            grpc_port = grpc_server.bind(f"{host}:{spec.grpc_port}")
        except RuntimeError as error:
            raise _port_taken(spec.host, spec.grpc_port, "--grpc-port") from error
        seconds = limits.body_time_ms / 1000
        http_server = _HttpServer(
            uvicorn.Config(
                Application(service, access, page=spec.page),
                http=type("_Protocol", (LimitedProtocol,), {"most": limits.connections, "seconds": seconds}),
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=5,
            )
        )
        http_port = http_socket.getsockname()[1]
        serving_http = asyncio.ensure_future(http_server.serve(sockets=[http_socket]))

        async def stop_http() -> None:
            http_server.should_exit = True
            await asyncio.wait((serving_http,))

        stack.push_async_callback(stop_http)
        await grpc_server.start()
        stack.push_async_callback(grpc_server.stop, 5.0)
        while not http_server.started:
            if serving_http.done():
                raise _port_taken(spec.host, http_port, "--port") from serving_http.exception()
            await asyncio.sleep(0.005)
        shown = "127.0.0.1" if spec.host in _EVERY_ADDRESS else host
        return Serving(
            http_url=f"http://{shown}:{http_port}",
            grpc_url=f"{shown}:{grpc_port}",
            models=(service.model.name, service.image_name),
            network=service.model.runner.label,
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop() -> None:
            (self._hurry if self._stop.is_set() else self._stop).set()

        handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: self._reload_asked.set}
        with contextlib.suppress(ValueError, RuntimeError):  # not the main thread
            for number, handler in handlers.items():
                self._loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                with contextlib.suppress(ValueError, RuntimeError):
                    self._loop.remove_signal_handler(number)

    async def _drain(self, service: Service) -> None:
        """What is under way is finished; what is new is refused, and so is what takes too long."""
        service.draining = True
        log_event("stopping", under_way=service.under_way)

        async def wait_for_the_end(seconds: float) -> None:
            deadline = self._loop.time() + seconds
            while service.under_way and self._loop.time() < deadline and not self._hurry.is_set():
                await asyncio.sleep(0.02)

        await wait_for_the_end(0 if self._failure else GRACE_SECONDS)
        service.cancel_all(refusal_from_error(self._failure) if self._failure else stopping())
        self._hurry.clear()
        await wait_for_the_end(1)

    async def _keep_loaded(self, service: Service) -> None:
        """Loads the source anew: on SIGHUP, or when its files have changed and rest."""
        loaded = seen = _signature(self._spec.source)
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._reload_asked.wait(), self._spec.watch_seconds)
            asked = self._reload_asked.is_set()
            self._reload_asked.clear()
            before, seen = seen, _signature(self._spec.source)
            if asked or (seen == before and seen != loaded):
                loaded = seen
                try:
                    await self._reload(service)
                except Exception as error:  # noqa: BLE001  # the boundary: the old network goes on
                    log_event("reload-failed", level=logging.ERROR, why=str(error))

    async def _reload(self, service: Service) -> None:
        started = time.monotonic()
        model = await self._loaded(version=service.model.version + 1)
        if model is None:
            return
        if model.scale != service.model.scale:
            model.close()
            what = f"enlarges by {model.scale}, the network that is served by {service.model.scale}"
            raise HspanError(self._spec.source, what)
        log_event("reload", version=model.version, seconds=time.monotonic() - started)
        await service.replace(model)


class _HttpServer(uvicorn.Server):
    """uvicorn without its own handling of signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _signature(source: str) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the files behind a network; empty for a preset."""
    path = Path(source)
    suffixes = (".plan", ".json", ".onnx") if path.suffix == ".plan" else (path.suffix,)
    facts = []
    for file in (path.with_suffix(suffix) for suffix in suffixes):
        with contextlib.suppress(OSError):
            state = file.stat()
            facts.append((file.name, state.st_size, state.st_mtime_ns))
    return tuple(facts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int, option: str) -> socket.socket:
    """A socket that has the port but does not listen: until it does, clients are refused."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UsageError("--host", f"got {host!r}: {error.strerror or error}", "name an address") from None
    sock = socket.socket(family, kind, protocol)
    try:
        # A port of the kernel's choice must be nobody else's, even before anybody listens there; and a server that
        # is started anew must get its port although connections of the one before linger.
        if port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError as error:
        sock.close()
        if isinstance(error, PermissionError):
            what = "needs permission to be listened on"
            raise HspanError(f"port {port}", what, f"give {option} above 1023") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise HspanError("--host", f"{host} is no address of this machine", "give one that is") from None
        raise _port_taken(host, port, option) from error
    return sock


def _port_taken(host: str, port: int, option: str) -> HspanError:
    return HspanError(f"{host}:{port}", "another program listens there", f"give {option} another port, or 0")
