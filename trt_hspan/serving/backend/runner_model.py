"""The raw model on one of our runners: float32 tensors in, float32 tensors out.

This is what Triton's own TensorRT backend does for classic engines; here it is a CPU runner, TensorRT-RTX, or an engine
on a GPU. Requests that Triton batched and that have one shape run as one batch.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from trt_hspan.errors import HspanError
from trt_hspan.machine.memory import keep_freed_memory
from trt_hspan.runtime.opening import open_runner
from trt_hspan.serving.backend.tensors import array_from_tensor, model_parameters, tensor_from_array
from trt_hspan.serving.limits import limits_from_parameters
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tile_size import batch_limits


class RunnerModel:
    """Triton's interface to a Python model; `model.py` calls it `TritonPythonModel`.

    Parameters of config.pbtxt: `source` is the engine's file and `plugin` its library's, beside `model.py`; and the
    limits. An instance runs on the GPU that Triton gave it, or emulated on the CPU where it has none.
    """

    def initialize(self, args: dict[str, str]) -> None:
        import triton_python_backend_utils as pb_utils

        keep_freed_memory()
        self._pb = pb_utils
        parameters = model_parameters(json.loads(args["model_config"]))
        name = args["model_name"]
        self._limits = limits_from_parameters(parameters, where=name)
        folder = Path(args["model_repository"]) / args["model_version"]
        plugin = parameters.get("plugin")
        on_gpu = args["model_instance_kind"] == "GPU"
        try:
            runner = open_runner(
                folder / parameters["source"],
                device=f"gpu:{args['model_instance_device_id']}" if on_gpu else "cpu",
                plugin=folder / plugin if plugin else None,
            )
            self._runner = runner.__enter__()
        except HspanError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        pb_utils.Logger.log_info(f"{name}: {runner.where} on {runner.label}; {runner.picked}")

    def finalize(self) -> None:
        self._runner.__exit__(None, None, None)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request, in order; a request that fails does so alone."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        inputs = []
        for index, request in enumerate(requests):
            inputs.append(array_from_tensor(self._pb.get_input_tensor_by_name(request, "input")))
            if request.is_cancelled():
                responses[index] = self._refusal("the client cancelled it", "CANCELLED")
                continue
            try:
                self._check(inputs[index].shape)
            except HspanError as error:
                responses[index] = self._refusal(str(error), "INVALID_ARG")
                continue
            groups[inputs[index].shape].append(index)
        for members in groups.values():
            for part in self._parts(members, inputs):
                for index, response in zip(part, self._run(part, inputs), strict=True):
                    responses[index] = response
        return responses

    def _check(self, shape: tuple[int, ...]) -> None:
        self._runner.require_shape((max(shape[0], self._least(shape)), *shape[1:]), "input")
        pixels = shape[-2] * shape[-1]
        if pixels > self._limits.max_pixels:
            raise HspanError(
                "input", f"has {pixels} pixels, this server takes {self._limits.max_pixels}", "send tiles"
            )

    def _least(self, shape: tuple[int, ...]) -> int:
        """How many items the network takes at least, of this size; fewer are filled up with the last one."""
        return batch_limits(self._runner, ImageSize(*shape[-2:]), requested=shape[0])[0]

    def _parts(self, members: list[int], inputs: list[Any]) -> list[list[int]]:
        """The requests of one shape in batches that the runner takes of it."""
        items, _, height, width = inputs[members[0]].shape
        everything = items * len(members)
        _, most = batch_limits(self._runner, ImageSize(height, width), requested=everything)
        count = max(1, most // items)
        return [members[start : start + count] for start in range(0, len(members), count)]

    def _run(self, members: list[int], inputs: list[Any]) -> list[Any]:
        batch = np.concatenate([inputs[index] for index in members])  # a copy: Triton's own is read-only
        missing = max(0, self._least(batch.shape) - len(batch))
        filled = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch
        try:
            output = self._runner.run(filled)[: len(batch)]
        except HspanError as error:
            if len(members) > 1:
                return [response for index in members for response in self._run([index], inputs)]
            return [self._refusal(str(error), "INTERNAL")]
        sizes = [inputs[index].shape[0] for index in members]
        parts = np.split(output, np.cumsum(sizes)[:-1])
        return [self._pb.InferenceResponse([tensor_from_array(self._pb, "output", part)]) for part in parts]

    def _refusal(self, message: str, code: str) -> Any:
        return self._pb.InferenceResponse(
            error=self._pb.TritonError(message, getattr(self._pb.TritonError, code))
        )
