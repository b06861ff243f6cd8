"""The library for GPUs as Python sees it, without a GPU, a compiler and an interpreter of its kernels."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.machine.gpu import GpuDriver
from trt_hspan.native import cuda_attention as module
from trt_hspan.native.cuda_attention import (
    CudaError,
    CudaLibrary,
    CudaProblem,
    DeviceAddresses,
    code_from_library,
    cuda_library,
    state_of_library,
)

INFO: dict[str, Any] = {
    "source_sha256": "5" * 64,
    "cubin_architectures": [75, 86],
    "ptx_architectures": [75],
    "cuda_version": "13.0.88",
    "ptx_isa_version": "9.0",
}
PROBLEM = CudaProblem(batch=1, score_channels=2, value_channels=3, positions=4, element_type="bfloat16")


class Function:
    """A function of the library; notes its arguments' values."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.calls = answer, list[tuple[Any, ...]]()

    def __call__(self, *words: Any) -> Any:
        self.calls.append(words)
        return self.answer(*words) if callable(self.answer) else self.answer


class Functions:
    def __init__(self, status: int = 0, info: dict[str, Any] | None = None) -> None:
        names = [b"automatic", b"plain", b"tiled-1"]
        self.hspanCudaInfo = Function(json.dumps(INFO if info is None else info).encode())
        self.hspanCudaStatusText = Function(lambda number: f"status {number}".encode())
        self.hspanCudaConfigurationCount = Function(len(names))
        self.hspanCudaConfigurationName = Function(lambda index: names[index])
        self.hspanCudaChannelPitch = Function(lambda kind, channels: 100 * kind + channels)
        self.hspanCudaWorkspaceBytes = Function(self._workspace)
        self.hspanCudaAttention = Function(status)
        self.status = status

    def _workspace(self, problem: Any, needed: Any) -> int:
        needed._obj.value = 1234
        return self.status


def loaded(monkeypatch: pytest.MonkeyPatch, functions: Functions, path: Path = Path("own.so")) -> CudaLibrary:
    monkeypatch.setattr(module, "open_library", lambda *_, **__: functions)
    return CudaLibrary(path)


def fields_of(structure: Any) -> dict[str, int]:
    return {name: getattr(structure, name) for name, *_ in structure._fields_}


def test_a_library_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    library = loaded(monkeypatch, Functions())
    assert (library.path, library.source_sha256) == (Path("own.so"), "5" * 64)
    assert (library.cubin_architectures, library.ptx_architectures) == ((75, 86), (75,))
    assert library.configurations == ("automatic", "plain", "tiled-1")
    assert library.channel_pitch("bfloat16", 9) == 209
    library.check_runs(89, (13, 0))
    with pytest.raises(
        HspanError, match=r"built without sm_70; rebuild with trt-hspan plugin build --cuda --arch"
    ):
        library.check_runs(70, (13, 0))
    with pytest.raises(HspanError, match=r"this driver runs CUDA up to 12\.8"):
        library.check_runs(86, (12, 8))


