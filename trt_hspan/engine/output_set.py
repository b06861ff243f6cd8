"""Several files that appear together or not at all. Owns staging and renaming; knows nothing of what they hold."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error


@contextlib.contextmanager
def staged_files(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Yields a path to write for each target; renames them in that order when the block succeeds.

    The paths lie in a hidden folder beside the targets, so a full disk or a missing permission shows before anything
    is replaced. When the block raises, or a rename fails, what stood under the targets' names stands there again.

    Args:
        targets: files of one folder, which is made when it is missing.

    Raises:
        HspanError: the folder cannot be written or the disk is full, also when the block itself meets that.
    """
    folder = targets[0].parent
    made: list[Path] = []
    try:
        for target in targets:
            if target.is_dir():
                raise HspanError(target, "is a folder, expected a file name", "name a file in it")
        made = _make_folders(folder)
        stage = Path(tempfile.mkdtemp(prefix=f".{targets[0].stem}.", dir=folder))
        try:
            staged = [stage / target.name for target in targets]
            yield staged
            _rename_all(staged, targets, backups=stage / "replaced")
            made = []
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        raise error_from_os_error(_named(error, targets), error) from error
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_writable(path: Path) -> None:
    """Raises HspanError unless a file can be made in the folder of `path`; leaves nothing behind."""
    with contextlib.suppress(_TriedError), staged_files([path]):
        raise _TriedError


class _TriedError(Exception):
    """Leaves `staged_files` without renaming."""


def _make_folders(folder: Path) -> list[Path]:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


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
