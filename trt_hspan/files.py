"""Files that are whole or absent: writing, checks before writing, hashes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from trt_hspan.errors import HspanError

_STAGE_PREFIX: Final = ".trt-hspan-"
_NAME_BYTES: Final = 255  # of a file, on every file system in common use


def error_from_os_error(path: Path, error: OSError, *, action: str = "write") -> HspanError:
    """An operating system's error about a file as one line."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HspanError(path, "the disk is full", "free some space or choose another output folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HspanError(
            path, f"no permission to {action} here", "choose another path or change its permissions"
        )
    if error.errno == errno.ENOENT:
        return HspanError(path, "no such file or folder", "check the path")
    if error.errno == errno.EISDIR:
        return HspanError(path, "is a folder, expected a file", "name a file")
    return HspanError(path, f"cannot {action}: {error.strerror or error}", "check the path")


def cache_folder() -> Path:
    """The package's folder for files that can be made again: XDG_CACHE_HOME or ~/.cache, then trt-hspan."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trt-hspan"


def sha256_from_file(path: str | os.PathLike[str]) -> str:
    """The file's SHA-256 in lower-case hexadecimal digits. Raises HspanError: the file is missing or cannot be read."""
    source = Path(path)
    digest = hashlib.sha256()
    try:
        with source.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise error_from_os_error(source, error, action="read") from error
    return digest.hexdigest()


def require_regular_file(path: Path) -> None:
    """Raises HspanError for a pipe, a socket or a device, which may be read for ever. What does not exist passes."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise HspanError(
            path,
            "is a pipe, a socket or a device, expected a file",
            "copy it into a file, or give - and send it to standard input",
        )


def require_free(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Raises: HspanError for the first file that exists and may not be replaced."""
    for path in paths:
        if not overwrite and path.exists():
            raise HspanError(path, "exists", "give --overwrite or another name")


def require_name_fits(path: Path) -> None:
    """Raises: HspanError when the last part of a path is longer than a file's name may be."""
    size = len(os.fsencode(path.name))
    if size > _NAME_BYTES:
        raise HspanError(path, f"a name of {size} bytes, at most {_NAME_BYTES} are possible", "shorten it")


@contextmanager
def locked_folder(
    folder: Path, name: str = ".lock", *, on_wait: Callable[[], None] = lambda: None
) -> Iterator[bool]:
    """Creates a folder, and waits until no other process is inside such a block for it and for that name.

    Where the file system has no locks, nobody waits. The file of that name goes again if it is empty, the folder too.

    Args:
        name: of the file in it that is locked.
        on_wait: called before waiting.

    Yields:
        Whether another process was waited for.
    """
    path = folder / name
    created: list[Path] = []
    try:
        stream, waited = _locked_file(path, on_wait, created)
    except OSError as error:
        raise error_from_os_error(folder, error) from error
    try:
        with stream:
            try:
                yield waited
            finally:
                with suppress(OSError):
                    if path.stat().st_size == 0:
                        path.unlink()
    finally:
        _remove_if_empty(created)


def _locked_file(path: Path, on_wait: Callable[[], None], created: list[Path]) -> tuple[BinaryIO, bool]:
    """The file, open and locked, and whether that took waiting. Folders that it creates are added to `created`."""
    waited = False
    while True:
        created += _create_folders(path.parent)
        stream = path.open("ab")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waited:
                on_wait()
            waited = True
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            return stream, waited  # no locks here
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                return stream, waited
        stream.close()  # who had the lock removed the file


def check_writable(path: Path) -> None:
    """Raises HspanError unless a file can be created in the folder of `path`; leaves nothing behind."""
    with suppress(_TriedError), staged_files([path]):
        raise _TriedError


def write_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Writes a whole file or nothing. Raises: HspanError as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a whole UTF-8 file or nothing. Raises: HspanError as `atomic_path` does."""
    write_bytes(path, text.encode())


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """`staged_files` for one file: yields the path to write."""
    with staged_files([Path(path)]) as (staged,):
        yield staged


@contextmanager
def staged_files(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Yields a path to write for each target; renames them in that order when the block succeeds.

    The paths have the targets' names and lie in a hidden folder beside them, so a full disk or a missing permission
    shows before anything is replaced. When the block raises, or a rename fails, what stood under the targets' names
    stands there again.

    Args:
        targets: files of one folder, which is created when it is missing.

    Raises:
        HspanError: the folder cannot be written or the disk is full, also when the block itself meets that.
    """
    folder = targets[0].parent
    created: list[Path] = []
    try:
        for target in targets:
            if target.exists() and not target.is_file():
                kind = "a folder" if target.is_dir() else "a pipe, a socket or a device"
                raise HspanError(target, f"is {kind}, expected a file name", "name a file")
            require_name_fits(target)
        created = _create_folders(folder)
        stage, lock = _new_stage(folder)
        try:
            staged = [stage / target.name for target in targets]
            yield staged
            _rename_all(staged, targets, backups=stage / "replaced")
            created = []
        finally:
            try:
                shutil.rmtree(stage, ignore_errors=True)
            except KeyboardInterrupt:
                shutil.rmtree(stage, ignore_errors=True)
                raise
            finally:
                os.close(lock)
    except OSError as error:
        raise error_from_os_error(_named(error, targets), error) from error
    finally:
        _remove_if_empty(created)


def remove_abandoned_stages(folder: Path) -> None:
    """Removes what processes that were killed within `staged_files` left in a folder; those that live keep theirs."""
    for stage in folder.glob(f"{_STAGE_PREFIX}{8 * '?'}/"):  # as `tempfile` names them
        with suppress(OSError):
            lock = os.open(stage, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stage, ignore_errors=True)
            finally:
                os.close(lock)


def _new_stage(folder: Path) -> tuple[Path, int]:
    """A hidden folder, and the descriptor through which this process has it locked."""
    while True:
        stage = Path(tempfile.mkdtemp(prefix=_STAGE_PREFIX, dir=folder))
        with suppress(FileNotFoundError):
            lock = os.open(stage, os.O_RDONLY)
            with suppress(OSError):  # no locks here
                fcntl.flock(lock, fcntl.LOCK_EX)
            if stage.exists():
                return stage, lock
            os.close(lock)  # taken for one that was left behind, between the two lines above


class _TriedError(Exception):
    """Leaves `staged_files` without renaming."""


def _create_folders(folder: Path) -> list[Path]:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _remove_if_empty(folders: Sequence[Path]) -> None:
    """Folders that `_create_folders` created, the innermost first."""
    for folder in reversed(folders):
        with suppress(OSError):
            folder.rmdir()


def _rename_all(staged: Sequence[Path], targets: Sequence[Path], *, backups: Path) -> None:
    backups.mkdir()
    try:
        for path, target in zip(staged, targets, strict=True):
            if target.exists():
                _keep(target, backups / target.name)
            path.replace(target)
    except BaseException:
        for path, target in zip(staged, targets, strict=True):
            backup = backups / target.name
            if backup.exists():
                backup.replace(target)
            elif not path.exists():
                target.unlink(missing_ok=True)
        raise


def _keep(target: Path, backup: Path) -> None:
    """A second name for the old file, or, where the file system has no hard links, its only one."""
    try:
        os.link(target, backup)
    except OSError:
        target.replace(backup)


def _named(error: OSError, targets: Sequence[Path]) -> Path:
    """The target that an error is about; staged files have their target's name."""
    name = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, (str, bytes)) else ""
    return next((target for target in targets if target.name == name), targets[0])
