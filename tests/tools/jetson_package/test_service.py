"""The systemd template unit of the package: in the .deb, accepted by systemd, and a command line that exists."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from support.command_line import CommandLine

from tools.jetson_package.archive import PackageContents, pack
from tools.jetson_package.portable_files import COMMANDS, SYSTEM_FILES, board_files
from tools.jetson_package.targets import target_from_name

UNIT = "usr/lib/systemd/system/hspan-upscale@.service"


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of dpkg's own scripts beside the unpacked tree `root`."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    folder = tmp_path_factory.mktemp("deb")
    contents = PackageContents(files=board_files(), commands=COMMANDS, system_files=SYSTEM_FILES)
    package = pack(target_from_name("jetson-orin"), contents, folder)
    subprocess.run(["dpkg-deb", "-R", str(package.deb), folder / "root"], check=True)
    (folder / "root" / "DEBIAN").rename(folder / "control")
    return folder / "control"


@pytest.fixture
def root(control: Path) -> Path:
    return control.parent / "root"


def settings(unit: Path) -> dict[str, str]:
    """The unit's NAME=VALUE lines; each name occurs once."""
    lines = [line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line and line[0] != "#"]
    values = dict(lines)
    assert len(values) == len(lines)
    return values


def test_the_debian_package_installs_the_unit_and_its_account(root: Path) -> None:
    for place, system_place in SYSTEM_FILES.items():
        assert (root / system_place).read_bytes() == (root / "opt/hspan" / place).read_bytes()
        assert (root / system_place).stat().st_mode & 0o777 == 0o644
    assert (root / "usr/lib/sysusers.d/hspan.conf").read_text().splitlines()[1].startswith("u hspan ")


def test_the_unit_is_hardened_and_limited(root: Path) -> None:
    unit = settings(root / UNIT)
    assert (unit["User"], unit["MemoryMax"], unit["Type"]) == ("hspan", "75%", "notify")
    assert (unit["ProtectSystem"], unit["NoNewPrivileges"], unit["ProtectHome"]) == ("strict", "yes", "yes")
    assert unit["StateDirectory"] == "hspan/%i/in hspan/%i/out"
    assert unit["WantedBy"] == "multi-user.target"


def test_the_unit_starts_a_command_that_the_package_has(root: Path, run: CommandLine) -> None:
    program, *words = shlex.split(settings(root / UNIT)["ExecStart"])
    assert os.access(root / program[1:], os.X_OK)
    assert words[:2] == ["watch", "/var/lib/hspan/%i/engine.plan"]
    assert words.pop() == "$HSPAN_WATCH_OPTIONS"
    assert run("jetson", *words, "--help").code == 0
    missing = run("jetson", *words)
    assert missing.code == 1
    assert "/var/lib/hspan/%i/engine.plan" in missing.error_line


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(root: Path, tmp_path: Path) -> None:
    system = tmp_path / "system"
    shutil.copytree(root, system, symlinks=True)
    for name in ("sysinit.target", "basic.target", "shutdown.target", "multi-user.target"):
        (system / UNIT).with_name(name).write_text("[Unit]\nDescription=of systemd itself\n")

    def verified() -> str:
        command = [
            "systemd-analyze",
            f"--root={system}",
            "verify",
            "--man=no",
            "hspan-upscale@camera.service",
        ]
        environment = os.environ | {"SYSTEMD_LOG_LEVEL": "warning"}
        process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        return process.stderr

    assert verified() == ""
    (system / UNIT).write_text((system / UNIT).read_text().replace("ProtectClock=", "ProtectClocks="))
    assert "ProtectClocks" in verified()


def test_removal_takes_away_what_dpkg_did_not_install_and_keeps_pictures(
    control: Path, root: Path, tmp_path: Path
) -> None:
    for place in ("opt/hspan/venv/bin/python", "var/lib/hspan/camera/in/cat.png"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).touch()
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "hspan-upscale@camera.service").symlink_to("/" + UNIT)
    environment = os.environ | {"DPKG_ROOT": str(tmp_path)}
    subprocess.run([control / "postrm", "remove"], check=True, env=environment)
    left = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if not path.is_dir()]
    assert left == [Path("var/lib/hspan/camera/in/cat.png")]
    assert {path.name for path in control.iterdir()} >= {"postinst", "prerm", "postrm"}


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd is not installed")
def test_the_account_may_open_the_gpu(root: Path, tmp_path: Path) -> None:
    system = tmp_path / "system"
    shutil.copytree(root / "usr/lib/sysusers.d", system / "usr/lib/sysusers.d")
    (system / "etc").mkdir()
    command = ["systemd-sysusers", f"--root={system}", "hspan.conf"]
    subprocess.run(command, capture_output=True, check=True)
    members = dict(line.split(":x:") for line in (system / "etc/group").read_text().splitlines())
    for group in ("video", "render"):
        assert members[group].endswith(":hspan")
