"""ONNX Runtime's package: the one place that imports it first, because its telemetry is decided then."""

from __future__ import annotations

import os
from typing import Any

from trt_hspan.errors import HspanError
from trt_hspan.machine.install_advice import install_command


def imported_onnxruntime() -> Any:
    """The package, imported when it is needed, its telemetry off. Raises: HspanError when it is not installed.

    Official builds send trace events home unless this variable is set before the library is loaded; where a program has
    loaded it already, the function stops what is not essential. `ORT_DISABLE_TELEMETRY=0` is a user's own choice.
    """
    is_off = os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1") != "0"
    try:
        import onnxruntime
    except ImportError as error:
        raise HspanError("ONNX Runtime", "is not installed", install_command("cpu")) from error
    if is_off:
        onnxruntime.disable_telemetry_events()
    return onnxruntime
