"""A systemd service that watches a folder. Owns the unit's text, and putting it in place and away again.

The unit takes away what a program that turns files into files does not need. It keeps the devices, since CUDA opens
many under names that differ between boards, and memory that is both writable and executable, since CUDA compiles.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import check_writable, error_from_os_error, write_text

UNIT_FOLDER: Final = Path("/etc/systemd/system")
#: Exists while systemd is the service manager: sd_booted(3).
SYSTEMD_RUNS: Final = Path("/run/systemd/system")
#: Groups whose members may open the GPU on Jetson.
GPU_GROUPS: Final = ("video", "render")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")

Run = Callable[[Sequence[str]], None]


@dataclass(frozen=True, kw_only=True)
class ServiceSpec:
    """One service.

    Args:
        name: the unit is `hspan-NAME.service`.
        command: program and arguments; the program by its whole path.
        incoming, outgoing: the folders that it may write.
        readable: files and folders that it reads: engine, plugin, Python.
        user: the account that it runs as.
        groups: further groups of that account.
        memory_max_bytes: of main memory; more ends the service, not the board.

    Raises:
        UsageError: a name that is none for a unit, or a path that is not whole or holds control characters.
    """

    name: str
    command: tuple[str, ...]
    incoming: Path
    outgoing: Path
    readable: tuple[Path, ...]
    user: str
    groups: tuple[str, ...]
    memory_max_bytes: int

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError("--name", f"got {self.name!r}, expected small letters, digits and hyphens")
        for text in (*self.command, *map(str, (self.incoming, self.outgoing, *self.readable)), self.user):
            if not text.isprintable() or not text:
                raise UsageError("service", f"{text!r} holds characters that a unit cannot", "rename it")
        for path in (Path(self.command[0]), self.incoming, self.outgoing):
            if not path.is_absolute():
                raise UsageError("service", f"{path} is no whole path", "begin it with /")

    @property
    def unit(self) -> str:
        """The unit's file name."""
        return unit_name(self.name)


def unit_name(name: str) -> str:
    """`hspan-NAME.service`. Raises: UsageError when that is no unit's name."""
    if not _NAME.fullmatch(name):
        raise UsageError("--name", f"got {name!r}, expected small letters, digits and hyphens")
    return f"hspan-{name}.service"


def unit_text(spec: ServiceSpec) -> str:
    """The unit file."""
    inside_home = any(_is_below_home(path) for path in (spec.incoming, spec.outgoing, *spec.readable))
    sections = {
        "Unit": [
            "Description=HSPAN super-resolution of a folder of pictures",
            "After=nvpmodel.service",
            "StartLimitIntervalSec=300",
            "StartLimitBurst=5",
        ],
        "Service": [
            "Type=notify",
            f"ExecStart={' '.join(map(_quoted, spec.command))}",
            "Restart=on-failure",
            "RestartSec=5",
            "TimeoutStartSec=300",
            "TimeoutStopSec=120",
            f"User={spec.user}",
            *([f"SupplementaryGroups={' '.join(spec.groups)}"] if spec.groups else []),
            "WorkingDirectory=/",
            "UMask=0022",
            "CacheDirectory=hspan",
            "Environment=CUDA_CACHE_PATH=/var/cache/hspan PYTHONUNBUFFERED=1",
            f"MemoryMax={spec.memory_max_bytes}",
            "TasksMax=256",
            "OOMPolicy=stop",
            "Nice=5",
            f"ReadWritePaths={_quoted(str(spec.incoming), variables=False)} "
            f"{_quoted(str(spec.outgoing), variables=False)}",
            "ProtectSystem=strict",
            f"ProtectHome={'read-only' if inside_home else 'yes'}",
            "PrivateTmp=yes",
            "PrivateNetwork=yes",
            "RestrictAddressFamilies=AF_UNIX AF_NETLINK",
            "NoNewPrivileges=yes",
            "CapabilityBoundingSet=",
            "ProtectClock=yes",
            "ProtectControlGroups=yes",
            "ProtectHostname=yes",
            "ProtectKernelLogs=yes",
            "ProtectKernelModules=yes",
            "RestrictNamespaces=yes",
            "RestrictRealtime=yes",
            "RestrictSUIDSGID=yes",
            "LockPersonality=yes",
            "SystemCallArchitectures=native",
        ],
        "Install": ["WantedBy=multi-user.target"],
    }
    return "\n\n".join("\n".join([f"[{name}]", *lines]) for name, lines in sections.items()) + "\n"


