"""The picture model: the bytes of a picture file in, the bytes of an upscaled one out, in tiles where needed.

Input `image` is UINT8 (1, n): the file. Output `upscaled` is UINT8 (1, m). Request parameter `format`: png (the
default), jpeg, webp, bmp or tiff. Pictures that Triton batched are worked on side by side; one that
fails does so alone.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.media.pictures import Picture, open_picture, whole_picture
from trt_hspan.media.writing import encode_image
from trt_hspan.serving.backend.tensors import (
    array_from_tensor,
    model_parameters,
    request_parameters,
    tensor_from_array,
)
from trt_hspan.serving.backend.tile_runner import BusyError, RawModel, TileRunner
from trt_hspan.serving.decoders import SUFFIXES
from trt_hspan.serving.limits import limits_from_parameters
from trt_hspan.upscaling.upscaler import upscale_array


class _CancelledError(Exception):
    """The client has gone."""


class ImageModel:
    """Triton's interface to a Python model; `model.py` calls it `TritonPythonModel`.

    Parameters of config.pbtxt: `raw_models` is a JSON list of `RawModel`, `scale` the network's, and the limits.
    """

    def initialize(self, args: dict[str, str]) -> None:
        import triton_python_backend_utils as pb_utils

        self._pb = pb_utils
        config = json.loads(args["model_config"])
        parameters = model_parameters(config)
        self._limits = limits_from_parameters(parameters, where=args["model_name"])
        models = [
            RawModel(name=item["name"], min=tuple(item["min"]), max=tuple(item["max"]))
            for item in json.loads(parameters["raw_models"])
        ]
        self._runner = TileRunner(
            pb_utils,
            models,
            scale=int(parameters["scale"]),
            patience_seconds=self._limits.queue_time_ms / 1000,
        )
        self._workers = ThreadPoolExecutor(max(1, int(config.get("max_batch_size", 1))))

    def finalize(self) -> None:
        self._workers.shutdown()

    def execute(self, requests: list[Any]) -> list[Any]:
        if len(requests) == 1:
            return [self._response(requests[0])]
        return list(self._workers.map(self._response, requests))

    def _response(self, request: Any) -> Any:
        codes = self._pb.TritonError
        try:
            data = self._upscaled(request)
            tensor = tensor_from_array(self._pb, "upscaled", np.frombuffer(data, np.uint8)[None].copy())
            return self._pb.InferenceResponse([tensor])
        except _CancelledError:
            message, code = "the client cancelled it", codes.CANCELLED
        except BusyError as error:
            message, code = str(error), codes.UNAVAILABLE
        except HspanError as error:
            message, code = str(error), codes.INVALID_ARG
        except MemoryError:
            message, code = "picture: too large for the server's memory", codes.UNAVAILABLE
        except Exception as error:  # noqa: BLE001 - the boundary: whatever happens, this one request gets an answer
            self._pb.Logger.log_error(f"unexpected {type(error).__name__}: {error}")
            message, code = f"picture: unexpected {type(error).__name__}", codes.INTERNAL
        return self._pb.InferenceResponse(error=self._pb.TritonError(message, code))

    def _upscaled(self, request: Any) -> bytes:
        suffix = self._suffix(request)
        values = array_from_tensor(self._pb.get_input_tensor_by_name(request, "image"))
        if values.ndim != 2 or values.shape[0] != 1:
            raise HspanError("image", f"has shape {values.shape}, expected (1, bytes): one picture a request")
        if values.size > self._limits.max_bytes:
            raise HspanError("image", f"has {values.size} bytes, this server takes {self._limits.max_bytes}")
        data = values.tobytes()
        picture = self._decoded(data)
        deadline = time.monotonic() + self._limits.work_time_ms / 1000

        def on_tile(done: int, total: int) -> None:
            if request.is_cancelled():
                raise _CancelledError
            if done < total and time.monotonic() > deadline:
                raise BusyError(
                    "picture", f"took longer than {self._limits.work_time_ms} ms", "send a smaller picture"
                )

        pixels = upscale_array(self._runner, picture.pixels, on_tile=on_tile)
        return encode_image(replace(picture, pixels=pixels), suffix)

    def _suffix(self, request: Any) -> str:
        name = request_parameters(request).get("format", "png")
        suffix = SUFFIXES.get(name.lower()) if isinstance(name, str) else None
        if suffix is None:
            raise UsageError("format", f"got {name!r}, expected one of {', '.join(SUFFIXES)}")
        return suffix

    def _decoded(self, data: bytes) -> Picture:
        """The picture; one that is too large is refused by its header, before it is decoded."""
        if not data:
            raise HspanError("picture", "is empty (0 bytes)", "send a PNG, JPEG, WebP, BMP, TIFF, GIF or PPM")
        opened = open_picture(data)
        if opened.size.pixels > self._limits.max_pixels:
            raise HspanError(
                "picture",
                f"has {opened.size} pixels, this server takes {self._limits.max_pixels} in all",
                "send smaller parts",
            )
        return whole_picture(opened)