@pytest.mark.parametrize(
    "changes", [{"cuda_version": "?"}, {"ptx_isa_version": None}], ids=["no version", "none"]
)
def test_a_library_that_was_compiled_by_hand_is_taken_to_run(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    info = {name: value for name, value in (INFO | changes).items() if value is not None}
    library = loaded(monkeypatch, Functions(info=info))
    assert library.code is None
    library.check_runs(10, (1, 0))


@pytest.mark.parametrize("last", [False, True])
def test_a_call_has_its_sizes_type_layout_and_addresses(monkeypatch: pytest.MonkeyPatch, last: bool) -> None:
    functions = Functions()
    library = loaded(monkeypatch, functions)
    problem = CudaProblem(**{**vars(PROBLEM), "channels_last": last, "configuration": "tiled-1"})
    assert library.workspace_bytes(problem) == 1234
    names = ("query", "key", "value", "output", "workspace", "workspace_bytes")
    addresses = DeviceAddresses(**{name: 16 * (index + 1) for index, name in enumerate(names)})
    library.attend(problem, addresses, stream=77)
    own, tensors, stream = functions.hspanCudaAttention.calls[0]
    assert fields_of(own._obj) == {
        **{"batch": 1, "score_channels": 2, "value_channels": 3, "positions": 4},
        **{"type": 2, "layout": int(last), "configuration": 2},
    }
    assert fields_of(tensors._obj) == vars(addresses)
    assert stream.value == 77
    library.attend(PROBLEM, addresses)
    own, _, stream = functions.hspanCudaAttention.calls[1]
    assert (stream.value, own._obj.layout, own._obj.configuration) == (None, 0, 0)
    with pytest.raises(ValueError, match="'other' is none of"):
        library.workspace_bytes(CudaProblem(**{**vars(PROBLEM), "configuration": "other"}))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (1, ValueError),
        (999, ValueError),
        (1000, CudaError),
        (1001, CudaError),
        (1002, OutOfMemoryError),
        (1003, CudaError),
    ],
)
def test_a_status_is_an_error_of_its_kind(
    monkeypatch: pytest.MonkeyPatch, status: int, kind: type[Exception]
) -> None:
    library = loaded(monkeypatch, Functions(status))
    nothing = DeviceAddresses(query=0, key=0, value=0, output=0, workspace=0, workspace_bytes=0)
    for call in (lambda: library.workspace_bytes(PROBLEM), lambda: library.attend(PROBLEM, nothing)):
        with pytest.raises(kind, match=f"status {status}") as caught:
            call()
        assert type(caught.value) is kind
        if isinstance(caught.value, CudaError):
            assert caught.value.number == status - 1000


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (35, "install a newer NVIDIA driver"),
        (98, "trt-hspan plugin build --cuda"),
        (209, "trt-hspan plugin build --cuda"),
        (222, "trt-hspan plugin build --cuda"),
        *((number, "CUDA_LAUNCH_BLOCKING=1 shows") for number in (34, 36, 97, 99, 208, 210, 221, 223, 719)),
    ],
)
def test_an_error_of_cuda_has_a_way_out(number: int, step: str) -> None:
    error = CudaError(number, "why")
    assert str(error).startswith(f"attention on the GPU: why (CUDA error {number}); {step}")


@pytest.fixture
def fresh() -> Iterator[None]:
    """Each test looks for the library anew, and leaves no trace."""
    module._loaded.cache_clear()
    yield
    module._loaded.cache_clear()
    module._given_up.clear()


def test_a_library_that_does_not_fit_is_reported_once_for_each_kind_of_gpu(
    fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = loaded(monkeypatch, Functions())
    openings: list[object] = []
    monkeypatch.delenv(module.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(module, "checked_library", lambda *words: (openings.append(words), library)[1])
    monkeypatch.setattr(module, "gpu_driver", lambda: GpuDriver(state="ready", cuda_version=(13, 0)))
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        assert cuda_library(86) is library
        assert cuda_library(70) is None
    assert len(openings) == 2
    (message,) = caplog.messages
    assert message.startswith(
        "attention on the GPU runs in PyTorch's own operations, many times slower: own.so: built"
    )
    module.give_up(86, CudaError(222, "why"))
    assert cuda_library(86) is None
    assert cuda_library(89) is library


def test_no_library_is_reported_and_none(
    fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv(module.LIBRARY_VARIABLE, str(tmp_path / "none.so"))
    caplog.set_level(logging.WARNING)
    assert cuda_library(86) is None
    assert "none.so: there is no such library; compile it with trt-hspan plugin build --cuda" in caplog.text


def test_a_file_says_its_sources_and_its_code_without_being_loaded(tmp_path: Path) -> None:
    path = tmp_path / "own.so"
    path.write_bytes(b"\x7fELF hspan-cuda-info:" + json.dumps(INFO).encode() + b"\0rest")
    assert state_of_library(path) == ("5" * 64, (75, 86))
    code = code_from_library(path)
    assert code is not None
    assert (code.path, code.cubin_architectures, code.ptx_architectures) == (path, (75, 86), (75,))
    assert (code.cuda_version, code.ptx_isa_version) == ("13.0.88", "9.0")
    bare = {name: value for name, value in INFO.items() if name not in ("source_sha256", "cuda_version")}
    path.write_bytes(b"hspan-cuda-info:" + json.dumps(bare).encode() + b"\0")
    assert state_of_library(path) is code_from_library(path) is None
    path.write_bytes(b"nothing")
    assert state_of_library(path) is code_from_library(path) is None
    path.unlink()
    assert state_of_library(path) is code_from_library(path) is None
