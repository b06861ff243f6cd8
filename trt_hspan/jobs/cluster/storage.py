"""Files by path or URI; fsspec reaches the object stores.

A plain path is a file of this machine, or of a file system that all machines share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from trt_hspan.errors import HspanError, reason_from
from trt_hspan.files import write_bytes as write_file_bytes
from trt_hspan.machine.install_advice import install_command

_MARK = "://"
# Stores with real folders, which must exist before a file does. In the others a name with slashes is enough, and
# creating the folder would create a bucket for a mistyped name.
_WITH_FOLDERS: Final = frozenset(["ftp", "hdfs", "sftp", "smb", "ssh", "webhdfs"])


def is_uri(place: str) -> bool:
    """Whether this names an object store, such as s3://bucket/folder."""
    return _MARK in place and not place.startswith("file" + _MARK)


def joined(place: str, name: str) -> str:
    return f"{place.rstrip('/')}/{name}" if is_uri(place) else os.path.join(place, name)  # noqa: PTH118


def suffix_of(place: str) -> str:
    """The suffix in lower case, with its dot."""
    return PurePosixPath(place.rsplit(_MARK, maxsplit=1)[-1]).suffix.lower()


def read_bytes(uri: str) -> bytes:
    with _store(uri, "read") as (system, path):
        return bytes(system.cat_file(path))


def write_bytes(uri: str, data: bytes) -> None:
    """Writes an object, whole or not at all."""
    if not is_uri(uri):
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        write_file_bytes(Path(uri), data)
        return
    with _store(uri, "written") as (system, path):
        protocols = [system.protocol] if isinstance(system.protocol, str) else system.protocol
        if _WITH_FOLDERS.intersection(protocols):
            system.makedirs(system._parent(path), exist_ok=True)
        system.pipe_file(path, data)  # object stores show an object when all of it has arrived


def objects_in(uri: str) -> list[str]:
    """Names of all objects below a place, relative to it, sorted; empty when there are none."""
    with _store(uri, "listed") as (system, path):
        root = path.rstrip("/") + "/"
        names = system.find(path) if system.exists(path) else []
    return sorted(name[len(root) :] for name in names if name.startswith(root))


def exists(place: str) -> bool:
    if not is_uri(place):
        return Path(place).exists()
    with _store(place, "looked for") as (system, path):
        return bool(system.exists(path))


@contextmanager
def _store(uri: str, action: str) -> Iterator[tuple[Any, str]]:
    """The file system behind a URI and the path in it; what fails there within the block is one line."""
    try:
        import fsspec
    except ImportError:
        raise HspanError(uri, "is a URI, and fsspec is missing", install_command("cluster")) from None
    try:
        system, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise HspanError(
            uri, f"no access to this kind of store ({error})", "install its fsspec package"
        ) from None
    try:
        yield system, path
    except FileNotFoundError as error:
        raise HspanError(uri, "no such object", "check the URI") from error
    except Exception as error:
        what = f"cannot be {action}: {reason_from(error)}"
        raise HspanError(uri, what, "check the URI and the credentials") from error
