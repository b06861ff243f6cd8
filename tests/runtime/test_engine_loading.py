"""What TensorRT-RTX says of a plan before it is opened; what needs a driver is in `test_tensorrt_on_standin`."""

from __future__ import annotations

import enum
from types import SimpleNamespace

import pytest

from trt_hspan.errors import HspanError
from trt_hspan.runtime.engine_loading import engine_validity


class EngineValidity(enum.Enum):
    VALID, SUBOPTIMAL, INVALID = range(3)


class Diagnostics(enum.IntFlag):
    VERSION_MISMATCH, UNSUPPORTED_CC, NEW_ONE = 1, 2, 128


TRT = SimpleNamespace(EngineValidity=EngineValidity, EngineInvalidityDiagnostics=Diagnostics)


def check(validity: EngineValidity, diagnosis: int) -> None:
    runtime = SimpleNamespace(get_engine_validity=lambda data: (validity, diagnosis))
    engine_validity(TRT, runtime, b"", "net.plan")


def test_a_plan_that_is_valid_and_one_of_another_tensorrt_pass(caplog: pytest.LogCaptureFixture) -> None:
    engine_validity(TRT, SimpleNamespace(), b"", "net.plan")
    check(EngineValidity.VALID, 3)
    check(EngineValidity.INVALID, 0)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("diagnosis", "line"),
    [
        (
            1,
            "net.plan: was built by another TensorRT-RTX release; build the engine again with trt-hspan build",
        ),
        (
            3,
            "net.plan: was built by another TensorRT-RTX release; build the engine again with trt-hspan build",
        ),
        (
            2,
            "net.plan: contains no code for this GPU; build the engine again with trt-hspan build and --target",
        ),
        (128, "net.plan: is invalid: NEW_ONE; build the engine again with trt-hspan build"),
    ],
)
def test_an_invalid_plan_is_one_line(diagnosis: int, line: str) -> None:
    with pytest.raises(HspanError) as refused:
        check(EngineValidity.INVALID, diagnosis)
    assert str(refused.value) == line


@pytest.mark.parametrize(("diagnosis", "reasons"), [(130, "UNSUPPORTED_CC, NEW_ONE"), (0, "no reason")])
def test_a_slow_plan_is_a_warning(caplog: pytest.LogCaptureFixture, diagnosis: int, reasons: str) -> None:
    check(EngineValidity.SUBOPTIMAL, diagnosis)
    assert caplog.messages == [f"net.plan: runs here, but slower than it could: {reasons}"]
