"""Asking the driver for GPUs: a double of libcuda with the calls that are used."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from trt_hspan.errors import HspanError
from trt_hspan.machine import gpu


class Driver:
    """Two GPUs, of compute capability 8.6 and 12.0."""

    init_result = attribute_result = version_result = 0
    version = 13000
    capabilities = ((8, 6), (12, 0))

    def cuInit(self, flags: int) -> int:  # noqa: N802
        assert flags == 0  # as the driver requires
        return self.init_result

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.capabilities)
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self.version
        return self.version_result

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = self.capabilities[device.value][{75: 0, 76: 1}[attribute]]
        return self.attribute_result


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    double = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: double)
    return double


def test_the_architectures_of_all_gpus_are_reported_in_order(driver: Driver) -> None:
    assert gpu.gpu_architectures() == ("sm_86", "sm_120")
    answer = gpu.gpu_driver()
    assert (answer.state, answer.cuda_version, answer.error) == ("ready", (13, 0), None)


@pytest.mark.parametrize(
    ("changes", "version"), [({"version": 12990}, (12, 99)), ({"version_result": 1}, None)]
)
def test_the_version_is_read_in_thousands_and_tens_where_the_driver_gives_one(
    driver: Driver, changes: dict[str, int], version: tuple[int, int] | None
) -> None:
    vars(driver).update(changes)
    assert gpu.gpu_driver().cuda_version == version


def test_no_driver_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu.gpu_architectures() == ()
    answer = gpu.gpu_driver()
    assert (answer.state, answer.cuda_version) == ("no driver", None)
    assert str(answer.error).startswith("GPU: no NVIDIA GPU with a driver here; install the driver")
    gpu.require_answers()  # a machine without a GPU


@pytest.mark.parametrize("changes", [{"init_result": 100}, {"capabilities": ()}])
def test_a_driver_without_a_gpu_is_another_thing(driver: Driver, changes: dict[str, Any]) -> None:
    vars(driver).update(changes)
    answer = gpu.gpu_driver()
    assert (answer.state, answer.cuda_version, answer.architectures) == ("no GPU", (13, 0), ())
    assert str(answer.error).startswith("GPU: the driver finds no GPU; see whether nvidia-smi lists one")
    gpu.require_answers()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"init_result": 803},
            "kernel module are of different versions (CUDA error 803, system has unsupported",
        ),
        ({"init_result": 999}, "fails for an unknown reason (CUDA error 999, unknown error); restart"),
        ({"init_result": 4}, "a query failed (CUDA error 4); see what nvidia-smi says"),
        ({"attribute_result": 1}, "a query failed (CUDA error 1); see what nvidia-smi says"),
    ],
)
def test_a_query_that_fails_is_not_taken_for_no_gpu(
    driver: Driver, changes: dict[str, Any], line: str
) -> None:
    vars(driver).update(changes)
    answer = gpu.gpu_driver()
    assert (answer.state, answer.cuda_version, answer.architectures) == ("failed", (13, 0), ())
    assert line in str(answer.error)
    with pytest.raises(HspanError, match="cannot be used"):
        gpu.require_answers()


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        (
            "CUDA initialization failure with error: 35. Please check your CUDA installation",
            "older than the CUDA",
        ),
        (
            "cuInit failed: CUDA driver version is insufficient for CUDA runtime version",
            "older than the CUDA",
        ),
        ("Cuda Runtime (the provided PTX was compiled with an unsupported toolchain.)", "PTX is newer"),
        ("no kernel image is available for execution on the device", "no code for this GPU"),
        ("some unknown error of a layer", None),
        ("Error Code 1: Cuda Runtime (invalid argument)", None),
    ],
)
def test_errors_of_cuda_are_recognized_in_messages(message: str, meaning: str | None) -> None:
    advice = gpu.advice_for_cuda_message(message)
    assert (advice is None) if meaning is None else (advice is not None and meaning in advice[0])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            35,
            "older than the CUDA that this was compiled with (CUDA error 35, CUDA driver version is insufficient",
        ),
        (
            222,
            "PTX is newer than the driver's compiler, and it contains no machine code for this GPU (CUDA error 222",
        ),
    ],
)
def test_an_old_driver_and_new_ptx_have_texts_of_their_own(code: int, words: str) -> None:
    error = gpu.cuda_error("libhspan.so", code)
    assert words in str(error)
    assert error.next_step
