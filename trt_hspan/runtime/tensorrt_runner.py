"""An engine on a GPU. Loads a plan and a plugin library only when the engine's manifest vouches for both.

Built on Polygraphy's TrtRunner, for either TensorRT. It is written for checking engines, not for serving
them: every run copies from and to the host.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error, sha256_from_file
from trt_hspan.runtime.runner import CHANNELS, Float32Array, Runner, ShapeLimit

if TYPE_CHECKING:
    from trt_hspan.engine.manifest import EngineManifest

_NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
_BUILD_AGAIN = "build the engine again with trt-hspan build"


def engine_can_execute(manifest: EngineManifest) -> tuple[bool, str]:
    """Whether this machine has what the engine needs, and if not, why; nothing is loaded.

    Returns:
        (True, "") or (False, reason). True promises no success: TensorRT has the last word.
    """
    from trt_hspan.engine.gpu import gpu_architectures
    from trt_hspan.engine.tensorrt_api import installed_flavors

    gpus = gpu_architectures()
    if not gpus:
        return False, "no NVIDIA GPU with a driver here"
    if manifest.flavor not in installed_flavors():
        return False, f"{manifest.flavor} is not installed here"
    if manifest.targets and not set(gpus) & set(manifest.targets):
        return False, f"built for {', '.join(manifest.targets)}, this GPU is {', '.join(gpus)}"
    return True, ""


class TensorRtRunner(Runner):
    """Runs an engine on the first GPU.

    Args:
        plan: `NAME.plan` with its manifest `NAME.json` and model `NAME.onnx` beside it.
        plugin: the plugin library; None takes the one that `trt-hspan plugin build` writes. It must be the
            very one that the engine was built with.

    Raises:
        HspanError: plan, manifest or ONNX file missing or not of one build.
    """

    def __init__(self, plan: str | os.PathLike[str], *, plugin: str | os.PathLike[str] | None = None) -> None:
        from trt_hspan.engine.manifest import verify_manifest
        from trt_hspan.graph import load_onnx, metadata_from_model

        self._plan = Path(plan)
        self._manifest = verify_manifest(plan)
        self._plugin = None if plugin is None else Path(plugin)
        self.where = os.fspath(plan)
        self.name = f"{_NAMES[self._manifest.flavor]} {self._manifest.tensorrt_version}"
        self.precision = self._manifest.precision
        self.emulated = False
        self.scale = self._manifest.scale
        self.res_scale = metadata_from_model(
            load_onnx(self._plan.parent / self._manifest.onnx_file)
        ).res_scale
        self.source_sha256 = self._manifest.source_sha256
        self._trt: Any = None
        self._active: Any = None

    @property
    def min_shape(self) -> ShapeLimit:
        """The profile's smallest shape."""
        n, channels, height, width = self._manifest.profile.min
        return (n, channels, height, width)

    @property
    def max_shape(self) -> ShapeLimit:
        """The profile's largest shape."""
        n, channels, height, width = self._manifest.profile.max
        return (n, channels, height, width)

    def require_shape(self, shape: tuple[int, ...], what: object) -> None:
        """Checks the engine's profile. Raises: HspanError when the shape lies outside."""
        low, high = self._manifest.profile.min, self._manifest.profile.max
        if len(shape) != len(low) or not all(
            a <= size <= b for a, size, b in zip(low, shape, high, strict=True)
        ):
            limits = " to ".join("x".join(map(str, side)) for side in (low, high))
            raise HspanError(
                what,
                f"is {'x'.join(map(str, shape))}, but {self.where} takes {limits} (N x C x H x W)",
                "build the engine for larger or smaller pictures: --min, --max",
            )

    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """The result on the host; what the engine itself needs lies on the GPU."""
        n, _, height, width = shape
        return 4 * n * CHANNELS * height * width * (self.scale or 1) ** 2

    def activate(self) -> None:
        from trt_hspan.engine.tensorrt_api import load_plugin_library, load_tensorrt, tensorrt_logger
        from trt_hspan.runtime.polygraphy_setup import quiet_polygraphy

        possible, reason = engine_can_execute(self._manifest)
        if not possible:
            raise HspanError(
                self.where, f"cannot run: {reason}", "validate it on a CPU, or move to such a GPU"
            )
        trt = load_tensorrt(self._manifest.flavor)
        if trt.__version__ != self._manifest.tensorrt_version:
            raise HspanError(
                self.where,
                f"was built by version {self._manifest.tensorrt_version}, installed is {trt.__version__}",
                _BUILD_AGAIN,
            )
        if self._manifest.plugin is not None:
            load_plugin_library(trt, self._vouched_plugin())
        quiet_polygraphy(tensorrt_rtx=self._manifest.flavor == "tensorrt-rtx")
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        engine = EngineFromBytes(self._vouched_plan(), runtime=trt.Runtime(tensorrt_logger(trt)))
        runner = TrtRunner(engine, name=self.name)
        with _told(trt, self.where, "cannot be loaded", _BUILD_AGAIN):
            runner.activate()
        self._trt, self._active = trt, runner

    def deactivate(self) -> None:
        if self._active is not None:
            self._active.deactivate()
        self._active = None

    def infer(self, batch: Float32Array) -> Float32Array:
        from trt_hspan.graph import INPUT_NAME, OUTPUT_NAME

        if self._active is None:
            raise RuntimeError("the runner is not active: use it in a `with` block")
        with _told(self._trt, self.where, "failed on the GPU", None):
            outputs = self._active.infer({INPUT_NAME: batch})
        result: Float32Array = outputs[OUTPUT_NAME].copy()  # the runner reuses its buffer
        return result

    def _vouched_plan(self) -> bytes:
        """The plan's bytes, hashed after they were read: what is checked is what is loaded."""
        try:
            data = self._plan.read_bytes()
        except OSError as error:
            raise error_from_os_error(self._plan, error, action="read") from error
        if hashlib.sha256(data).hexdigest() != self._manifest.plan_sha256:
            raise HspanError(self._plan, "is not the plan that its manifest vouches for", _BUILD_AGAIN)
        return data

    def _vouched_plugin(self) -> Path:
        from trt_hspan.engine.plugin_library import default_plugin_path

        record = self._manifest.plugin
        assert record is not None
        path = self._plugin or default_plugin_path()
        found = sha256_from_file(path)
        if found != record.sha256:
            raise HspanError(
                path,
                f"SHA-256 is {found[:12]}..., but {self._plan.name} was built with {record.sha256[:12]}...",
                "name the plugin library that it was built with, or build the engine again",
            )
        return path


@contextmanager
def _told(trt: Any, where: str, what: str, next_step: str | None) -> Iterator[None]:
    """Turns what Polygraphy raises into one line with TensorRT's own words."""
    from polygraphy.exception import PolygraphyException

    from trt_hspan.engine.tensorrt_api import collected_log

    with collected_log(trt) as log:
        try:
            yield
        except PolygraphyException as error:
            cause = log.first_error or str(error).strip() or "TensorRT gives no reason"
            raise HspanError(where, f"{what}: {cause}", next_step) from error
