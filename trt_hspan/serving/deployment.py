"""The files around a model repository: start script, image, Kubernetes, dashboards. Owns their text, not the models."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any, Final

from trt_hspan.native.plugin import LIBRARY_NAME
from trt_hspan.serving.containers import DEFAULT_IMAGE, image_for_tensorrt, image_name
from trt_hspan.serving.limits import ServingLimits
from trt_hspan.serving.networks import Network
from trt_hspan.serving.own_wheel import wheel_name
from trt_hspan.version import __version__

_TEMPLATES: Final = (
    "start.sh",
    "Dockerfile",
    "docker-compose.yaml",
    "prometheus.yaml",
    "grafana-provisioning.yaml",
    "grafana-datasource.yaml",
    "kubernetes.yaml",
    "kserve.yaml",
)
# After the signal to stop: until no more requests arrive; for the work on those that have waited longest; and for the
# end of its processes.
_DRAIN_SECONDS, _WORK_SECONDS, _SPARE_SECONDS = 5, 30, 10
_COMPOSE_GPU: Final = """\
    deploy:
      resources:
        reservations:
          devices: [{driver: nvidia, count: 1, capabilities: [gpu]}]
"""


def deployment_image(networks: Sequence[Network], image: str | None) -> str:
    """The Triton image for a repository: the one named, else the one with the engines' TensorRT."""
    from trt_hspan.errors import HspanError

    if image is not None:
        return image
    versions = {
        network.tensorrt_version
        for network in networks
        if network.tensorrt_version and any(raw.backend == "tensorrt" for raw in network.raw_models)
    }
    if len(versions) > 1:
        raise HspanError(
            "serve export",
            f"the engines are of TensorRT {' and '.join(sorted(versions))}, and an image contains one",
            "build them with one version, or export a repository for each",
        )
    return image_for_tensorrt(versions.pop()) if versions else image_name(DEFAULT_IMAGE)


def deployment_files(networks: Sequence[Network], *, image: str, limits: ServingLimits) -> dict[str, str]:
    """File name -> text of everything that stands beside the models."""
    queue_seconds = math.ceil(limits.queue_time_ms / 1000)
    exit_seconds = queue_seconds + _WORK_SECONDS
    on_gpu = any(network.flavor is not None for network in networks)
    python = any(raw.backend == "python" for network in networks for raw in network.raw_models)
    rtx = next((n.tensorrt_version for n in networks if n.flavor == "tensorrt-rtx"), None)
    extra = "[cpu]" if python else ""
    requirements = f"'/tmp/{wheel_name()}{extra}'"
    if rtx is not None:
        requirements += f" 'tensorrt-rtx=={rtx}' 'polygraphy>=0.49' 'pycuda>=2024.1'"
    classic = [n.tensorrt_version for n in networks if n.flavor == "tensorrt" and n.tensorrt_version]
    major = classic[0].split(".")[0] if classic else "10"
    values = {
        "slug": kubernetes_name(networks[0].name),
        "tag": __version__,
        "image": image,
        "why": _why(networks),
        "wheel": wheel_name(),
        "requirements": requirements,
        "plugin": LIBRARY_NAME,
        "nvinfer": f"libnvinfer.so.{major}",
        "compose_gpu": _COMPOSE_GPU.rstrip("\n") if on_gpu else "    # no GPU: every model runs on a CPU",
        "queue_seconds": str(queue_seconds),
        "exit_seconds": str(exit_seconds),
        "drain_seconds": str(_DRAIN_SECONDS),
        "grace_seconds": str(_DRAIN_SECONDS + exit_seconds + _SPARE_SECONDS),
        "kubernetes_gpu": ", nvidia.com/gpu: 1" if on_gpu else "",
    }
    folder = resources.files("trt_hspan.serving") / "templates"
    files = {
        name: Template((folder / name).read_text(encoding="utf-8")).substitute(values) for name in _TEMPLATES
    }
    files["grafana-dashboard.json"] = json.dumps(dashboard(values["slug"]), indent=2) + "\n"
    files[".dockerignore"] = "Dockerfile\ndocker-compose.yaml\n*.yaml\n"
    return files


def kubernetes_name(name: str) -> str:
    """A name that Kubernetes takes (RFC 1123 label): lower case, digits and dashes, at most 50 of them."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-") or "hspan"


def dashboard(slug: str) -> dict[str, Any]:
    """A Grafana dashboard of Triton's own metrics: load, latency and its parts, queue, batches, refusals, memory."""

    def rate(metric: str) -> str:
        return f"rate(nv_inference_{metric}[1m])"

    def mean_ms(metric: str) -> str:
        return f"sum by (model) ({rate(metric)}) / 1000 / sum by (model) ({rate('request_success')})"

    panels = [
        ("Requests a second", "reqps", {"{{model}}": f"sum by (model) ({rate('request_success')})"}),
        (
            "Refused and failed a second",
            "reqps",
            {"{{model}} {{reason}}": f"sum by (model, reason) ({rate('request_failure')})"},
        ),
        ("Mean latency", "ms", {"{{model}}": mean_ms("request_duration_us")}),
        (
            "Where the time goes",
            "ms",
            {
                "{{model}} queue": mean_ms("queue_duration_us"),
                "{{model}} input": mean_ms("compute_input_duration_us"),
                "{{model}} network": mean_ms("compute_infer_duration_us"),
                "{{model}} output": mean_ms("compute_output_duration_us"),
            },
        ),
        ("Requests waiting", "short", {"{{model}}": "sum by (model) (nv_inference_pending_request_count)"}),
        (
            "Mean batch",
            "short",
            {"{{model}}": f"sum by (model) ({rate('count')}) / sum by (model) ({rate('exec_count')})"},
        ),
        ("GPU utilization", "percentunit", {"GPU {{gpu_uuid}}": "nv_gpu_utilization"}),
        (
            "Memory",
            "bytes",
            {"GPU {{gpu_uuid}}": "nv_gpu_memory_used_bytes", "host": "nv_cpu_memory_used_bytes"},
        ),
    ]
    return {
        "uid": slug,
        "title": f"{slug}: Triton",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "tags": ["triton", "trt-hspan"],
        "panels": [
            {
                "id": index + 1,
                "type": "timeseries",
                "title": title,
                "datasource": {"type": "prometheus", "uid": "prometheus"},
                "gridPos": {"x": 12 * (index % 2), "y": 8 * (index // 2), "w": 12, "h": 8},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": [
                    {"refId": chr(ord("A") + number), "expr": expression, "legendFormat": legend}
                    for number, (legend, expression) in enumerate(queries.items())
                ],
            }
            for index, (title, unit, queries) in enumerate(panels)
        ],
    }


def _why(networks: Sequence[Network]) -> str:
    versions = {n.tensorrt_version for n in networks if n.flavor == "tensorrt"}
    if versions:
        return f"The engines need TensorRT {' '.join(sorted(v for v in versions if v))}."
    return "No model here uses the image's own TensorRT."
