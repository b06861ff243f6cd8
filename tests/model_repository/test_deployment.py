"""The files around a repository, held against the schemas of the programs that read them."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.model_repository import network_of

from trt_hspan.errors import HspanError
from trt_hspan.model_repository.deployment import deployment_files, kubernetes_name, version_in_image
from trt_hspan.model_repository.networks import Network
from trt_hspan.model_repository.repository import write_repository
from trt_hspan.serving.limits import ServingLimits

# Kubernetes' own schemas cover its own kinds; these are the required parts of the operators' definitions:
# monitoring.coreos.com/v1 ServiceMonitor and serving.kserve.io/v1beta1 InferenceService.
_MONITOR = {"selector", "endpoints"}
_ENDPOINT = {"port", "path", "interval"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an engine of TensorRT-RTX."""
    folder = tmp_path_factory.mktemp("deployed")
    network = network_of("My_Net_1", folder, version="1.7.1.116", flavor="tensorrt-rtx", backend="python")
    return write_repository(folder / "models", [network]).folder


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def test_kubernetes_kinds_fit_kubernetes_schemas(repository: Path) -> None:
    own = [d for d in documents(repository / "kubernetes.yaml") if d["kind"] != "ServiceMonitor"]
    assert [d["kind"] for d in own] == ["Deployment", "Service", "ConfigMap", "HorizontalPodAutoscaler"]
    for document in own:
        kubernetes_validate.validate(document, "1.30", strict=True)


def test_validator_would_notice(repository: Path) -> None:
    deployment = documents(repository / "kubernetes.yaml")[0]
    deployment["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.30", strict=True)


