"""Upscaling of the pictures that appear in a folder: the loop behind `jetson watch` and its systemd service.

A picture is processed when its size and time have not changed between two looks at the folder. Its result appears in
the output folder, whole or not at all; then the picture moves to `done/`, or to `failed/` with a text that says why.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import check_writable, error_from_os_error, write_text
from trt_hspan.media.formats import WRITE_FORMATS, kind_of_file
from trt_hspan.runtime.runner import Runner
from trt_hspan.upscaling.pictures import upscale_picture_file
from trt_hspan.upscaling.upscaler import Upscaler, upscale_array

DONE: Final = "done"
FAILED: Final = "failed"
#: After so many failures in a row the network itself is tested.
FAILURES_IN_A_ROW: Final = 5
_LOG = logging.getLogger(__name__)
_Stamp = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class WatchSpec:
    """What to watch: pictures in `incoming`, not in its sub-folders; results go to another folder.

    `once` ends when no pictures are left; `delete` removes a processed picture instead of moving it.

    Raises:
        UsageError: one folder for both, one inside the other, or no time between looks.
    """

    incoming: Path
    outgoing: Path
    delete: bool = False
    seconds: float = 1.0
    once: bool = False

    def __post_init__(self) -> None:
        incoming, outgoing = self.incoming.absolute(), self.outgoing.absolute()
        if incoming == outgoing or incoming in outgoing.parents or outgoing in incoming.parents:
            raise UsageError(
                "--to", f"{self.outgoing} and {self.incoming} share files", "name separate folders"
            )
        if not 0 < self.seconds < float("inf"):
            raise UsageError("--seconds", f"got {self.seconds}, expected a positive number")


@dataclass(frozen=True, kw_only=True)
class Handled:
    """The outcome of a picture; `line` says why it failed, and is empty when it did not."""

    source: Path
    target: Path
    outcome: Literal["done", "failed"]
    line: str = ""


class FolderWatch:
    """The state of the loop: files seen at the last look, and failures in a row.

    Args:
        upscale: writes the second file from the first, whole or not at all; raises HspanError.
        probe: runs the network on an input that it can process; raises HspanError when even that fails, which ends the
            loop, so that a new process can start with a new engine.
    """

    def __init__(
        self, spec: WatchSpec, upscale: Callable[[Path, Path], object], probe: Callable[[], object]
    ) -> None:
        self._spec, self._upscale, self._probe = spec, upscale, probe
        self._seen: dict[Path, _Stamp] = {}
        self._failures = 0
        for folder in (spec.outgoing, spec.incoming / FAILED, spec.incoming / DONE):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise error_from_os_error(folder, error) from error
        for folder in (spec.outgoing, spec.incoming, spec.incoming / FAILED, spec.incoming / DONE):
            check_writable(folder / ".any")

    def look(self, *, stop: Callable[[], bool] = lambda: False) -> list[Handled]:
        """Handles files that have not changed since the last look, the oldest first, until `stop()` is true."""
        present = self._present()
        unchanged = [path for path, stamp in present.items() if self._seen.get(path) == stamp]
        ready = [path for path in unchanged if kind_of_file(path) == "picture"]
        self._seen = {path: stamp for path, stamp in present.items() if path not in ready}
        handled = []
        for path in ready:
            if stop():
                break
            handled.append(self._handle(path))
        return handled

    def _present(self) -> dict[Path, _Stamp]:
        """Files by age, with size and time, which change while a file is written."""
        files: list[tuple[int, Path, _Stamp]] = []
        try:
            with os.scandir(self._spec.incoming) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith(".") or not entry.is_file(follow_symlinks=False):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:  # removed meanwhile
                        continue
                    stamp = (status.st_size, status.st_mtime_ns)
                    files.append((status.st_mtime_ns, Path(entry.path), stamp))
        except OSError as error:
            raise error_from_os_error(self._spec.incoming, error, action="read") from error
        return {path: stamp for _, path, stamp in sorted(files)}

    def _handle(self, source: Path) -> Handled:
        suffix = source.suffix.lower()
        target = self._spec.outgoing / (source.name if suffix in WRITE_FORMATS else f"{source.name}.png")
        try:
            self._upscale(source, target)
        except HspanError as error:
            self._failures += 1
            line = str(error)
            write_text(self._spec.incoming / FAILED / f"{source.name}.txt", f"{line}\n")
            self._move(source, FAILED)
            if self._failures >= FAILURES_IN_A_ROW:
                self._failures = 0
                self._probe()
            return Handled(source=source, target=target, outcome="failed", line=line)
        self._failures = 0
        if self._spec.delete:
            source.unlink(missing_ok=True)
        else:
            self._move(source, DONE)
        return Handled(source=source, target=target, outcome="done")

    def _move(self, source: Path, folder: str) -> None:
        try:
            source.replace(self._spec.incoming / folder / source.name)
        except FileNotFoundError:  # removed meanwhile
            pass
        except OSError as error:
            raise error_from_os_error(source, error) from error


def watch_folder(
    spec: WatchSpec,
    runner: Runner,
    stop: threading.Event,
    *,
    on_begin: Callable[[], object],
    on_picture: Callable[[Handled], object],
) -> None:
    """Upscales what appears in a folder, with the network kept open, until `stop` is set and the picture at hand done.

    `on_begin` is called when the network is loaded and the folders are there, `on_picture` after each picture.

    Raises:
        HspanError: as `FolderWatch`, or the network itself fails.
    """
    upscaler = Upscaler(runner, on_shrink=_LOG.warning)

    def probe() -> None:
        upscale_array(runner, np.zeros((16, 16, 3), np.uint8))

    with runner:
        folder = FolderWatch(
            spec, lambda source, target: upscale_picture_file(upscaler, source, target), probe
        )
        on_begin()
        notify_systemd(f"READY=1\nSTATUS={runner.label}")
        count, idle = 0, 0
        while not stop.is_set():
            handled = folder.look(stop=stop.is_set)
            for picture in handled:
                on_picture(picture)
            count += len(handled)
            idle = 0 if handled else idle + 1
            if handled:
                notify_systemd(f"STATUS={runner.label}: {count} pictures")
            if spec.once and idle >= 2:
                break
            stop.wait(spec.seconds)
        notify_systemd("STOPPING=1")


def notify_systemd(state: str) -> bool:
    """Sends a state such as "READY=1" to the service manager, as sd_notify(3) says.

    Returns:
        Whether there is one that listens.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            channel.sendall(state.encode())
    except OSError as error:
        _LOG.warning("%s: systemd does not listen: %s", address, error)
        return False
    return True