def install_service(
    spec: ServiceSpec, *, folder: Path = UNIT_FOLDER, run: Run | None = None, system: Path = SYSTEMD_RUNS
) -> Path:
    """Makes the folders, writes the unit and starts it; at the next start of the board it starts by itself.

    Args:
        spec: the service.
        folder: of units.
        run: executes a command and raises HspanError when it fails.
        system: exists while systemd runs.

    Returns:
        The unit file.

    Raises:
        HspanError: this process is not root's, systemd does not run here, there is no such account, or a step fails;
            then the unit is away again.
    """
    _require_systemd(folder, system)
    try:
        account = pwd.getpwnam(spec.user)
    except KeyError:
        raise HspanError("--user", f"there is no account {spec.user!r} here", "name another one") from None
    execute = run or _executed
    for path in (spec.incoming, spec.outgoing):
        try:
            existed = path.is_dir()
            path.mkdir(parents=True, exist_ok=True)
            if not existed:
                os.chown(path, account.pw_uid, account.pw_gid)
        except OSError as error:
            raise error_from_os_error(path, error) from error
    target = folder / spec.unit
    write_text(target, unit_text(spec))
    try:
        execute(["systemctl", "daemon-reload"])
        execute(["systemctl", "enable", "--now", spec.unit])
    except HspanError:
        target.unlink(missing_ok=True)
        execute(["systemctl", "daemon-reload"])
        raise
    return target


def uninstall_service(
    name: str, *, folder: Path = UNIT_FOLDER, run: Run | None = None, system: Path = SYSTEMD_RUNS
) -> Path:
    """Stops a service and removes its unit; its folders stay. Arguments as `install_service`.

    Raises:
        HspanError: this process is not root's, systemd does not run here, there is no such service, or it cannot be
            stopped; then the unit stays.
    """
    unit = unit_name(name)
    _require_systemd(folder, system)
    target = folder / unit
    if not target.is_file():
        raise HspanError(target, "no such service is installed", "see trt-hspan jetson service show")
    execute = run or _executed
    execute(["systemctl", "disable", "--now", unit])
    try:
        target.unlink()
    except OSError as error:
        raise error_from_os_error(target, error) from error
    execute(["systemctl", "daemon-reload"])
    return target


def gpu_groups() -> tuple[str, ...]:
    """Those of `GPU_GROUPS` that exist here; all of them where none does, as on a machine without a GPU."""
    import grp

    names = {group.gr_name for group in grp.getgrall()}
    return tuple(name for name in GPU_GROUPS if name in names) or GPU_GROUPS


def _require_systemd(folder: Path, system: Path) -> None:
    try:
        check_writable(folder / "hspan.service")
    except HspanError as error:
        if "no permission" not in error.what:
            raise
        raise HspanError(folder, "only root may change services", "run it with sudo") from error
    if not system.is_dir():
        raise HspanError(
            "systemd",
            "is not the service manager here",
            "trt-hspan jetson service show prints the unit; trt-hspan jetson watch runs without it",
        )


def _executed(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise HspanError(command[0], f"cannot be run: {error.strerror}", "is systemd installed?") from error
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[:300]
        raise HspanError(" ".join(command), f"fails: {said}", f"see journalctl -u {command[-1]}")


def _is_below_home(path: Path) -> bool:
    return any(parent in path.parents for parent in (Path("/home"), Path("/root"), Path("/run/user")))


def _quoted(word: str, *, variables: bool = True) -> str:
    """A word of a unit file in which quotes, % and, in commands, $ mean nothing: systemd.syntax(7), systemd.service(5).

    Args:
        word: printable text.
        variables: whether the line is a command.
    """
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    if variables:
        text = text.replace("$", "$$")
    return f'"{text}"' if text != word or not re.fullmatch(r"[\w@+,./:=-]+", word, re.ASCII) else word
