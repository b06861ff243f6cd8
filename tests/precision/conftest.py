"""A small network, pictures to calibrate on, and a cache that no test shares with the user's."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from support.export_cache import ExportCache
from support.quantization_plan import PLAN
from support.synthetic_pictures import picture

from trt_hspan.precision.quantize.pipeline import QuantizationRequest, Quantized, quantize
from trt_hspan.precision.quantize.source import Source, source_from_path


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of waves and discs, 44x48 pixels."""
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(6):
        Image.fromarray(picture(44, 48, seed=seed)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="session")
def source(exported: ExportCache) -> Source:
    """The golden network small_x2, base type fp16."""
    return source_from_path(exported("small_x2"), base="fp16")


@pytest.fixture(scope="session")
def int8(source: Source, photographs: Path) -> Quantized:
    request = QuantizationRequest(precision="int8", calibration=str(photographs), tiles=PLAN, use_cache=False)
    return quantize(source, request)
