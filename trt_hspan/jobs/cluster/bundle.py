"""A network as bytes, so that workers on other machines need no copy of its files."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error
from trt_hspan.runtime.opening import RunnerOptions

DEFAULT_RUNNER: Final = RunnerOptions()


@dataclass(frozen=True, kw_only=True)
class NetworkBundle:
    """The arguments of `open_runner`, with the files themselves.

    Attributes:
        name: a preset's name, or the file among `files` to open.
        files: name -> content; empty for a preset.
        plugin: the file among `files` that is an engine's plugin library.
        options: as `open_runner` takes them, the plugin library aside.
    """

    name: str
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    plugin: str | None = None
    options: RunnerOptions = DEFAULT_RUNNER

    @property
    def digest(self) -> str:
        """SHA-256 over name and content of all files, in hexadecimal."""
        digest = hashlib.sha256(self.name.encode())
        for name, content in sorted(self.files.items()):
            digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()

    @contextmanager
    def on_disk(self) -> Iterator[str]:
        """Writes the files to a temporary folder and yields what to open there."""
        if not self.files:
            yield self.name
            return
        with tempfile.TemporaryDirectory(prefix="trt-hspan-") as folder:
            for name, content in self.files.items():
                (Path(folder) / name).write_bytes(content)
            yield str(Path(folder) / self.name)


def bundle_from_network(network: str | Path, options: RunnerOptions = DEFAULT_RUNNER) -> NetworkBundle:
    """Packs a checkpoint, an ONNX file, an engine with its manifest, ONNX file and plugin library, or a preset's name.

    The library is `options.plugin`, else the one that the manifest names beside the engine, else the default one.

    Raises:
        HspanError: a file is missing or an engine does not match its manifest.
    """
    path = Path(network)
    name = str(network)
    names: list[Path] = []
    library: Path | None = None
    if path.suffix == ".plan":
        names, library = _engine_files(path, options.plugin)
        name = path.name
    elif path.suffix:
        names, name = [path], path.name
    try:
        files = {file.name: file.read_bytes() for file in names}
    except OSError as error:
        raise error_from_os_error(Path(error.filename or path), error, action="read") from error
    return NetworkBundle(
        name=name,
        files=files,
        plugin=None if library is None else library.name,
        options=replace(options, plugin=None),
    )


def _engine_files(plan: Path, plugin: Path | None) -> tuple[list[Path], Path | None]:
    from trt_hspan.engine.manifest import manifest_path, verify_manifest
    from trt_hspan.native.plugin import default_plugin_path

    manifest = verify_manifest(plan)
    files = [plan, manifest_path(plan), plan.parent / manifest.onnx_file]
    if manifest.plugin is not None and manifest.needs_library:
        beside = plan.parent / manifest.plugin.file
        library = plugin or (beside if beside.is_file() else default_plugin_path())
        if not library.is_file():
            raise HspanError(library, "the engine's plugin library is missing", "trt-hspan plugin build")
        return [*files, library], library
    return files, None
