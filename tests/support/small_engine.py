"""A real engine that builds in a few seconds."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trt_hspan.engine.build import build_engine
from trt_hspan.engine.manifest import EngineManifest
from trt_hspan.engine.spec import EngineSpec, ProfileRequest
from trt_hspan.sizes import ImageSize


@dataclass(frozen=True)
class SmallEngine:
    """A plan with the files beside it. They must not be changed; `copy_to` gives some to spoil."""

    plan: Path
    manifest: EngineManifest

    @property
    def onnx(self) -> Path:
        return self.plan.parent / self.manifest.onnx_file

    def copy_to(self, folder: Path) -> Path:
        for suffix in (".plan", ".onnx", ".json"):
            shutil.copy(self.plan.with_suffix(suffix), folder)
        return folder / self.plan.name


SMALL_PROFILE = ProfileRequest(max=ImageSize(height=32, width=32))


def build_small_engine(
    folder: Path, onnx: Path, profiles: Sequence[ProfileRequest] = (SMALL_PROFILE,)
) -> SmallEngine:
    """TensorRT-RTX, function body, one target, pictures of up to 32x32 unless other profiles are given."""
    spec = EngineSpec(
        onnx=onnx,
        output=folder / "small.plan",
        flavor="tensorrt-rtx",
        profiles=tuple(profiles),
        targets=("sm_86",),
    )
    return SmallEngine(spec.output, build_engine(spec))
