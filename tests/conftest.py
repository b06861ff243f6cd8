"""Fixtures that several folders use: golden cases, small random checkpoints, the command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.cmake_folder import built_folder
from support.command_line import CommandLine
from support.export_cache import ExportCache
from support.golden import ATTENTION_CASES, GOLDEN, NETWORK_CASES, GoldenNetwork, load_golden_network
from support.permissions import read_only

from trt_hspan.native.build import build_cpu_library, build_plugin
from trt_hspan.native.cpu_attention import NativeLibrary

if TYPE_CHECKING:
    import torch
    from support.small_engine import SmallEngine


#: Files that take a minute or so on a fresh checkout, the longest first: they begin first, in this order, so that none
#: of two processes waits for the last of them.
LONG_FILES = (
    "plugins/test_emulated_kernels_cpp.py",
    "plugins/test_emulated_kernels_aarch64.py",
    "tools/jetson_package/test_board_program.py",
    "native/test_plugin_build.py",
    "native/test_cuda_library.py",
    "jobs/cluster/test_ray_address.py",
    "jobs/cluster/test_job.py",
    "ptx/test_compiled_kernels.py",
    "runtime/test_tensorrt_on_standin.py",
    "cli/test_build.py",
    "plugins/test_emulated_kernels.py",
    "plugins/runtime/test_program_on_doubles.py",
    "tools/wheel/test_wheel.py",
    "jobs/cluster/test_s3.py",
    "test_console_blocks.py",
    "test_demo.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, then those with the most tests; `make test` has pytest-xdist keep this order."""
    tests = Path(__file__).parent
    rank = {tests / name: place for place, name in enumerate(LONG_FILES)}
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (rank.get(item.path, len(rank)), -counts[item.path]))


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


@pytest.fixture
def engine_copy(small_engine: SmallEngine, tmp_path: Path) -> Path:
    """A plan with its files in a folder of its own, to spoil."""
    return small_engine.copy_to(tmp_path)


@pytest.fixture
def gray_picture(tmp_path: Path) -> Path:
    """in.png, 20x20 pixels of one gray."""
    path = tmp_path / "in.png"
    Image.fromarray(np.full((20, 20, 3), 99, np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def plugin_library() -> Path:
    """The plugin library at its default place, compiled with nvcc unless it is up to date."""
    return build_plugin().path


@pytest.fixture(scope="session")
def library() -> NativeLibrary:
    """The native CPU library, compiled where it is missing or out of date."""
    return NativeLibrary(build_cpu_library().path)


@pytest.fixture(scope="session")
def emulation_folder() -> Path:
    """A CMake build folder with the emulated kernels and their tests; built again only where sources changed."""
    return built_folder("emulation", "-DHSPAN_BUILD_PLUGIN=OFF", "-DHSPAN_BUILD_TESTS=ON")


@pytest.fixture
def unwritable_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in which this process may not write, even when the tests run as root."""
    folder = tmp_path / "unwritable"
    folder.mkdir()
    with read_only(folder):
        yield folder
