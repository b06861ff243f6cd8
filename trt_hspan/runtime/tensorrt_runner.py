"""An engine on a GPU. Loads a plan and a plugin library only when both are those of the engine's manifest.

The order of opening and closing is here: passport, GPU, plugin, plan, session, and back. The work is elsewhere:
`passport` compares, `cuda_device` is PyCUDA, `engine_loading` TensorRT, `engine_session` the execution.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trt_hspan.engine.passport import build_command, built_for, require_match, this_machine
from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error
from trt_hspan.runtime.runner import CHANNELS, Float32Array, Runner

if TYPE_CHECKING:
    from trt_hspan.engine.manifest import EngineManifest
    from trt_hspan.runtime.cuda_device import CudaDevice
    from trt_hspan.runtime.engine_loading import LoadedEngine
    from trt_hspan.runtime.engine_session import EngineSession

_Part = TypeVar("_Part")
_NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


def engine_can_execute(manifest: EngineManifest, *, index: int = 0) -> tuple[bool, str]:
    """Whether this machine has what the engine needs, and if not, why; nothing is loaded.

    Args:
        manifest: the engine's.
        index: of the GPU, in CUDA's order.

    Returns:
        (True, "") or (False, reason). True promises no success: versions and the plugin are compared when the
        engine is opened, and TensorRT has the last word.
    """
    machine = this_machine(index)
    if machine.architecture is None:
        error = machine.driver.error
        return False, f"there is no GPU {index} here" if error is None else error.what
    if manifest.flavor not in machine.flavors:
        return False, f"{manifest.flavor} is not installed here"
    if not built_for(manifest, machine.architecture):
        targets = ", ".join(manifest.targets) or "TensorRT-RTX's default set"
        return False, f"built for {targets}, this GPU is {machine.architecture}"
    return True, ""


class TensorRtRunner(Runner):
    """Runs an engine on a GPU.

    Args:
        plan: `NAME.plan` with its manifest `NAME.json` and model `NAME.onnx` beside it.
        plugin: the plugin library; None takes the one that `trt-hspan plugin build` writes. It must be the
            very one that the engine was built with.
        index: of the GPU, in CUDA's order.
        use_graphs: whether shapes that repeat are replayed as CUDA graphs.
        timing: whether `session.last_times` is filled with each batch's GPU times.

    Raises:
        HspanError: plan, manifest or ONNX file missing or not of one build.
    """

    on_gpu = True

    def __init__(
        self,
        plan: str | os.PathLike[str],
        *,
        plugin: str | os.PathLike[str] | None = None,
        index: int = 0,
        use_graphs: bool = True,
        timing: bool = False,
    ) -> None:
        from trt_hspan.engine.manifest import verify_manifest
        from trt_hspan.graph import load_onnx
        from trt_hspan.runtime.onnxruntime_session import described, scale_of

        self._plan = Path(plan)
        self._manifest = verify_manifest(plan)
        self._plugin = None if plugin is None else Path(plugin)
        self._index, self._use_graphs, self._timing = index, use_graphs, timing
        self.where = os.fspath(plan)
        self.name = f"{_NAMES[self._manifest.flavor]} {self._manifest.tensorrt_version}"
        self.precision = self._manifest.precision
        self.emulated = False
        self.profiles = self._manifest.shape_ranges
        metadata = described(load_onnx(self._plan.parent / self._manifest.onnx_file), self.where)
        self.scale, self.res_scale = scale_of(metadata, self.where), metadata.res_scale
        self.size_multiple, self.min_size = metadata.size_multiple or 1, metadata.min_size or 1
        self.source_sha256 = self._manifest.source_sha256
        self._device: CudaDevice | None = None
        self._engine: LoadedEngine | None = None
        self._session: EngineSession | None = None
        self._cache_read: bytes | None = None

    @property
    def session(self) -> EngineSession:
        """The execution, for memory, graphs and times.

        Raises:
            RuntimeError: the runner is not active.
        """
        return _active(self._session)

    @property
    def device(self) -> CudaDevice:
        """The GPU. Raises: RuntimeError when the runner is not active."""
        return _active(self._device)

    def layer_information(self) -> str:
        """The built engine's layers, as TensorRT's inspector writes them in JSON.

        Raises:
            RuntimeError: the runner is not active.
        """
        with self.device.current():
            return _active(self._engine).layer_information()

    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """Input and result on the host, pinned and as handed over; what the engine itself needs is on the GPU."""
        n, _, height, width = shape
        return 2 * 4 * n * CHANNELS * height * width * (1 + self.scale**2)

    def activate(self) -> None:
        from trt_hspan.engine.tensorrt_api import load_plugin_library, load_tensorrt
        from trt_hspan.native.plugin import default_plugin_path
        from trt_hspan.runtime.cuda_device import CudaDevice
        from trt_hspan.runtime.engine_loading import LoadedEngine
        from trt_hspan.runtime.engine_session import EngineSession

        machine = this_machine(self._index)
        require_match(self._plan, self._manifest, machine, plugin=self._plugin)
        plan = self._verified_plan()
        trt = load_tensorrt(self._manifest.flavor)
        device = CudaDevice(self._index, self.where)
        device.open()
        self._device = device
        # nvidia-smi and CUDA may number GPUs differently: compare with the one that was really opened.
        opened = dataclasses.replace(machine, architecture=device.architecture)
        require_match(self._plan, self._manifest, opened, plugin=self._plugin)
        with device.current():
            if self._manifest.needs_library:
                load_plugin_library(trt, self._plugin or default_plugin_path())
            self._cache_read = self._read_cache(trt)
            self._engine = LoadedEngine(
                trt, plan, self.where, traits=self._manifest.traits, cache=self._cache_read
            )
        self._session = EngineSession(self._engine, device, use_graphs=self._use_graphs, timing=self._timing)
        self._session.open()

    def deactivate(self) -> None:
        """Frees everything, in the order in which it depends on each other; keeps what TensorRT-RTX compiled."""
        session, engine, device = self._session, self._engine, self._device
        self._session = self._engine = self._device = None
        if session is not None:
            session.close()
        if engine is not None and device is not None:
            with device.current():
                if session is not None:
                    self._keep_cache(engine)
                engine.close()

    def infer(self, batch: Float32Array) -> Float32Array:
        return self.session.run(batch)

    def run_many(self, batches: Iterable[Float32Array]) -> Iterator[Float32Array]:
        """As `Runner.run_many`, with upload, compute and download of up to three batches overlapped.

        Raises:
            RuntimeError: another `run_many` has not ended yet.
            HspanError: as `run`.
        """
        shapes: list[tuple[int, ...]] = []

        def checked() -> Iterator[Float32Array]:
            for batch in batches:
                shapes.append(batch.shape)
                yield self._checked_input(batch)

        for output in self.session.run_many(checked()):
            self._check_output(shapes.pop(0), output)
            yield output

    def _verified_plan(self) -> bytes:
        """The plan's bytes, hashed after they were read: what is checked is what is loaded."""
        try:
            data = self._plan.read_bytes()
        except OSError as error:
            raise error_from_os_error(self._plan, error, action="read") from error
        if hashlib.sha256(data).hexdigest() != self._manifest.plan_sha256:
            rebuild = build_command(self._plan, self._manifest, self._plugin)
            raise HspanError(self._plan, "is not the plan of its manifest", rebuild)
        return data

    def _read_cache(self, trt: Any) -> bytes | None:
        from trt_hspan.runtime.runtime_cache import read_runtime_cache, runtime_cache_path

        if self._manifest.flavor != "tensorrt-rtx":
            return None
        return read_runtime_cache(
            runtime_cache_path(self._plan),
            plan_sha256=self._manifest.plan_sha256,
            tensorrt_version=trt.__version__,
        )

    def _keep_cache(self, engine: LoadedEngine) -> None:
        from trt_hspan.runtime.runtime_cache import runtime_cache_path, write_runtime_cache

        data = engine.runtime_cache_data()
        if data is not None and data != self._cache_read:
            write_runtime_cache(
                runtime_cache_path(self._plan),
                data,
                plan_sha256=self._manifest.plan_sha256,
                tensorrt_version=self._manifest.tensorrt_version,
            )


def _active(part: _Part | None) -> _Part:
    if part is None:
        raise RuntimeError("the runner is not active: use it in a `with` block")
    return part
