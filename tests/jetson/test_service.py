"""The systemd service: its unit, read back by systemd itself where it is installed, and installing without it."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.command_line import CommandLine
from support.permissions import read_only
from support.small_engine import SmallEngine

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.jetson.boards import board_from_name
from trt_hspan.jetson.service import ServiceSpec, install_service, uninstall_service, unit_text

ME = getpass.getuser()


def spec_for(folder: Path, **changes: Any) -> ServiceSpec:
    fields: dict[str, Any] = {
        "name": "upscale",
        "command": (sys.executable, "-m", "trt_hspan"),
        "incoming": folder / "in",
        "outgoing": folder / "out",
        "readable": (Path("/opt/hspan/engine.plan"),),
        "user": ME,
        "groups": (),
        "memory_max_bytes": 6 << 30,
    }
    return ServiceSpec(**(fields | changes))


def settings(text: str) -> dict[str, dict[str, str]]:
    """A unit read strictly: sections, and lines NAME=VALUE with names that occur once."""
    sections: dict[str, dict[str, str]] = {}
    for line in filter(None, text.splitlines()):
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = sections.setdefault(header[1], {})
            continue
        found = re.fullmatch(r"([A-Z]\w+)=(.*)", line)
        assert found, line
        assert found[1] not in section, line
        section[found[1]] = found[2]
    return sections


class Systemctl:
    """Records commands; fails those that begin as it is told."""

    def __init__(self, fails: str = "never") -> None:
        self.fails = fails
        self.commands: list[str] = []

    def __call__(self, command: Sequence[str]) -> None:
        self.commands.append(shlex.join(command))
        if self.commands[-1].startswith(self.fails):
            raise HspanError(self.fails, "fails")


def test_the_unit_is_hardened_and_limited() -> None:
    unit = settings(unit_text(spec_for(Path("/var/lib/hspan"), groups=("video", "render"))))
    service = unit["Service"]
    assert service["MemoryMax"] == str(6 << 30)
    assert service["ReadWritePaths"] == "/var/lib/hspan/in /var/lib/hspan/out"
    assert service["SupplementaryGroups"] == "video render"
    assert (service["ProtectSystem"], service["NoNewPrivileges"], service["ProtectHome"]) == (
        "strict",
        "yes",
        "yes",
    )
    assert service["Type"] == "notify"
    assert unit["Install"] == {"WantedBy": "multi-user.target"}


def test_a_home_that_holds_the_engine_stays_readable() -> None:
    unit = unit_text(spec_for(Path("/srv/h"), readable=(Path("/home/me/net.plan"),)))
    assert "ProtectHome=read-only\n" in unit


def test_words_keep_their_characters() -> None:
    odd = "/srv/a b/%n $HOME \"q\" \\x 'y' ü.plan"
    unit = settings(unit_text(spec_for(Path("/srv/in out%"), command=("/bin/echo", odd, "plain=1"))))
    assert unit["Service"]["ExecStart"] == (
        '/bin/echo "/srv/a b/%%n $$HOME \\"q\\" \\\\x \'y\' ü.plan" plain=1'
    )
    assert unit["Service"]["ReadWritePaths"] == '"/srv/in out%%/in" "/srv/in out%%/out"'


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("folder", ["plain", "a b %n $HOME 'q' \"r\" \\t"])
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path, folder: str) -> None:
    spec = spec_for(tmp_path / folder, command=(sys.executable, "-m", "trt_hspan", folder), groups=("video",))
    path = tmp_path / spec.unit
    path.write_text(unit_text(spec))
    environment = os.environ | {"SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert spec.unit not in done.stderr


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"name": "Up scale"}, "--name: got 'Up scale'"),
        ({"name": "../x"}, "--name: got '../x'"),
        ({"name": ""}, "--name: got ''"),
        ({"command": ("/bin/echo", "a\nExecStartPre=/bin/sh")}, "holds characters that a unit cannot"),
        ({"user": ""}, "holds characters that a unit cannot"),
        ({"command": ("echo",)}, "echo is no whole path"),
    ],
)
def test_what_a_unit_cannot_hold_is_refused(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    with pytest.raises(UsageError, match=re.escape(part)):
        spec_for(tmp_path, **changes)


def test_install_writes_starts_and_makes_folders_and_uninstall_removes(tmp_path: Path) -> None:
    systemctl = Systemctl()
    place: dict[str, Any] = {"folder": tmp_path, "run": systemctl, "system": tmp_path}
    spec = spec_for(tmp_path / "data")
    path = install_service(spec, **place)
    assert path.read_text() == unit_text(spec)
    assert (tmp_path / "data/in").is_dir()
    assert (tmp_path / "data/out").is_dir()
    assert uninstall_service("upscale", **place) == path
    assert not path.exists()
    assert (tmp_path / "data/in").is_dir()
    assert systemctl.commands == [
        "systemctl daemon-reload",
        "systemctl enable --now hspan-upscale.service",
        "systemctl disable --now hspan-upscale.service",
        "systemctl daemon-reload",
    ]
    with pytest.raises(HspanError, match="no such service is installed"):
        uninstall_service("upscale", **place)


def test_a_start_that_fails_leaves_no_unit(tmp_path: Path) -> None:
    systemctl = Systemctl(fails="systemctl enable")
    with pytest.raises(HspanError, match="systemctl enable: fails"):
        install_service(spec_for(tmp_path), folder=tmp_path, run=systemctl, system=tmp_path)
    assert not list(tmp_path.glob("*.service"))
    assert systemctl.commands[-1] == "systemctl daemon-reload"


def test_a_service_that_cannot_be_stopped_keeps_its_unit(tmp_path: Path) -> None:
    (tmp_path / "hspan-upscale.service").touch()
    with pytest.raises(HspanError, match="disable: fails"):
        uninstall_service(
            "upscale", folder=tmp_path, run=Systemctl(fails="systemctl disable"), system=tmp_path
        )
    assert (tmp_path / "hspan-upscale.service").exists()


def test_without_root_systemd_or_account_one_line_says_so(tmp_path: Path) -> None:
    spec = spec_for(tmp_path / "data")
    with pytest.raises(HspanError, match="systemd: is not the service manager here"):
        install_service(spec, folder=tmp_path, run=Systemctl(), system=tmp_path / "none")
    with pytest.raises(HspanError, match="there is no account 'nobody-of-that-name' here"):
        install_service(
            spec_for(tmp_path / "data", user="nobody-of-that-name"),
            folder=tmp_path,
            run=Systemctl(),
            system=tmp_path,
        )
    units = tmp_path / "units"
    units.mkdir()
    with read_only(units), pytest.raises(HspanError, match="only root may change services; run it with sudo"):
        install_service(spec, folder=units, run=Systemctl(), system=tmp_path)
    assert not (tmp_path / "data").exists()


def test_show_prints_the_unit_of_an_engine(run: CommandLine, small_engine: SmallEngine) -> None:
    board = board_from_name("orin-nano-8g")
    done = run(
        *("jetson", "service", "show", small_engine.plan, "--board", board.name, "--user", ME),
        *("--from", "/srv/in", "--to", "/srv/out", "--delete", "--plugin", "/opt/hspan/p.so"),
    )
    assert done.code == 0, done.err
    unit = settings(done.out)
    assert unit["Service"]["MemoryMax"] == str(board.memory_bytes - board.reserved_bytes)
    words = shlex.split(unit["Service"]["ExecStart"])
    assert words[:5] == [sys.executable, "-m", "trt_hspan", "jetson", "watch"]
    assert words[5] == str(small_engine.plan)
    rest = [
        "--from",
        "/srv/in",
        "--to",
        "/srv/out",
        "--device",
        "gpu",
        "--plugin",
        "/opt/hspan/p.so",
        "--delete",
    ]
    assert words[6:] == rest
    # What the unit calls is a command line that the program takes.
    assert run(*words[3:6], *words[6:], "--help").code == 0


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("--user", "me", "--name", "A"), 2, "--name"),
        (("--user", "me", "--from", "/srv/x", "--to", "/srv/x/y"), 2, "name separate folders"),
        (("--user", "me", "--board", "pi"), 2, "--board"),
        (("--user", "me", "--board", "auto"), 1, "this is no Jetson"),
    ],
)
def test_a_service_that_makes_no_sense_is_one_line(
    run: CommandLine,
    small_engine: SmallEngine,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    part: str,
) -> None:
    from trt_hspan.machine import jetson as device

    monkeypatch.setattr(device, "this_device", device.DeviceFacts)
    done = run("jetson", "service", "show", small_engine.plan, "--board", "agx-thor", *words)
    assert done.code == code
    assert part in done.error_line


def test_the_service_does_not_run_as_root_unasked(
    run: CommandLine, small_engine: SmallEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "root")
    done = run("jetson", "service", "install", small_engine.plan, "--board", "agx-thor")
    assert done.code == 1
    assert "--user: the service shall not run as root" in done.error_line
