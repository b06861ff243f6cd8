"""examples/edsr_hspa.py as a researcher runs it, its commands in this process."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from support.command_line import CommandLine

from trt_hspan.graph import load_onnx, metadata_from_model

PATH = Path(__file__).parent.parent / "examples" / "edsr_hspa.py"


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("edsr_hspa", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("scale", [2, 1])
def test_example_goes_from_training_to_engines_and_a_picture(
    example: ModuleType,
    scale: int,
    plugin_library: Path,
    run: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run_here(words: str, folder: Path) -> None:
        with monkeypatch.context() as inside:
            inside.chdir(folder)
            result = run(
                *shlex.split(words)[1:], *(["--plugin", plugin_library] if "plugin" in words else [])
            )
        assert result.code == 0, (words, result.err)

    monkeypatch.setattr(example, "run", run_here)
    monkeypatch.setattr(
        "sys.argv", ["edsr_hspa.py", "--scale", str(scale), "--steps", "3", "--output", str(tmp_path)]
    )
    example.main()
    assert metadata_from_model(load_onnx(tmp_path / "edsr.onnx")).scale == scale
    manifest = json.loads((tmp_path / "int8_engine.json").read_text())
    assert manifest["plugin"] is not None
    assert manifest["quantization"]["quantized_mac_share"] > 0.9
    (low,) = {Image.open(path).size for path in (tmp_path / "set" / "LR_bicubic").rglob("*.png")}
    assert Image.open(tmp_path / "result.png").size == tuple(np.multiply(low, scale))


def test_example_is_a_page() -> None:
    assert len(PATH.read_text().splitlines()) < 150
