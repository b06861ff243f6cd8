"""Choosing and loading TensorRT, its log, its plugin registry. TensorRT-RTX is the real one."""

from __future__ import annotations

import logging
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from trt_hspan.engine import tensorrt_api
from trt_hspan.errors import HspanError, OutOfMemoryError, UsageError
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


class Library:
    """A module of TensorRT with a registry, for `load_plugin_library` and `runtime_for`."""

    def __init__(self, *creators: str, handle: object = object()) -> None:
        self.__name__ = "tensorrt"
        self.loaded: list[str] = []
        self.registry = types.SimpleNamespace(
            all_creators=[types.SimpleNamespace(name=name) for name in creators],
            load_library=lambda path: (self.loaded.append(path), handle)[1],
        )
        self.get_plugin_registry = lambda: self.registry
        self.TempfileControlFlag = types.SimpleNamespace(ALLOW_IN_MEMORY_FILES=3)
        self.Runtime = lambda logger: types.SimpleNamespace(logger=logger)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library is loaded yet, and no log is kept."""
    monkeypatch.setattr(tensorrt_api, "_PLUGINS_LOADED", {})
    monkeypatch.setattr(tensorrt_api, "tensorrt_logger", lambda _: "logger")


def test_a_plugin_library_is_loaded_once_and_no_other_after_it(silent: None, tmp_path: Path) -> None:
    trt, path, other = Library(), tmp_path / "own.so", tmp_path / "other.so"
    path.write_bytes(b"\x7fELF own")
    other.write_bytes(b"\x7fELF other")
    for _ in range(2):
        tensorrt_api.load_plugin_library(trt, path)
    assert trt.loaded == [str(path.resolve())]
    with pytest.raises(
        HspanError, match=r"other\.so: this process has loaded .*own\.so already; start a new one"
    ):
        tensorrt_api.load_plugin_library(trt, other)


@pytest.mark.parametrize(
    ("creators", "content", "line"),
    [
        (
            ("HighSimilarityPassAttention",),
            b"\x7fELF",
            "this process has opened another library of the plugin already",
        ),
        (
            ("HighSimilarityPassAttention",),
            b"text",
            "TensorRT cannot load this plugin library: it registers no new",
        ),
        (("Other",), b"\x7fELF", "TensorRT cannot load this plugin library: it registers no new plugin"),
        ((), b"\x7fELF", "TensorRT cannot load this plugin library: it registers no new plugin"),
    ],
)
def test_a_plugin_library_that_tensorrt_does_not_take_is_one_line(
    silent: None, tmp_path: Path, creators: tuple[str, ...], content: bytes, line: str
) -> None:
    path = tmp_path / "own.so"
    path.write_bytes(content)
    for _ in range(2):  # it counts as none that was loaded
        with pytest.raises(HspanError, match=line):
            tensorrt_api.load_plugin_library(Library(*creators, handle=None), path)
    taken = Library("HighSimilarityPassAttention")
    tensorrt_api.load_plugin_library(taken, path)
    assert taken.loaded


@pytest.mark.parametrize("trait", [None, "refittable", "embedded-plugin", "version-compatible"])
def test_code_of_a_plan_runs_only_where_its_traits_need_it(
    silent: None, monkeypatch: pytest.MonkeyPatch, trait: Any
) -> None:
    needs = trait in ("embedded-plugin", "version-compatible")
    for folder, expected in (
        ("/folder", {"engine_host_code_allowed": True, "temporary_directory": "/folder"}),
        (None, {"engine_host_code_allowed": True, "tempfile_control_flags": 8}),
    ):
        monkeypatch.setattr(tensorrt_api, "_folder_for_code", lambda folder=folder: folder)
        runtime = tensorrt_api.runtime_for(Library(), {trait} - {None})
        assert vars(runtime) == {"logger": "logger", **(expected if needs else {})}


def test_code_is_written_where_programs_may_run_from(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in ((0, "/folder"), (os.ST_RDONLY, "/folder"), (os.ST_NOEXEC | os.ST_NOSUID, None)):
        monkeypatch.setattr(tensorrt_api.tempfile, "gettempdir", lambda: "/folder")
        monkeypatch.setattr(os, "statvfs", lambda _, flags=flags: types.SimpleNamespace(f_flag=flags))
        assert tensorrt_api._folder_for_code() == expected


def log_of(*errors: str) -> tensorrt_api.CollectedLog:
    log = tensorrt_api.CollectedLog()
    log.errors.extend(errors)
    return log


@pytest.mark.parametrize(
    ("errors", "raised", "line"),
    [
        ((), None, "net: fails: TensorRT gives no reason; again"),
        ((), "odd", "net: fails: odd; again"),
        (("first", "second"), "odd", "net: fails: first; again"),
        (("CUDA: Out Of Memory",), None, "net: fails: CUDA: Out Of Memory; smaller"),
        (("cudaOutOfMemory",), None, "net: fails: cudaOutOfMemory; smaller"),
        (("CUDA error 222",), None, r"net: fails: .* \(CUDA error 222\); "),
    ],
)
def test_a_refusal_has_tensorrts_reason(errors: tuple[str, ...], raised: str | None, line: str) -> None:
    error = tensorrt_api.refusal("net", "fails", log_of(*errors), "again", "smaller", raised=raised)
    assert re.match(line, str(error))
    assert isinstance(error, OutOfMemoryError) is ("smaller" in line)


def test_generations_that_were_checked_need_no_line(caplog: pytest.LogCaptureFixture) -> None:
    tensorrt_api._note_generation.cache_clear()
    with caplog.at_level(logging.WARNING):
        for flavor, version in (
            ("tensorrt", "10.3.0"),
            ("tensorrt", "11.0"),
            ("tensorrt-rtx", "1.7"),
            ("tensorrt", ""),
        ):
            tensorrt_api._note_generation(flavor, version)  # type: ignore[arg-type]
        assert caplog.messages == []
        for flavor, version in (
            ("tensorrt", "9.1"),
            ("tensorrt", "12.0"),
            ("tensorrt-rtx", "2.0"),
            ("tensorrt-rtx", "0.9"),
        ):
            tensorrt_api._note_generation(flavor, version)  # type: ignore[arg-type]
    assert len(caplog.messages) == 4
    assert "tensorrt-rtx 2.0 is of a generation that this trt-hspan does not know (1): take" in caplog.text


def test_a_flag_that_a_release_lacks_is_not_set() -> None:
    builder: Any = types.SimpleNamespace(create_network=lambda flags: flags)
    for flags, expected in (({}, 0), ({"STRONGLY_TYPED": 3}, 8), ({"STRONGLY_TYPED": 0}, 1)):
        trt: Any = types.SimpleNamespace(NetworkDefinitionCreationFlag=types.SimpleNamespace(**flags))
        assert tensorrt_api.strongly_typed_network(trt, builder) == expected


def test_targets_are_those_of_the_release() -> None:
    members = {"SM86": 1, "SM120": 2, "CURRENT": 3}
    trt: Any = types.SimpleNamespace(
        **{
            "__name__": "own",
            "__version__": "1",
            "ComputeCapability": types.SimpleNamespace(__members__=members),
        }
    )
    assert tensorrt_api.known_targets(trt) == {"sm_86": 1, "sm_120": 2}
    tensorrt_api.check_targets(trt, ("sm_86",))
    with pytest.raises(UsageError, match="--target: own 1 cannot build for sm_89; choose from sm_86, sm_120"):
        tensorrt_api.check_targets(trt, ("sm_86", "sm_89"))


def test_a_module_that_python_has_is_there_even_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not tensorrt_api._is_findable("no_such_module_of_tensorrt")
    assert tensorrt_api._is_findable("colorsys")
    monkeypatch.setitem(sys.modules, "no_such_module_of_tensorrt", types.ModuleType("x"))
    assert tensorrt_api._is_findable("no_such_module_of_tensorrt")
    monkeypatch.setitem(sys.modules, "colorsys", None)  # type: ignore[arg-type]
    assert not tensorrt_api._is_findable("colorsys")


def test_messages_about_scales_are_for_debugging(trt: Any, caplog: pytest.LogCaptureFixture) -> None:
    text = "Converting conv weight scales to fp32"
    with caplog.at_level(1, logger="trt_hspan.tensorrt"), tensorrt_api.collected_log(trt) as log:
        tensorrt_api.tensorrt_logger(trt).log(trt.ILogger.Severity.WARNING, text)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(logging.DEBUG, text)]
    assert (log.errors, log.figures) == ([], [text])


@pytest.mark.parametrize("kind", [ImportError, OSError, RuntimeError])
def test_whatever_keeps_a_package_from_loading_is_one_line(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def import_module(_: str) -> None:
        raise kind("libnvinfer.so is missing")

    machine(monkeypatch, installed={"tensorrt"}, gpus=NO_GPU)
    monkeypatch.setattr(tensorrt_api.importlib, "import_module", import_module)
    with pytest.raises(HspanError, match=r"tensorrt: is installed but does not load: libnvinfer\.so is"):
        tensorrt_api.load_tensorrt("tensorrt")
