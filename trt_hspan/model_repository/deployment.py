"""The files around a model repository: start script, image, Kubernetes, dashboards. Owns their text, not the models."""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Final

from trt_hspan.errors import HspanError
from trt_hspan.machine.install_advice import install_command
from trt_hspan.model_repository.networks import Network
from trt_hspan.native.plugin import LIBRARY_NAME
from trt_hspan.serving.limits import ServingLimits
from trt_hspan.version import __version__

#: NVIDIA's Triton image; `docs/serving.md` builds the engine inside it, which makes their TensorRT the same. Newer than
#: 25.07, which mended Triton's fault with chunked bodies.
DEFAULT_IMAGE: Final = "nvcr.io/nvidia/tritonserver:25.12-py3"
#: The TensorRT that the engines need of the image, which start.sh compares with the image's.
VERSION_FILE: Final = "TENSORRT_VERSION"
_TEMPLATES: Final = (
    "start.sh",
    "Dockerfile",
    "docker-compose.yaml",
    "prometheus.yaml",
    "grafana-provisioning.yaml",
    "grafana-datasource.yaml",
    "grafana-dashboard.json",
    "kubernetes.yaml",
    "kserve.yaml",
)
# After the signal to stop: until no more requests arrive; for the work on those that have waited longest; and for the
# end of its processes.
_DRAIN_SECONDS, _WORK_SECONDS, _SPARE_SECONDS = 5, 30, 10

# PyCUDA comes as sources, and Triton's image has no CUDA toolkit: an image that has one, of the same Ubuntu, builds its
# wheel. The toolkit's version is free, since PyCUDA without CURAND calls the driver alone.
_PYCUDA_STAGE: Final = """\
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04 AS wheels
RUN apt-get update && apt-get install --yes --no-install-recommends g++ python3-dev python3-pip
RUN echo "CUDA_ENABLE_CURAND = False" > /etc/aksetup-defaults.py
RUN pip wheel --no-deps --wheel-dir /wheels 'pycuda>=2024.1'
"""
_PYCUDA_WHEELS: Final = "COPY --from=wheels /wheels /tmp/wheels\n"


def deployment_files(networks: Sequence[Network], *, image: str, limits: ServingLimits) -> dict[str, str]:
    """File name -> text of everything that stands beside the models.

    Raises:
        HspanError: as `version_in_image`; or this package is not installed.
    """
    queue_seconds = math.ceil(limits.queue_time_ms / 1000)
    exit_seconds = queue_seconds + _WORK_SECONDS
    families = [network.family for network in networks]
    version = version_in_image(networks)
    requirements = _requirements(networks)
    travels = any(family.version_compatible for family in families)
    later = travels and all(f.version_compatible for f in families if f.tensorrt_version == version)
    values = {
        "slug": kubernetes_name(networks[0].name),
        "tag": __version__,
        "image": image,
        "why": f"The engines need TensorRT {version}." if version else "No model needs the image's TensorRT.",
        "stage": _PYCUDA_STAGE if "pycuda" in requirements else "",
        "wheels": _PYCUDA_WHEELS if "pycuda" in requirements else "",
        "only": " --only-binary pycuda --find-links /tmp/wheels" if "pycuda" in requirements else "",
        "plugin": LIBRARY_NAME,
        "version_file": VERSION_FILE,
        "or_later": str(later),
        "backend_options": "  --backend-config=tensorrt,version-compatible=true \\\n" if travels else "",
        "nvinfer": f"libnvinfer.so.{(version or '10').split('.')[0]}",
        "queue_seconds": str(queue_seconds),
        "exit_seconds": str(exit_seconds),
        "drain_seconds": str(_DRAIN_SECONDS),
        "grace_seconds": str(_DRAIN_SECONDS + exit_seconds + _SPARE_SECONDS),
    }
    folder = resources.files("trt_hspan.model_repository") / "templates"
    files = {
        name: Template((folder / name).read_text(encoding="utf-8")).substitute(values) for name in _TEMPLATES
    }
    if version:
        files[VERSION_FILE] = f"{version}\n"
    files["requirements.txt"] = "".join(f"{line}\n" for line in requirements.values())
    files[".dockerignore"] = "Dockerfile\ndocker-compose.yaml\n*.yaml\n"
    return files


def version_in_image(networks: Sequence[Network]) -> str | None:
    """The TensorRT that the image must contain; None when Triton's TensorRT backend runs nothing here.

    Raises:
        HspanError: several versions, of which an image contains one.
    """
    versions = sorted(
        {
            network.family.tensorrt_version
            for network in networks
            if any(raw.backend == "tensorrt" for raw in network.raw_models)
        }
    )
    if len(versions) > 1:
        what = f"the engines are of TensorRT {' and '.join(versions)}, and an image contains one"
        next_step = "build them with one version, or export a repository for each"
        raise HspanError("serve export", what, next_step)
    return versions[0] if versions else None


def _requirements(networks: Sequence[Network]) -> dict[str, str]:
    """The packages that the Python models import, as pip's requirements by name."""
    try:
        lines = importlib.metadata.requires("trt-hspan") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise HspanError("trt-hspan", "is not installed, only on the path", install_command()) from error
    python = [n.family for n in networks if any(raw.backend == "python" for raw in n.raw_models)]
    extra = re.compile(r"\s*;\s*extra == ['\"]cpu['\"]")
    requirements = [line for line in lines if "extra ==" not in line]
    if python:
        requirements += [extra.sub("", line) for line in lines if extra.search(line)]
    for flavor, version in sorted({(family.flavor, family.tensorrt_version) for family in python}):
        requirements += [f"{flavor}=={version}", "pycuda>=2024.1"]
    return {re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]: line for line in requirements}


def kubernetes_name(name: str) -> str:
    """A name that Kubernetes takes (RFC 1123 label): lower case, digits and dashes, at most 50 of them."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-") or "hspan"
