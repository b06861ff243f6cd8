"""Choosing and loading TensorRT, its log, its plugin registry. TensorRT-RTX is the real one."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from trt_hspan.engine import tensorrt_api
from trt_hspan.errors import HspanError
from trt_hspan.native.progress import PhaseTracker

OLD_GPU, NO_GPU = ("sm_75",), ()


def machine(monkeypatch: pytest.MonkeyPatch, *, installed: set[str], gpus: tuple[str, ...]) -> None:
    """Makes this look like a machine with these packages and GPUs; `tensorrt` is an empty module."""
    monkeypatch.setattr(tensorrt_api, "gpu_architectures", lambda: gpus)
    monkeypatch.setattr(tensorrt_api, "_is_findable", lambda module: module in installed)
    if "tensorrt" in installed:
        monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))


@pytest.mark.parametrize(
    ("installed", "gpus", "expected"),
    [
        ({"tensorrt", "tensorrt_rtx"}, OLD_GPU, "tensorrt"),
        ({"tensorrt", "tensorrt_rtx"}, NO_GPU, "tensorrt-rtx"),
        ({"tensorrt_rtx"}, OLD_GPU, "tensorrt-rtx"),
        ({"tensorrt_rtx"}, NO_GPU, "tensorrt-rtx"),
        ({"tensorrt"}, NO_GPU, "tensorrt"),
        ({"tensorrt"}, OLD_GPU, "tensorrt"),
    ],
)
def test_the_default_is_what_is_installed_a_gpus_first(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], gpus: tuple[str, ...], expected: str
) -> None:
    machine(monkeypatch, installed=installed, gpus=gpus)
    assert tensorrt_api.select_flavor() == expected


def test_a_package_without_its_libraries_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, installed={"tensorrt", "tensorrt_rtx"}, gpus=OLD_GPU)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # makes importing it an ImportError
    assert tensorrt_api.select_flavor() == "tensorrt-rtx"


def test_a_requested_flavor_that_is_not_installed_is_reported_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch, installed={"tensorrt_rtx"}, gpus=NO_GPU)
    with pytest.raises(HspanError, match=r"tensorrt: is not installed; pip install -e '\.\[gpu\]'"):
        tensorrt_api.select_flavor("tensorrt")
    with pytest.raises(HspanError, match="is not installed"):
        tensorrt_api.load_tensorrt("tensorrt")


def test_no_tensorrt_at_all_is_reported_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, installed=set(), gpus=NO_GPU)
    with pytest.raises(HspanError, match=r"neither .* pip install -e '\.\[rtx\]'"):
        tensorrt_api.select_flavor()


def test_a_broken_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, installed={"tensorrt"}, gpus=NO_GPU)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        HspanError, match=r"tensorrt: is installed but does not load: .*; install the package again"
    ):
        tensorrt_api.load_tensorrt("tensorrt")


@pytest.fixture(scope="module")
def trt() -> Any:
    return tensorrt_api.load_tensorrt("tensorrt-rtx")


def test_the_known_targets_are_this_releases(trt: Any) -> None:
    known = tensorrt_api.known_targets(trt)
    assert {"sm_75", "sm_86", "sm_120"} <= known.keys()
    assert all(target.removeprefix("sm_").isdigit() for target in known)
    assert known["sm_86"] == trt.ComputeCapability.SM86


def test_a_tensorrt_without_targets_knows_none() -> None:
    assert tensorrt_api.known_targets(types.ModuleType("tensorrt")) == {}


def test_messages_reach_the_logger_and_errors_are_collected(
    trt: Any, caplog: pytest.LogCaptureFixture
) -> None:
    severity = trt.ILogger.Severity
    logger = tensorrt_api.tensorrt_logger(trt)
    with caplog.at_level(1, logger="trt_hspan.tensorrt"), tensorrt_api.collected_log(trt) as log:
        for level, text in [
            (severity.ERROR, "bad"),
            (severity.INTERNAL_ERROR, "worse"),
            (severity.WARNING, "odd"),
            (severity.INFO, "Total Activation Memory: 5 bytes"),
            (severity.VERBOSE, "detail"),
        ]:
            logger.log(level, text)
    assert log.errors == ["bad", "worse"]
    assert log.first_error == "bad"
    assert log.figures == ["Total Activation Memory: 5 bytes"]
    levels = {record.getMessage(): record.levelno for record in caplog.records}
    assert levels == {
        "bad": logging.INFO,
        "worse": logging.INFO,
        "odd": logging.WARNING,
        "Total Activation Memory: 5 bytes": logging.INFO,
        "detail": 5,
    }


def test_nothing_is_collected_outside_the_block(trt: Any) -> None:
    with tensorrt_api.collected_log(trt) as log:
        pass
    tensorrt_api.tensorrt_logger(trt).log(trt.ILogger.Severity.ERROR, "later")
    assert log.errors == []


def test_a_handler_that_raises_does_not_reach_tensorrt(trt: Any) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError

    handler = Broken()
    tensorrt_log = logging.getLogger("trt_hspan.tensorrt")
    tensorrt_log.addHandler(handler)
    try:
        tensorrt_api.tensorrt_logger(trt).log(trt.ILogger.Severity.WARNING, "text")
    finally:
        tensorrt_log.removeHandler(handler)


def test_the_monitor_reports_and_passes_the_cancellation_on(trt: Any) -> None:
    tracker = PhaseTracker()
    monitor = tensorrt_api.progress_monitor(trt, tracker)
    monitor.phase_start("build", None, 2)
    assert monitor.step_complete("build", 0)
    assert tracker.progress.fraction == 0.5
    tracker.cancel()
    assert not monitor.step_complete("build", 1)
    monitor.phase_finish("build")
    assert tracker.progress.fraction == 1.0


def test_the_network_is_strongly_typed(trt: Any) -> None:
    builder = trt.Builder(tensorrt_api.tensorrt_logger(trt))
    network = tensorrt_api.strongly_typed_network(trt, builder)
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_a_file_that_is_no_library_is_refused(
    trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_api, "_PLUGINS_LOADED", {})  # whatever other tests have loaded
    library = tmp_path / "libplugin.so"
    library.write_bytes(b"not a library")
    with pytest.raises(
        HspanError, match=r"libplugin\.so: TensorRT cannot load this plugin library: .*; build it"
    ):
        tensorrt_api.load_plugin_library(trt, library)
