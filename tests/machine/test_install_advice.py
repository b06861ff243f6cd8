"""What a user is advised to install, on a Jetson and elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from trt_hspan.machine import jetson
from trt_hspan.machine.install_advice import install_advice
from trt_hspan.machine.jetson import is_jetson


def test_pypis_packages_are_named_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jetson, "_RELEASE_FILE", tmp_path / "none")
    assert not is_jetson()
    assert install_advice("tensorrt") == "pip install 'trt-hspan[gpu]'"
    assert install_advice("pycuda") == "pip install 'trt-hspan[gpu]'"


def test_a_jetson_has_tensorrt_of_jetpack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.4")
    monkeypatch.setattr(jetson, "_RELEASE_FILE", tmp_path / "nv_tegra_release")
    assert is_jetson()
    assert install_advice("tensorrt") == "sudo apt install python3-libnvinfer"
    assert install_advice("pycuda") == "pip install 'trt-hspan[jetson]'"
    assert "does not run on a Jetson" in install_advice("tensorrt-rtx")
