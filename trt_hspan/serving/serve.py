"""A whole server: tritonserver behind its front door, kept alive, reloaded, and stopped without leaving anything.

Owns the order of starting and stopping. Nothing is answered until everything is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.serving.events import HTTP_LOGGER, log_event
from trt_hspan.serving.limits import ServingLimits
from trt_hspan.serving.repository import (
    image_models,
    python_instances,
    repository_models,
    repository_signature,
)
from trt_hspan.serving.server import TritonServer
from trt_hspan.serving.triton_install import TritonInstall

#: Seconds that requests under way are given when the server stops.
GRACE_SECONDS: Final = 30.0
# How long what a refused client still sends is read and dropped, so that it gets to read the refusal.
_LINGERING_SECONDS: Final = 2.0
# So many ends of tritonserver within so many seconds, and it is not started again.
_MAX_ENDS, _WITHIN_SECONDS = 5, 60.0
# Triton's Python processes are counted this often; one that is missing so many times in a row is brought back.
_STUB_CHECK_SECONDS: Final = 0.5
_STUB_CHECKS: Final = 3


@dataclass(frozen=True, kw_only=True)
class ServeSpec:
    """A server to run.

    Attributes:
        http_port, grpc_port, metrics_port: 0 takes a free one.
        page: whether to serve the page at /.
        watch_seconds: how often to look for new versions in the repository; None only when SIGHUP asks for it.
        triton_arguments: further options of tritonserver.
    """

    repository: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    limits: ServingLimits = field(default_factory=ServingLimits)
    page: bool = False
    watch_seconds: float | None = None
    triton_arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        named = {"--port": self.http_port, "--grpc-port": self.grpc_port, "--metrics-port": self.metrics_port}
        for option, port in named.items():
            if not 0 <= port <= 65535:
                raise UsageError(option, f"got {port}, expected 0 to 65535")
        given = [port for port in named.values() if port]
        if len(set(given)) < len(given):
            raise UsageError(" ".join(named), "two of them are the same port", "give three different ones")


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Where a server that is ready can be reached."""

    http_url: str
    grpc_url: str
    metrics_url: str
    models: tuple[str, ...]
    image_models: tuple[str, ...]
    triton_pid: int


def require_free_ports(spec: ServeSpec) -> None:
    """Raises HspanError or UsageError, before any work, where the server cannot listen as it shall."""
    for port, option in (
        (spec.http_port, "--port"),
        (spec.grpc_port, "--grpc-port"),
        (spec.metrics_port, "--metrics-port"),
    ):
        _bound(spec.host, port, option).close()


