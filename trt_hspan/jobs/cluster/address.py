"""Addresses of clusters, and a quick check that Ray answers there; Ray itself tries for half a minute."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final
from urllib.parse import urlsplit

from trt_hspan.errors import HspanError, UsageError

LOCAL: Final = "local"
AUTO: Final = "auto"
#: Of Ray's client server, where an address names none.
CLIENT_PORT: Final = 10001
# gRPC's codes for a server that does not speak it, has no such call, or does not answer.
_NO_ANSWERS: Final = ("UNAVAILABLE", "UNIMPLEMENTED", "DEADLINE_EXCEEDED", "UNKNOWN", "INTERNAL")
_TOKEN_ADVICE: Final = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN unless ~/.ray/auth_token contains it"
#: Seconds within which it has to answer.
PATIENCE_SECONDS: Final = 8.0


def ray_host_and_port(address: str) -> tuple[str, int] | None:
    """The host and port of a ray:// address; None for `local` and `auto`, which have none."""
    if address in (LOCAL, AUTO):
        return None
    with contextlib.suppress(ValueError):  # a port that is no number, or half of an IPv6 address
        parts = urlsplit(address)
        if parts.scheme == "ray" and parts.hostname and parts.path in ("", "/") and parts.port != 0:
            return parts.hostname, parts.port or CLIENT_PORT
    raise UsageError("--cluster", f"got {address!r}, expected local, auto or ray://HOST:PORT")


def require_ray(address: str) -> None:
    """Checks that Ray's client server answers; does nothing for `local` and `auto`.

    Raises:
        HspanError: the host is unknown, nobody listens at the port, or what listens there is not Ray.
    """
    place = ray_host_and_port(address)
    if place is None:
        return
    try:
        socket.create_connection(place, timeout=PATIENCE_SECONDS).close()
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise _unreachable(address, reason) from None
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):  # with TLS, Ray alone has the keys
        _require_answer(address, place)


def _require_answer(address: str, place: tuple[str, int]) -> None:
    """Sends the first request of Ray's own client, with a shorter time limit."""
    import grpc
    from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc

    host = f"[{place[0]}]" if ":" in place[0] else place[0]
    ping = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
    with grpc.insecure_channel(f"{host}:{place[1]}") as channel:
        try:
            ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo(ping, timeout=PATIENCE_SECONDS)
        except grpc.RpcError as error:
            code = error.code().name
            if code == "UNAUTHENTICATED" and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
                raise HspanError(address, "the cluster requires a token", _TOKEN_ADVICE) from None
            if code in _NO_ANSWERS:  # other codes are Ray's, which explains them
                raise _unreachable(address, "what listens there is not Ray's client server") from None


def _unreachable(address: str, reason: str) -> HspanError:
    return HspanError(
        address,
        f"the cluster cannot be reached: {reason}",
        "check host and port, and that ray status on the head node says it runs",
    )
