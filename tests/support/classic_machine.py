"""A machine with TensorRT 10.3, the double of it, and one GPU."""

from __future__ import annotations

import sys

import pytest

from support.tensorrt_double import Release, releases
from trt_hspan.engine import build, builder, passport, refit, tensorrt_api
from trt_hspan.machine.gpu import GpuDriver

DRIVER = GpuDriver(state="ready", cuda_version=(13, 0), architectures=("sm_86",))


def machine_with_tensorrt(monkeypatch: pytest.MonkeyPatch) -> Release:
    """Stands in for this machine where engines are built and refitted; the release that it has."""
    release = next(iter(releases()))
    monkeypatch.setitem(sys.modules, "tensorrt", release.module)
    monkeypatch.setattr(tensorrt_api, "_PLUGINS_LOADED", {})
    for module in (build, builder, tensorrt_api):
        monkeypatch.setattr(module, "gpu_architectures", lambda: ("sm_86",))
    here = passport.Machine(
        architecture="sm_86",
        driver=DRIVER,
        flavors=("tensorrt",),
        version_of=lambda _: release.module.__version__,
    )
    monkeypatch.setattr(refit, "this_machine", lambda: here)
    return release
