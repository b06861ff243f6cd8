"""The native CPU library, compiled where it is missing or out of date."""

from __future__ import annotations

import pytest

from trt_hspan.ops.native import NativeLibrary
from trt_hspan.ops.native_build import build_native_library


@pytest.fixture(scope="session")
def library() -> NativeLibrary:
    return NativeLibrary(build_native_library().path)
