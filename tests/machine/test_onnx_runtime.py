"""ONNX Runtime's package is loaded with its telemetry off."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from trt_hspan.errors import HspanError
from trt_hspan.machine.onnx_runtime import imported_onnxruntime


@pytest.mark.parametrize(("chosen", "expected"), [(None, "1"), ("0", "0")])
def test_telemetry_of_onnxruntime_is_off_unless_asked_for(chosen: str | None, expected: str) -> None:
    """The library reads the variable as it is loaded, so it is set before that; whether it would start its thread
    depends on the machine."""
    script = (
        "import builtins, os, sys; plain = builtins.__import__\n"
        "def watched(name, *rest):\n"
        "    if name == 'onnxruntime' and name not in sys.modules: print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "    return plain(name, *rest)\n"
        "builtins.__import__ = watched\n"
        "from trt_hspan.machine.onnx_runtime import imported_onnxruntime; imported_onnxruntime()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {} if chosen is None else {"ORT_DISABLE_TELEMETRY": chosen}
    printed = subprocess.check_output([sys.executable, "-c", script], env=environment, text=True)
    assert printed.split() == [expected]


@pytest.mark.parametrize(("chosen", "calls"), [(None, 1), ("1", 1), ("0", 0)])
def test_what_a_program_loaded_before_is_stopped_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, calls: int
) -> None:
    stopped: list[None] = []
    package = SimpleNamespace(disable_telemetry_events=lambda: stopped.append(None))
    monkeypatch.setitem(sys.modules, "onnxruntime", package)  # type: ignore[arg-type]
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    if chosen is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", chosen)
    assert imported_onnxruntime() is package
    assert len(stopped) == calls


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(HspanError, match=r"ONNX Runtime: is not installed; pip install .*\[cpu\]"):
        imported_onnxruntime()
