"""Fixtures that several folders use: golden cases, small random checkpoints, the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from support.command_line import CommandLine
from support.export_cache import ExportCache
from support.golden import ATTENTION_CASES, GOLDEN, NETWORK_CASES, GoldenNetwork, load_golden_network

if TYPE_CHECKING:
    import torch
    from support.small_engine import SmallEngine


@pytest.fixture(params=NETWORK_CASES)
def golden_network(request: pytest.FixtureRequest) -> GoldenNetwork:
    return load_golden_network(request.param)


@pytest.fixture
def small_x4() -> GoldenNetwork:
    return load_golden_network("small_x4")


@pytest.fixture(params=ATTENTION_CASES)
def golden_attention(request: pytest.FixtureRequest) -> dict[str, NDArray[np.float32]]:
    return dict(np.load(GOLDEN / f"{request.param}.npz"))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """A good state dict that a test may spoil."""
    import torch

    return dict(torch.load(GOLDEN / "small_x2.pt", weights_only=True))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportCache:
    return ExportCache(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def small_engine(tmp_path_factory: pytest.TempPathFactory, exported: ExportCache) -> SmallEngine:
    """The FP16 engine of the golden network small_x4."""
    from support.small_engine import build_small_engine

    return build_small_engine(tmp_path_factory.mktemp("engine"), exported("small_x4", precision="fp16"))
