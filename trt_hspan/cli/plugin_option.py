"""The option --plugin of commands that run engines: checked before anything is opened."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trt_hspan.errors import UsageError


def require_plugin_for(plugin: Path | None, sources: Iterable[object]) -> None:
    """Checks a library that was named, also where the engine will only be emulated and needs none.

    Raises:
        UsageError: none of the sources is an engine.
        HspanError: the file is missing or no plugin library of this package's ABI.
    """
    if plugin is None:
        return
    if not any(Path(str(source)).suffix.lower() == ".plan" for source in sources):
        raise UsageError("--plugin", "is for engines, and there is none", "leave it out")
    from trt_hspan.engine.plugin_library import plugin_info_from_library

    plugin_info_from_library(plugin)
