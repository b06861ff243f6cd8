"""libhspan_cuda.so linked with the interpreter of tests/ptx: host memory is device memory, kernels run as their PTX."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from tools.kernel_report.interpreter import build_program
from trt_hspan.native.cuda_attention import CudaLibrary, CudaProblem, DeviceAddresses
from trt_hspan.native.sources import sources_folder


class InterpretedLibrary(CudaLibrary):
    """The product's way to the product's C functions, and what the fake runtime below them has to say.

    The memory of a call is checked: bounds, alignment, races, inputs written to, outputs not written; a finding becomes
    CUDA's error 700.
    """

    def __init__(self, target: int = 80, replaced: Mapping[str, Path] = MappingProxyType({})) -> None:
        super().__init__(build_program("library", target, replaced=replaced, jobs=1))
        self._library.fakeCudaLastStream.restype = ctypes.c_void_p
        self._library.fakeCudaFinding.restype = ctypes.c_char_p
        self.problems: list[CudaProblem] = []

    def attend(self, problem: CudaProblem, addresses: DeviceAddresses, *, stream: int = 0) -> None:
        self.problems.append(problem)
        super().attend(problem, addresses, stream=stream)

    def set_compute_capability(self, capability: int) -> None:
        """0: there is no device."""
        self._library.fakeCudaSetComputeCapability(capability)

    def fail_launches(self, error: int) -> None:
        """0: they succeed again."""
        self._library.fakeCudaFailLaunches(error)

    @property
    def last_stream(self) -> int:
        return self._library.fakeCudaLastStream() or 0

    @property
    def finding(self) -> str:
        """What the last call did wrong; empty: nothing."""
        return str(self._library.fakeCudaFinding().decode())


@contextmanager
def library_with_mistake(folder: Path, right: str, wrong: str) -> Iterator[InterpretedLibrary]:
    """The library with `wrong` in place of `right` in its C functions, compiled from a copy in a folder of its own."""
    plugins = sources_folder() / "plugins"
    shutil.copytree(plugins / "cuda", folder / "plugins" / "cuda")
    (folder / "plugins" / "kernels").symlink_to(plugins / "kernels")
    source = folder / "plugins" / "cuda" / "hspan_cuda.cpp"
    text = source.read_text()
    assert right in text, "the C functions have changed; change the mistake as well"
    source.write_text(text.replace(right, wrong))
    library = InterpretedLibrary(replaced={source.name: folder / "plugins"})
    yield library
    library.path.unlink()
