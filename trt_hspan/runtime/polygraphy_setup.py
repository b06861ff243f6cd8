"""Polygraphy, told to behave as a library: which TensorRT to use, and no printing of its own."""

from __future__ import annotations

import logging
from typing import Any

from trt_hspan.errors import HspanError


def quiet_polygraphy(*, tensorrt_rtx: bool | None = None) -> Any:
    """Prepares Polygraphy and returns its logger.

    Polygraphy prints to stdout unless told otherwise, which would spoil `--json`. Here it reports to
    `logging` under its own name, and only where debug messages are wanted.

    Args:
        tensorrt_rtx: which TensorRT its TensorRT backend is to import; None when that is not used. Polygraphy
            chooses once, when that backend is imported first.

    Raises:
        HspanError: it is not installed, or its choice was made otherwise before.
    """
    try:
        from polygraphy import config
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise HspanError("polygraphy", "is not installed", "pip install 'trt-hspan[export]'") from error
    G_LOGGER.use_python_logging_system = True
    G_LOGGER.colors = False
    G_LOGGER.letter = False
    debugging = logging.getLogger("Polygraphy").isEnabledFor(logging.DEBUG)
    G_LOGGER.module_severity = G_LOGGER.INFO if debugging else G_LOGGER.CRITICAL + 1
    if tensorrt_rtx is not None and tensorrt_rtx != config.USE_TENSORRT_RTX:
        import sys

        if "polygraphy.backend.trt.runner" in sys.modules:
            raise HspanError(
                "polygraphy",
                "already uses the other TensorRT in this process",
                "start a new one for this engine",
            )
        config.USE_TENSORRT_RTX = tensorrt_rtx
    return G_LOGGER
