"""Questions to a running server, asked by independent clients: Triton's own, and the standard library's."""

from __future__ import annotations

import http.client
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from support.serve_process import ServeProcess

RAW, IMAGE = "hspan-tiny-x4", "hspan-tiny-x4_image"
CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@contextmanager
def triton_client(server: ServeProcess, protocol: str) -> Iterator[tuple[Any, Any]]:
    module = CLIENTS[protocol]
    address = server.http_address if protocol == "http" else server.grpc_address
    client = module.InferenceServerClient(address)
    try:
        yield module, client
    finally:
        client.close()


def ask(
    server: ServeProcess, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """One request of the standard library's client."""
    host, _, port = server.http_address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        connection.request(method, path, body=body or None, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read(), dict(response.getheaders())
    finally:
        connection.close()


def infer_over_http(server: ServeProcess, model: str, tensor: np.ndarray, name: str, kind: str) -> Any:
    """The KServe v2 protocol with binary tensors, written from its description alone."""
    data = tensor.tobytes()
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": list(tensor.shape),
                    "datatype": kind,
                    "parameters": {"binary_data_size": len(data)},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    status, body, back = ask(server, "POST", f"/v2/models/{model}/infer", header + data, headers)
    if status != 200:
        return status, json.loads(body)["error"]
    length = int(back["Inference-Header-Content-Length"])
    (output,) = json.loads(body[:length])["outputs"]
    dtype = {"FP32": np.float32, "UINT8": np.uint8}[output["datatype"]]
    return status, np.frombuffer(body[length:], dtype).reshape(output["shape"])


def error_of(body: bytes) -> str:
    message = json.loads(body)["error"]
    assert "\n" not in message
    return str(message)


def until(ask_again: Callable[[], Any], enough: Callable[[Any], bool], seconds: float = 5) -> Any:
    """What it says once that is enough."""
    deadline = time.monotonic() + seconds
    while not enough(answer := ask_again()):
        assert time.monotonic() < deadline, answer
        time.sleep(0.02)
    return answer


def statistics(server: ServeProcess, model: str) -> dict[str, int]:
    with triton_client(server, "http") as (_, client):
        (model_stats,) = client.get_inference_statistics(model)["model_stats"]
    return {name: int(model_stats.get(name, 0)) for name in ("inference_count", "execution_count")}


def scraped(server: ServeProcess) -> str:
    with urllib.request.urlopen(server.metrics, timeout=10) as response:
        return str(response.read().decode())