async def serve(
    spec: ServeSpec,
    install: TritonInstall,
    *,
    on_ready: Callable[[Serving], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Runs a server until a signal stops it.

    SIGINT and SIGTERM stop it, when this is the main thread; SIGHUP loads new versions from the repository. When
    tritonserver dies, it is started again, and clients receive a request to retry meanwhile.

    Args:
        spec: what to run.
        install: tritonserver.
        on_ready: called once everything is ready.
        stop: set it to stop the server.

    Raises:
        HspanError: a port is taken, the repository contains no model, a model cannot be loaded, or tritonserver
            dies again and again.
    """
    await _Server(spec, install, stop or asyncio.Event()).run(on_ready or (lambda _: None))


class _Server:
    def __init__(self, spec: ServeSpec, install: TritonInstall, stop: asyncio.Event) -> None:
        from trt_hspan.serving.admission import Admission
        from trt_hspan.serving.grpc_door import GrpcDoor
        from trt_hspan.serving.http_door import HttpDoor

        self._spec = spec
        self._stop = stop
        self._models = repository_models(spec.repository)
        self._images = image_models(spec.repository)
        self._signature = repository_signature(spec.repository)
        self._triton = TritonServer(
            install, spec.repository, on_line=_log_line, arguments=spec.triton_arguments
        )
        self._admission = Admission(spec.limits)
        self._http = HttpDoor(self._triton.ports, self._admission, image_models=self._images, page=spec.page)
        self._grpc = GrpcDoor(self._triton.ports, self._admission)
        self._reload_wanted = asyncio.Event()
        self._ends: list[float] = []
        self._starting = True

    async def run(self, on_ready: Callable[[Serving], None]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._signals())
            sockets = [
                stack.enter_context(_bound(self._spec.host, port, option))
                for port, option in (
                    (self._spec.http_port, "--port"),
                    (self._spec.metrics_port, "--metrics-port"),
                )
            ]
            grpc_port = await self._bind_grpc()
            stack.push_async_callback(self._grpc.stop, 0)
            stack.push_async_callback(self._stop_triton)
            log_event("starting", repository=self._spec.repository, models=",".join(self._models))
            await self._triton.start()
            if not await self._until_ready_or_stopped():
                return
            await self._open(stack, sockets)
            serving = self._serving(sockets, grpc_port)
            log_event(
                "ready",
                http=serving.http_url,
                grpc=serving.grpc_url,
                metrics=serving.metrics_url,
                models=",".join(serving.models),
                page=f"{serving.http_url}/" if self._spec.page else None,
            )
            on_ready(serving)
            self._starting = False
            await self._until_stopped()
            log_event("stopping", in_flight=self._admission.in_flight)
        log_event("stopped")

    async def _open(self, stack: contextlib.AsyncExitStack, sockets: Sequence[socket.socket]) -> None:
        from aiohttp import web

        from trt_hspan.serving.patience import PatientSite

        for app, sock, option in zip(
            (self._http.application(), self._http.metrics_application()),
            sockets,
            ("--port", "--metrics-port"),
            strict=True,
        ):
            runner = web.AppRunner(
                app,
                access_log=None,
                logger=HTTP_LOGGER,
                lingering_time=_LINGERING_SECONDS,
                auto_decompress=False,
                handler_cancellation=True,
                shutdown_timeout=GRACE_SECONDS,
                keepalive_timeout=30,
            )
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            try:
                await PatientSite(runner, sock, self._spec.limits.body_time_ms / 1000).start()
            except OSError as error:  # somebody was quicker to listen there
                raise _port_taken(self._spec.host, sock.getsockname()[1], option) from error
        await self._grpc.start()
        stack.push_async_callback(self._grpc.stop, GRACE_SECONDS)

    def _serving(self, sockets: Sequence[socket.socket], grpc_port: int) -> Serving:
        host = self._spec.host if self._spec.host not in ("0.0.0.0", "::") else "127.0.0.1"
        shown = f"[{host}]" if ":" in host else host
        http_port, metrics_port = (sock.getsockname()[1] for sock in sockets)
        assert self._triton.pid is not None
        return Serving(
            http_url=f"http://{shown}:{http_port}",
            grpc_url=f"{shown}:{grpc_port}",
            metrics_url=f"http://{shown}:{metrics_port}/metrics",
            models=tuple(self._models),
            image_models=tuple(self._images),
            triton_pid=self._triton.pid,
        )

    async def _bind_grpc(self) -> int:
        host = f"[{self._spec.host}]" if ":" in self._spec.host else self._spec.host
        with _bound(self._spec.host, self._spec.grpc_port, "--grpc-port"):
            pass  # grpc does not say why it cannot bind; this does
        try:
            return await self._grpc.bind(f"{host}:{self._spec.grpc_port}")
        except RuntimeError as error:
            raise _port_taken(self._spec.host, self._spec.grpc_port, "--grpc-port") from error

    @contextlib.contextmanager
    def _signals(self):  # type: ignore[no-untyped-def]
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGINT: self._stop.set,
            signal.SIGTERM: self._stop.set,
            signal.SIGHUP: self._reload_wanted.set,
        }
        installed = []
        for number, handler in handlers.items():
            with contextlib.suppress(ValueError, RuntimeError):  # not the main thread
                loop.add_signal_handler(number, handler)
                installed.append(number)
        try:
            yield
        finally:
            for number in installed:
                loop.remove_signal_handler(number)

    async def _stop_triton(self) -> None:
        await self._triton.stop(GRACE_SECONDS + 5)

    async def _until_ready_or_stopped(self) -> bool:
        ready = asyncio.create_task(self._triton.wait_until_ready())
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((ready, stopped), return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                return True
            return False
        finally:
            for task in (ready, stopped):
                task.cancel()

    async def _until_stopped(self) -> None:
        tasks = [
            asyncio.create_task(self._keep_alive()),
            asyncio.create_task(self._keep_loaded()),
            asyncio.create_task(self._keep_stubs()),
            asyncio.create_task(self._stop.wait()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_alive(self) -> None:
        """Starts tritonserver again whenever it ends."""
        while True:
            code = await self._triton.wait()
            self._starting = True
            now = time.monotonic()
            self._ends = [moment for moment in self._ends if now - moment < _WITHIN_SECONDS] + [now]
            log_event("tritonserver-died", level=logging.ERROR, code=code, why=self._triton.failure())
            if len(self._ends) >= _MAX_ENDS:
                raise HspanError(
                    "tritonserver",
                    f"died {len(self._ends)} times within {_WITHIN_SECONDS:.0f} s, at last: {self._triton.failure()}",
                    "see the lines above",
                )
            await self._triton.start()
            try:
                await self._triton.wait_until_ready()
            except HspanError as error:
                log_event("restart-failed", level=logging.ERROR, why=str(error))
                await asyncio.sleep(1)
                continue
            self._starting = False
            log_event("restarted", pid=self._triton.pid)

    async def _keep_loaded(self) -> None:
        """Loads what changes in the repository: on SIGHUP, or at the requested interval."""
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._reload_wanted.wait(), self._spec.watch_seconds)
            asked = self._reload_wanted.is_set()
            self._reload_wanted.clear()
            try:
                signature = repository_signature(self._spec.repository)
            except OSError as error:
                log_event("reload-failed", level=logging.ERROR, why=str(error))
                continue
            changed = [name for name, mark in signature.items() if self._signature.get(name) != mark]
            if asked and not changed:
                log_event("reload", models="", why="nothing has changed")
            for name in changed:
                await self._load(name)
            self._signature = signature
            if changed:
                self._images[:] = image_models(self._spec.repository)  # the door's too

    async def _keep_stubs(self) -> None:
        """Brings back Python processes of models that died and that Triton does not start again."""
        lacking: Counter[str] = Counter()
        while True:
            await asyncio.sleep(_STUB_CHECK_SECONDS)
            if self._starting:
                lacking.clear()
                continue
            now = await asyncio.to_thread(self._triton.stub_counts)
            for name, whole in python_instances(self._spec.repository).items():
                lacking[name] = lacking[name] + 1 if now[name] < whole and name in self._signature else 0
                if lacking[name] >= _STUB_CHECKS and not self._starting:
                    lacking[name] = 0
                    await self._revive(name, left=now[name], whole=whole)

    async def _revive(self, name: str, *, left: int, whole: int) -> None:
        log_event("stub-died", level=logging.ERROR, model=name, left=left, of=whole)
        try:
            await self._triton.revive(name)
        except (HspanError, OSError, ValueError, aiohttp.ClientError) as error:
            log_event("revive-failed", level=logging.ERROR, model=name, why=str(error))
            return
        self._signature = repository_signature(self._spec.repository)
        log_event("revived", model=name)

    async def _load(self, name: str) -> None:
        started = time.monotonic()
        try:
            await self._triton.load(name)
        except (HspanError, OSError, aiohttp.ClientError) as error:
            log_event("reload-failed", level=logging.ERROR, model=name, why=str(error))
            return
        log_event("reload", model=name, seconds=time.monotonic() - started)


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
    except PermissionError:
        sock.close()
        raise HspanError(
            f"port {port}", "needs permission to be listened on", f"give {option} above 1023"
        ) from None
    except OSError as error:
        sock.close()
        if error.errno == 99:  # EADDRNOTAVAIL
            raise HspanError("--host", f"{host} is no address of this machine", "give one that is") from None
        raise _port_taken(host, port, option) from error
    return sock


def _port_taken(host: str, port: int, option: str) -> HspanError:
    return HspanError(f"{host}:{port}", "another program listens there", f"give {option} another port, or 0")


def _log_line(level: str, text: str) -> None:
    number = {"warning": logging.WARNING, "error": logging.ERROR}.get(level, logging.DEBUG)
    if text.strip("+-| "):
        log_event("triton", level=number, says=text)
