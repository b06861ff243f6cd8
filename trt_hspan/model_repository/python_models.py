"""What runs inside Triton: the Python models of a repository, whose `model.py` files import their class from here.

The raw model is what Triton's own TensorRT backend is for classic engines: float32 tensors in and out, on a CPU,
TensorRT-RTX, or an engine on a GPU. The picture model takes the bytes of a picture file, `image` (1, n), and gives
those of an upscaled one, `upscaled` (1, m), in the format that the request's parameter `format` names. It sends its
tiles through the raw models' own queues, so that those of several pictures are batched together.

*Measured* with Triton 2.51 (24.10) and NumPy 2: `pb_utils.Tensor(name, array)` sends 0 bytes, because the stub was
compiled for NumPy 1 and reads the item size from the wrong place. DLPack has no such layout to agree on. That stub
renames the capsule to "used_dlpack" where NumPy expects "used_dltensor", and NumPy then prints an error when the
capsule dies; so it is renamed once more here.
"""

from __future__ import annotations

import abc
import ctypes
import functools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError
from trt_hspan.machine.memory import keep_freed_memory
from trt_hspan.media.pictures import open_picture, whole_picture
from trt_hspan.media.writing import encode_image
from trt_hspan.runtime.opening import open_runner
from trt_hspan.runtime.runner import Float32Array
from trt_hspan.serving.admission import RefusedError, gone, refusal_from_error, suffix_from_format
from trt_hspan.serving.limits import limits_from_parameters
from trt_hspan.upscaling.scheduler import DeviceError, Job, Model, TileRunner, Unit
from trt_hspan.upscaling.upscaler import upscale_array

_CODES: Final = {499: "CANCELLED", 500: "INTERNAL", 503: "UNAVAILABLE"}
_RETRY_SECONDS: Final = 0.02
_USED: Final = b"used_dltensor"  # must outlive every capsule: the name is not copied
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.argtypes = (ctypes.py_object, ctypes.c_char_p)
_rename.restype = ctypes.c_int


class _Exported:
    """An array whose capsule stays within reach."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array
        self.capsule: Any = None

    def __dlpack__(self, **_: object) -> Any:
        self.capsule = self._array.__dlpack__()
        return self.capsule

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class _TritonModel(abc.ABC):
    """Triton's interface to a Python model. Parameters of config.pbtxt are the limits, and what a subclass says."""

    def initialize(self, args: dict[str, str]) -> None:
        import triton_python_backend_utils as pb_utils

        keep_freed_memory()
        self._pb, self._name = pb_utils, args["model_name"]
        config = json.loads(args["model_config"])
        parameters = {
            name: str(value["string_value"]) for name, value in config.get("parameters", {}).items()
        }
        try:
            self._limits = limits_from_parameters(parameters, where=self._name)
            self._open(args, parameters, max(1, int(config.get("max_batch_size", 1))))
        except HspanError as error:
            raise pb_utils.TritonModelException(str(error)) from error

    @abc.abstractmethod
    def _open(self, args: dict[str, str], parameters: dict[str, str], most: int) -> None:
        """Loads the model, of which `most` requests come at a time."""

    def _input(self, request: Any, name: str) -> npt.NDArray[Any]:
        """A tensor's values, read-only, without a copy; they live as long as the request. Raises: RefusedError."""
        if request.is_cancelled():
            raise gone()
        values: npt.NDArray[Any] = np.from_dlpack(self._pb.get_input_tensor_by_name(request, name))
        return values

    def _tensor(self, name: str, array: npt.NDArray[Any]) -> Any:
        """A Triton tensor of an array's type and shape; the array must not be changed afterwards."""
        exported = _Exported(np.ascontiguousarray(array))
        tensor = self._pb.Tensor.from_dlpack(name, exported)
        if exported.capsule is not None:
            _rename(exported.capsule, _USED)
        return tensor

    def _response(self, name: str, work: Callable[[], npt.NDArray[Any]]) -> Any:
        """What the work gives, or why not: a request that fails does so alone."""
        try:
            return self._pb.InferenceResponse([self._tensor(name, work())])
        except Exception as error:  # noqa: BLE001  # the boundary: whatever happens, there is an answer
            refused = refusal_from_error(error)
            if refused.status == 500:
                self._pb.Logger.log_error(f"{self._name}: {type(error).__name__}: {error}")
            code = getattr(self._pb.TritonError, _CODES.get(refused.status, "INVALID_ARG"))
            return self._pb.InferenceResponse(error=self._pb.TritonError(refused.message, code))


