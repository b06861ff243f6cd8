"""start.sh of an exported repository with the real tritonserver, without our front door, as a container runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc
from support.ray_head import free_port
from support.served_pictures import pixels_of, png
from support.small_engine import SmallEngine
from tritonclient.utils import InferenceServerException

from trt_hspan.serving.client import UpscaleClient
from trt_hspan.serving.networks import networks_from_engines
from trt_hspan.serving.repository import write_repository
from trt_hspan.serving.triton_install import triton_install


class StartedRepository:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.http, self.grpc, self.metrics = (f"127.0.0.1:{free_port()}" for _ in range(3))
        install = triton_install()
        words = ["sh", str(folder / "start.sh"), f"--backend-directory={install.backends}"]
        for name, place in (("http", self.http), ("grpc", self.grpc), ("metrics", self.metrics)):
            address, _, port = place.partition(":")
            words += [f"--{name}-address={address}", f"--{name}-port={port}"]
        environment = {**install.environment(), "TRITONSERVER": str(install.program), "ADMIN_KEY": "secret"}
        self.process = subprocess.Popen(
            words,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 120
        with UpscaleClient(f"http://{self.http}") as client:
            while not client.is_ready():
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def get(self, place: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
        try:
            request = urllib.request.Request(f"http://{place}{path}", headers=headers or {})
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def started(
    small_engine: SmallEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartedRepository]:
    folder = tmp_path_factory.mktemp("started") / "models"
    write_repository(folder, networks_from_engines([small_engine.plan], name="net"))
    running = StartedRepository(folder)
    try:
        running.wait_until_ready()
        yield running
    finally:
        if running.process.poll() is None:
            os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_our_clients_find_the_model_by_themselves(started: StartedRepository, protocol: str) -> None:
    with UpscaleClient(f"{protocol}://{getattr(started, protocol)}") as client:
        assert client.model_names() == ["net", "net_image"]
        assert pixels_of(client.upscale_picture(png(40, 30))).shape == (120, 160, 3)


@pytest.mark.parametrize(
    "path",
    [
        *("/v2/systemsharedmemory/status", "/v2/cudasharedmemory/status"),
        *("/v2/logging", "/v2/trace/setting"),
    ],
)
def test_what_changes_the_server_wants_the_key(started: StartedRepository, path: str) -> None:
    status, text = started.get(started.http, path)
    assert (status, "restricted" in text) == (403, True)
    status, text = started.get(started.http, path, {"admin-key": "secret"})
    assert "restricted" not in text


def test_grpc_methods_that_change_the_server_want_the_key(started: StartedRepository) -> None:
    client = tritonclient.grpc.InferenceServerClient(started.grpc)
    for call in (client.get_system_shared_memory_status, client.get_log_settings):
        with pytest.raises(InferenceServerException, match="restricted"):
            call()
    with pytest.raises(InferenceServerException, match="restricted"):
        client.unload_model("net")
    client.close()


def test_dashboard_and_autoscaling_ask_for_figures_that_this_server_gives(started: StartedRepository) -> None:
    _, text = started.get(started.metrics, "/metrics")
    given = set(re.findall(r"^(nv_\w+)", text, re.MULTILINE))
    dashboard = json.loads((started.folder / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions.append((started.folder / "kubernetes.yaml").read_text())
    asked = {name for text in expressions for name in re.findall(r"nv_\w+", text)}
    assert {name for name in asked if not name.startswith("nv_gpu_")} <= given
    assert {name for name in asked if name.startswith("nv_gpu_")} == {
        "nv_gpu_utilization",
        "nv_gpu_memory_used_bytes",
    }


def test_after_a_stop_signal_it_answers_what_is_under_way(started: StartedRepository) -> None:
    """Last of all. As Kubernetes stops a pod: SIGTERM to the process that start.sh became."""
    shapes: list[tuple[int, ...]] = []

    def ask() -> None:
        with UpscaleClient(f"http://{started.http}") as client:
            shapes.append(pixels_of(client.upscale_picture(png(200, 150))).shape)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.3)
    started.process.terminate()
    assert started.process.wait(60) == 0
    asking.join()
    assert shapes == [(600, 800, 3)]