def test_parts_refer_to_each_other(repository: Path) -> None:
    by_kind = {d["kind"]: d for d in documents(repository / "kubernetes.yaml")}
    pod = by_kind["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert labels == by_kind["Deployment"]["spec"]["selector"]["matchLabels"]
    assert labels == by_kind["Service"]["spec"]["selector"]
    assert {p["targetPort"] for p in by_kind["Service"]["spec"]["ports"]} == ports
    monitor = by_kind["ServiceMonitor"]["spec"]
    assert set(monitor) == _MONITOR
    assert set(monitor["endpoints"][0]) == _ENDPOINT
    assert monitor["selector"]["matchLabels"] == by_kind["Service"]["metadata"]["labels"]
    assert monitor["endpoints"][0]["port"] in {p["name"] for p in by_kind["Service"]["spec"]["ports"]}
    scaler = by_kind["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == by_kind["Deployment"]["metadata"]["name"]
    (rule,) = yaml.safe_load(by_kind["ConfigMap"]["data"]["config.yaml"])["rules"]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == rule["name"]["as"]
    assert "nv_inference_queue_duration_us" in rule["metricsQuery"]


def test_inference_service_runs_the_same_image(repository: Path) -> None:
    (service,) = documents(repository / "kserve.yaml")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    (container,) = service["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container"
    (deployment, *_) = documents(repository / "kubernetes.yaml")
    (own,) = deployment["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["resources"]) == (own["image"], own["resources"])
    # But for the two replicas, a predictor is a pod, which has Kubernetes' own schema.
    spec = {key: value for key, value in service["spec"]["predictor"].items() if not key.endswith("Replicas")}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(pod, "1.30", strict=True)


def test_pod_is_locked_down_and_is_given_time_to_end(repository: Path, tmp_path: Path) -> None:
    (deployment, *_) = documents(repository / "kubernetes.yaml")
    (service,) = documents(repository / "kserve.yaml")
    (compose,) = documents(repository / "docker-compose.yaml")
    for pod in (deployment["spec"]["template"]["spec"], service["spec"]["predictor"]):
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted == {"shm": "/dev/shm", "tmp": "/tmp"}  # all that is written to
        assert {volume["name"] for volume in pod["volumes"]} == set(mounted)
        # It may wait 30 s, is then worked on, and no request is sent to it any more when it is told to stop.
        drain = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        assert pod["terminationGracePeriodSeconds"] >= drain + exit_seconds(repository) + 5
    assert exit_seconds(repository) >= 30 + 30
    assert compose["services"]["my-net-1"]["stop_grace_period"] == "75s"
    patient = tmp_path / "patient"
    limits = ServingLimits(queue_time_ms=120_500)
    write_repository(patient, [network_of("net", tmp_path)], limits=limits)
    assert exit_seconds(patient) == 151
    (deployment, *_) = documents(patient / "kubernetes.yaml")
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 151 + 5


def exit_seconds(repository: Path) -> int:
    (actual,) = re.findall(r"--exit-timeout-secs=(\d+)", (repository / "start.sh").read_text())
    return int(actual)


def test_names_suit_kubernetes(repository: Path) -> None:
    for path in ("kubernetes.yaml", "kserve.yaml"):
        for document in documents(repository / path):
            assert re.fullmatch(r"my-net-1(-adapter-rule)?", document["metadata"]["name"])


def test_compose_mounts_files_that_exist(repository: Path) -> None:
    (compose,) = documents(repository / "docker-compose.yaml")
    assert set(compose["services"]) == {"my-net-1", "prometheus", "grafana"}
    for service in compose["services"].values():
        for mount in service.get("volumes", []):
            assert (repository / mount.split(":")[0]).is_file(), mount
    (prometheus,) = documents(repository / "prometheus.yaml")
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == ["my-net-1:8002"]


def test_dashboard_asks_for_figures_that_triton_gives(repository: Path) -> None:
    """Names as tests/serving/test_server.py scrapes them, and NVIDIA's list of metrics for GPUs."""
    names = {
        *("nv_inference_request_success", "nv_inference_request_failure", "nv_inference_count"),
        *("nv_inference_exec_count", "nv_inference_request_duration_us", "nv_inference_queue_duration_us"),
        *("nv_inference_compute_input_duration_us", "nv_inference_compute_infer_duration_us"),
        *("nv_inference_compute_output_duration_us", "nv_inference_pending_request_count"),
        *("nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_cpu_memory_used_bytes"),
    }
    dashboard = json.loads((repository / "grafana-dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == 8
    (datasource,) = documents(repository / "grafana-datasource.yaml")
    for panel in panels:
        assert panel["datasource"]["uid"] == datasource["datasources"][0]["uid"]
        for target in panel["targets"]:
            assert set(re.findall(r"nv_\w+", target["expr"])) <= names
            assert target["expr"].count("(") == target["expr"].count(")")


def test_dockerfile_copies_what_is_there(repository: Path) -> None:
    text = (repository / "Dockerfile").read_text()
    assert "COPY requirements.txt /tmp/\n" in text
    assert 'ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh", "sh", "/models/start.sh"]' in text
    ignored = (repository / ".dockerignore").read_text().split()
    assert not {"requirements.txt", "SHA256SUMS"} & set(ignored)
    checked = [line.split()[1] for line in (repository / "SHA256SUMS").read_text().splitlines()]
    assert {"My_Net_1/1/model.plan", "My_Net_1/1/trt-hspan.zip"} <= set(checked)
    assert not [name for name in checked if name in ignored or name.endswith(".yaml")]


def stages(repository: Path) -> dict[str, list[str]]:
    """The Dockerfile's instructions by image, continued lines joined."""
    text = (repository / "Dockerfile").read_text().replace("\\\n", "")
    result: dict[str, list[str]] = {"": []}
    for line in text.splitlines():
        if line.startswith("FROM "):
            result[line.removeprefix("FROM ")] = []
        elif line and not line.startswith("#"):
            result[list(result)[-1]].append(line)
    return result


def test_pycuda_is_built_where_a_cuda_toolkit_is_and_installed_as_a_wheel(repository: Path) -> None:
    first, toolkit, server = (stages(repository)[name] for name in stages(repository))
    assert list(stages(repository))[1:] == ["nvidia/cuda:12.8.1-devel-ubuntu24.04 AS wheels", "${IMAGE}"]
    assert first == ["ARG IMAGE=nvcr.io/nvidia/tritonserver:25.12-py3"]
    assert toolkit[-1] == "RUN pip wheel --no-deps --wheel-dir /wheels 'pycuda>=2024.1'"
    assert server.index("COPY --from=wheels /wheels /tmp/wheels") < next(
        index for index, line in enumerate(server) if line.startswith("RUN pip install")
    )


def test_lines_of_pip_install_what_the_python_models_import(repository: Path, tmp_path: Path) -> None:
    """The line as it is, by this Python's pip and without installing; PyCUDA's wheel is made up."""
    (line,) = (line for line in stages(repository)["${IMAGE}"] if line.startswith("RUN pip install"))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    info = "pycuda-2026.1.dist-info"
    with zipfile.ZipFile(wheels / "pycuda-2026.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pycuda\nVersion: 2026.1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    words = shlex.split(line.removeprefix("RUN pip install "))
    words = [word.replace("/tmp/wheels", str(wheels)) for word in words]
    words = [word.replace("/tmp/requirements.txt", str(repository / "requirements.txt")) for word in words]
    completed = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    names = {
        line.split(">")[0].split("=")[0] for line in (repository / "requirements.txt").read_text().split()
    }
    assert {"numpy", "pillow", "onnx", "onnxruntime", "tensorrt-rtx", "pycuda"} <= names
    assert not {"torch", "tritonclient", "aiohttp"} & names


def test_start_script_is_plain_shell(repository: Path) -> None:
    subprocess.run(["sh", "-n", str(repository / "start.sh")], check=True)


# What depends on the networks, without engines.


def rtx(version: str = "1.7.1.116") -> Network:
    return network_of("rtx", version=version, flavor="tensorrt-rtx", backend="python")


def files_of(*networks: Network, queue_time_ms: int = 30_000) -> dict[str, str]:
    limits = ServingLimits(queue_time_ms=queue_time_ms)
    return deployment_files(networks, image="mine:1", limits=limits)


@pytest.mark.parametrize(
    ("networks", "later", "option"),
    [
        ([network_of(travels=True)], True, True),
        ([network_of()], False, False),
        ([network_of(travels=True), network_of("other")], False, True),
        ([network_of(travels=True), network_of("other", travels=True)], True, True),
        ([network_of(travels=True), rtx()], True, True),
        ([network_of(), rtx()], False, False),
    ],
)
def test_a_later_tensorrt_will_do_if_all_engines_of_tensorrt_travel(
    networks: list[Network], later: bool, option: bool
) -> None:
    script = files_of(*networks)["start.sh"]
    assert f"runs_with_later = {later} " in script
    assert ("--backend-config=tensorrt,version-compatible=true" in script) is option


@pytest.mark.parametrize(
    ("networks", "version", "library"),
    [
        ([network_of(version="11.4.0.1"), rtx("9.9.9")], "11.4.0.1", "libnvinfer.so.11"),
        ([network_of()], "10.7.0.23", "libnvinfer.so.10"),
        ([rtx()], None, "libnvinfer.so.10"),
    ],
)
def test_the_image_must_have_the_tensorrt_that_its_backend_runs(
    networks: list[Network], version: str | None, library: str
) -> None:
    files = files_of(*networks)
    assert version_in_image(networks) == version
    assert files.get("TENSORRT_VERSION") == (None if version is None else f"{version}\n")
    why = f"The engines need TensorRT {version}." if version else "No model needs the image's TensorRT."
    assert why in files["Dockerfile"]
    assert f'LD_PRELOAD="$plugin:{library}$' in files["start.sh"]


def test_two_versions_of_tensorrt_are_one_too_many() -> None:
    networks = [network_of(version="10.7.0.23"), network_of("b", version="10.14.1")]
    with pytest.raises(
        HspanError, match=r"the engines are of TensorRT 10\.14\.1 and 10\.7\.0\.23, and an image"
    ):
        files_of(*networks)


@pytest.mark.parametrize(("waiting", "queue", "grace"), [(30_000, 30, 75), (1, 1, 46), (1001, 2, 47)])
def test_a_pod_ends_after_what_waited_longest_has_been_worked_on(
    waiting: int, queue: int, grace: int
) -> None:
    files = files_of(network_of(), queue_time_ms=waiting)
    assert f"--exit-timeout-secs={queue + 30} " in files["start.sh"]
    (deployment, *_) = yaml.safe_load_all(files["kubernetes.yaml"])
    pod = deployment["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == grace
    assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]


def requirements_of(*networks: Network) -> set[str]:
    return set(files_of(*networks)["requirements.txt"].split("\n"))


def test_pip_installs_a_runtime_for_each_engine_in_python_and_none_for_triton() -> None:
    alone, with_rtx = requirements_of(network_of()), requirements_of(network_of(), rtx())
    assert {line for line in with_rtx - alone if not line.startswith("onnx")} == {
        "tensorrt-rtx==1.7.1.116",
        "pycuda>=2024.1",
    }
    assert any(line.startswith("onnxruntime") for line in with_rtx)
    assert not any(line.startswith("onnxruntime") or "extra" in line or ";" in line for line in alone)
    assert any(line.startswith("numpy") for line in alone)
    classic = network_of(backend="python")
    assert {"tensorrt==10.7.0.23", "tensorrt-rtx==1.7.1.116"} <= requirements_of(classic, rtx())
    for network, built in ((network_of(), False), (rtx(), True)):
        dockerfile = files_of(network)["Dockerfile"]
        for words in ("AS wheels", "COPY --from=wheels", "--only-binary pycuda"):
            assert (words in dockerfile) is built


def test_requirements_are_those_of_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", lambda _: None)
    assert files_of(network_of())["requirements.txt"] == ""
    monkeypatch.setattr(importlib.metadata, "requires", missing)
    with pytest.raises(HspanError, match="trt-hspan: is not installed, only on the path; pip install"):
        files_of(network_of())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("My Net_1", "my-net-1"),
        ("--", "hspan"),
        ("a" * 49 + "_b", "a" * 49),
        ("a" * 51, "a" * 50),
        ("\u00e9t\u00e9.", "t"),
    ],
)
def test_kubernetes_takes_the_names(name: str, expected: str) -> None:
    assert kubernetes_name(name) == expected
