"""ONNX Runtime's package is loaded with its telemetry off."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


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
