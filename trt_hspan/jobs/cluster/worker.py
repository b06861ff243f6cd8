"""What runs on a worker: one runner for its whole life, one picture after the other."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_hspan.errors import HspanError
from trt_hspan.jobs.cluster.storage import is_uri, read_bytes, suffix_of, write_bytes
from trt_hspan.jobs.folders import unexpected_error_line

if TYPE_CHECKING:
    from trt_hspan.jobs.cluster.bundle import NetworkBundle
    from trt_hspan.upscaling.options import UpscaleOptions
    from trt_hspan.upscaling.pictures import WriteOptions

Row = dict[str, Any]


class UpscaleWorker:
    """Ray Data creates one in each worker process and calls it with rows {index, source, target}.

    A picture is tried `attempts` times; the first pause between two is `pause_s`, each further one twice as long.
    """

    def __init__(
        self,
        bundle: NetworkBundle,
        options: UpscaleOptions,
        writing: WriteOptions,
        attempts: int,
        pause_s: float = 1.0,
    ) -> None:
        from trt_hspan.upscaling.upscaler import Upscaler

        self._writing, self._attempts, self._pause_s = writing, attempts, pause_s
        self._open = contextlib.ExitStack()
        place = self._open.enter_context(bundle.on_disk())
        plugin = Path(place).parent / bundle.plugin if bundle.plugin else None
        runner = replace(bundle.options, plugin=plugin).open(place)
        self._upscaler = Upscaler(self._open.enter_context(runner), options)

    def __call__(self, row: Row) -> Row:
        """One picture; returns {index, error, seconds, pid, attempts}, error being one line or empty."""
        started, error, attempt = time.perf_counter(), "", 0
        for attempt in range(1, self._attempts + 1):
            try:
                self._upscale(row["source"], row["target"])
                error = ""
                break
            except HspanError as failure:
                error = str(failure)
            except Exception as failure:  # noqa: BLE001  # one odd file must not stop the other million
                error = unexpected_error_line(row["source"], failure)
            if attempt < self._attempts:
                time.sleep(self._pause_s * 2 ** (attempt - 1))
        return {
            "index": row["index"],
            "error": error,
            "seconds": time.perf_counter() - started,
            "pid": os.getpid(),
            "attempts": attempt,
        }

    def _upscale(self, source: str, target: str) -> None:
        from trt_hspan.media.pictures import open_picture, whole_picture
        from trt_hspan.media.writing import encode_image
        from trt_hspan.upscaling.pictures import upscale_picture, upscale_picture_file

        if not is_uri(source) and not is_uri(target):
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            upscale_picture_file(self._upscaler, source, target, self._writing)
            return
        opened = open_picture(read_bytes(source) if is_uri(source) else source, where=source)
        result = upscale_picture(self._upscaler, whole_picture(opened), what=source)
        write_bytes(
            target, encode_image(result, suffix_of(target), quality=self._writing.quality, where=target)
        )
