"""start.sh of an exported repository with the real tritonserver, as a container runs it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc
from support.served_pictures import hostile_files, pixels_of, png
from support.small_engine import SmallEngine
from support.started_repository import StartedRepository, started_repository
from tritonclient.utils import InferenceServerException

from trt_hspan.errors import HspanError
from trt_hspan.model_repository.networks import networks_from_engines
from trt_hspan.model_repository.repository import write_repository
from trt_hspan.runtime.opening import open_runner
from trt_hspan.serving.client import UpscaleClient


@pytest.fixture(scope="module")
def started(
    small_engine: SmallEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartedRepository]:
    """A package of the same name stands first on Python's path: what runs is the repository's own."""
    folder = tmp_path_factory.mktemp("started") / "models"
    write_repository(folder, networks_from_engines([small_engine.plan], name="net"))
    other = folder.parent / "other" / "trt_hspan"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError('not the one that was exported')")
    with started_repository(folder, PYTHONPATH=str(other.parent)) as running:
        yield running


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_our_clients_find_the_model_by_themselves(started: StartedRepository, protocol: str) -> None:
    with UpscaleClient(f"{protocol}://{getattr(started, protocol)}") as client:
        assert client.model_names() == ["net", "net_image"]
        assert pixels_of(client.upscale_picture(png(40, 30))).shape == (120, 160, 3)
        for name, data in hostile_files().items():
            if data:
                with pytest.raises(HspanError) as refused:
                    client.upscale_picture(data)
                assert "unexpected" not in str(refused.value), name
        assert client.is_ready()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tensors_are_those_of_the_engines_own_runner(
    started: StartedRepository, small_engine: SmallEngine, protocol: str
) -> None:
    batch = np.random.default_rng(1).random((1, 3, 20, 24), np.float32)
    with (
        UpscaleClient(f"{protocol}://{getattr(started, protocol)}") as client,
        open_runner(small_engine.plan, threads=1) as runner,
    ):
        np.testing.assert_allclose(client.upscale_tensor(batch), runner.run(batch), rtol=0, atol=1e-6)
        with pytest.raises(HspanError, match="takes 1x3x"):
            client.upscale_tensor(np.zeros((1, 3, 40, 8), np.float32))


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
