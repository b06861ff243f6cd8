"""What a user is advised to install, in lines that work as typed: in a checkout, of a wheel, on a Jetson."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from trt_hspan.machine import install_advice as module
from trt_hspan.machine import jetson
from trt_hspan.machine.gpu import GpuDriver
from trt_hspan.machine.install_advice import install_advice, install_command, requirement
from trt_hspan.machine.jetson import is_jetson


def test_a_checkout_is_named_as_seen_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tmp_path / "a checkout"
    root.mkdir()
    (root / "pyproject.toml").write_text("")
    monkeypatch.setattr(module, "_ROOT", root)
    monkeypatch.chdir(root)
    assert install_command("cpu", "media") == "pip install -e '.[cpu,media]'"
    assert install_command() == "pip install -e ."
    monkeypatch.chdir(tmp_path)
    assert install_command("cpu") == f"pip install -e '{root}[cpu]'"


def test_a_wheel_is_named_by_its_file_while_that_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheel = tmp_path / "my wheels" / "trt_hspan.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"")
    record = json.dumps({"url": wheel.as_uri(), "archive_info": {}})
    distribution = SimpleNamespace(read_text=lambda name: record)
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    monkeypatch.setattr(module.importlib.metadata, "distribution", lambda name: distribution)
    assert install_command("export") == f"pip install '{wheel}[export]'"
    wheel.unlink()
    assert install_command("export") == "pip install 'trt-hspan[export]'"  # pip knows what is installed
    record = ""
    assert install_command() == "pip install trt-hspan"

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module.importlib.metadata, "distribution", missing)
    assert install_command() == "pip install trt-hspan"


def test_pypis_packages_are_named_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jetson, "_RELEASE_FILE", tmp_path / "none")
    assert not is_jetson()
    assert install_advice("tensorrt") == "pip install -e '.[gpu]'"
    assert install_advice("pycuda") == "pip install -e '.[gpu]'"


def test_a_driver_of_cuda_12_takes_packages_of_cuda_12(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jetson, "_RELEASE_FILE", tmp_path / "none")
    for version, extra, package in (
        ((12, 8), "gpu-cuda12", "tensorrt-cu12==10.9.0"),
        ((13, 0), "gpu", "tensorrt==10.9.0"),
    ):
        driver = GpuDriver(state="ready", cuda_version=version, architectures=("sm_86",))
        monkeypatch.setattr(module, "gpu_driver", lambda driver=driver: driver)
        assert install_advice("pycuda") == f"pip install -e '.[{extra}]'"
        assert requirement("tensorrt", "10.9.0") == package
        assert requirement("tensorrt-rtx", "1.7.1") == "tensorrt-rtx==1.7.1"


def test_a_jetson_has_tensorrt_of_jetpack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.4")
    monkeypatch.setattr(jetson, "_RELEASE_FILE", tmp_path / "nv_tegra_release")
    assert is_jetson()
    assert install_advice("tensorrt") == "sudo apt install python3-libnvinfer"
    assert install_advice("pycuda") == "pip install -e '.[jetson]'"
    assert "does not run on a Jetson" in install_advice("tensorrt-rtx")