class RunnerModel(_TritonModel):
    """The raw model on one of our runners, on the GPU that Triton gave the instance, or on the CPU.

    Parameters: `source` is the engine's file and `plugin` its library's, beside `model.py`.
    """

    def _open(self, args: dict[str, str], parameters: dict[str, str], most: int) -> None:
        folder, plugin = Path(args["model_repository"]) / args["model_version"], parameters.get("plugin")
        on_gpu = args["model_instance_kind"] == "GPU"
        opener = functools.partial(
            open_runner,
            folder / parameters["source"],
            device=f"gpu:{args['model_instance_device_id']}" if on_gpu else "cpu",
            plugin=folder / plugin if plugin else None,
        )
        self._model = Model([opener], name=self._name, on_failure=self._end)
        self._model.open()
        runner = self._model.runner
        self._pb.Logger.log_info(f"{self._name}: {parameters['source']} on {runner.label}; {runner.picked}")

    def finalize(self) -> None:
        self._model.close()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request, in order; those of one shape run together."""
        works = [self._work(request) for request in requests]
        self._model.put([work for work in works if isinstance(work, Unit)])
        return [self._response("output", functools.partial(_result, work)) for work in works]

    def _work(self, request: Any) -> Unit | Exception:
        try:
            batch = self._input(request, "input")
            self._model.require_shape(batch.shape)
            pixels, most = batch.shape[2] * batch.shape[3], self._limits.max_pixels
            if pixels > most:
                raise RefusedError(400, f"input: has {pixels} pixels, this server takes {most}; send tiles")
            return Unit(job=Job(self._model), batch=batch)
        except (HspanError, RefusedError) as error:
            return error

    def _end(self, error: DeviceError) -> None:
        """Triton starts the process anew."""
        self._pb.Logger.log_error(f"{self._name}: {error}")
        os._exit(1)


def _result(work: Unit | Exception) -> Float32Array:
    if isinstance(work, Unit):
        return work.result.result()
    raise work


class ImageModel(_TritonModel):
    """The picture model. Pictures that Triton batched are worked on side by side.

    Parameters: `raw_models` is a JSON list of names with the smallest and largest (N, 3, H, W) that they take; `scale`
    is the network's.
    """

    def _open(self, args: dict[str, str], parameters: dict[str, str], most: int) -> None:
        buckets = [
            (each["name"], tuple(each["min"]), tuple(each["max"]))
            for each in json.loads(parameters["raw_models"])
        ]
        self._buckets = sorted(buckets, key=lambda bucket: bucket[2][2] * bucket[2][3])
        self._scale, self._size_multiple = int(parameters["scale"]), int(parameters.get("size_multiple", 1))
        self._workers = ThreadPoolExecutor(most)

    def finalize(self) -> None:
        self._workers.shutdown()

    def execute(self, requests: list[Any]) -> list[Any]:
        def response(request: Any) -> Any:
            return self._response("upscaled", functools.partial(self._upscaled, request))

        return list(self._workers.map(response, requests))

    def _upscaled(self, request: Any) -> npt.NDArray[Any]:
        suffix = suffix_from_format(_format(request))
        values = self._input(request, "image")
        if values.ndim != 2 or values.shape[0] != 1:
            raise HspanError("image", f"has shape {values.shape}, expected (1, bytes): one picture a request")
        if not 0 < values.size <= self._limits.max_bytes:
            raise HspanError(
                "image", f"has {values.size} bytes, this server takes 1 to {self._limits.max_bytes}"
            )
        opened = open_picture(values.tobytes())
        if opened.size.pixels > self._limits.max_pixels:
            what = f"has {opened.size} pixels, this server takes {self._limits.max_pixels} in all"
            raise HspanError("picture", what, "send smaller parts")
        picture = whole_picture(opened)
        deadline = time.monotonic() + self._limits.work_time_ms / 1000

        def on_tile(done: int, total: int) -> None:
            if request.is_cancelled():
                raise gone()
            if done < total and time.monotonic() > deadline:
                late = f"picture: took longer than {self._limits.work_time_ms} ms; send a smaller picture"
                raise RefusedError(503, late)

        ranges = tuple((low, high) for _, low, high in self._buckets)
        step = self._size_multiple
        runner = TileRunner(self._name, self._scale, ranges, self._results, size_multiple=step)
        pixels = upscale_array(runner, picture.pixels, on_tile=on_tile)
        data = encode_image(replace(picture, pixels=pixels), suffix)
        return np.frombuffer(bytearray(data), np.uint8)[None]

    def _results(self, batches: Iterable[Float32Array]) -> Iterator[Float32Array]:
        return map(self._run, batches)

    def _run(self, batch: Float32Array) -> Float32Array:
        """A tile on the smallest raw model that takes it, sent again while its queue is full."""
        name = next(
            name
            for name, low, high in self._buckets
            if all(a <= side <= b for a, side, b in zip(low, batch.shape, high, strict=True))
        )
        deadline = time.monotonic() + self._limits.queue_time_ms / 1000
        while True:
            tensors = [self._tensor("input", batch)]
            ask = self._pb.InferenceRequest(
                model_name=name, requested_output_names=["output"], inputs=tensors
            )
            response = ask.exec()
            if not response.has_error():
                return np.array(np.from_dlpack(self._pb.get_output_tensor_by_name(response, "output")))
            error = response.error()
            restarting = "is not healthy" in error.message()  # its process ended; Triton starts another
            if error.code() != self._pb.TritonError.UNAVAILABLE and not restarting:
                raise HspanError(name, error.message())
            if time.monotonic() > deadline:
                raise RefusedError(
                    503, f"{name} stayed too busy for this picture's tiles; send it again later"
                )
            time.sleep(_RETRY_SECONDS)


def _format(request: Any) -> str:
    """What the client asked for; "png" when it put no JSON object beside the tensors."""
    try:
        parameters = json.loads(request.parameters())
    except ValueError:
        parameters = None
    return str(parameters.get("format", "png")).lower() if isinstance(parameters, dict) else "png"
