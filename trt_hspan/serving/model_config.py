"""Triton's model configurations. The content of config.pbtxt, as the protobuf that Triton itself reads.

Source of the fields: Triton's model_config.proto, which tritonclient carries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trt_hspan.serving.limits import ServingLimits

Shape = tuple[int, int, int, int]
Backend = Literal["tensorrt", "python"]

IMAGE_BATCH = 4
#: Microseconds that Triton waits for company before it runs a batch that is not full. None: what waits while an
#: instance is busy is batched all the same, and *measured*, half a millisecond for each tile of a picture adds up.
BATCH_DELAY_US = 0


@dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """Input shapes that a network takes: smallest, tuned for, largest."""

    min: Shape
    opt: Shape
    max: Shape


@dataclass(frozen=True, kw_only=True)
class RawModelSpec:
    """A raw model: float32 `input` (N, 3, H, W) in, float32 `output` (N, 3, scale H, scale W) out.

    Attributes:
        ranges: what it takes; of an engine, its optimization profiles in their order.
        dynamic_batch: whether the network's first dimension is free.
        plans: for TensorRT: file name of the plan for each compute capability ("8.6"); "" is the default.
        parameters: for the Python backend, beside the limits.
        instances: copies of the model on each device.
    """

    name: str
    backend: Backend
    ranges: tuple[ShapeRange, ...]
    dynamic_batch: bool
    plans: Mapping[str, str]
    parameters: Mapping[str, str]
    instances: int = 1

    @property
    def max_batch(self) -> int:
        """How many pictures a request may contain.

        Triton's TensorRT backend fills batches up to it before it looks for a profile, so there every profile must
        take as many; ours in Python cuts a batch to what the profile of its size takes.
        """
        batches = [shapes.max[0] for shapes in self.ranges]
        return min(batches) if self.backend == "tensorrt" else max(batches)


def raw_model_config(spec: RawModelSpec, *, scale: int, limits: ServingLimits) -> Any:
    """The ModelConfig message of a raw model."""
    config = _new_config(spec.name, spec.backend, limits)
    config.max_batch_size = spec.max_batch if spec.dynamic_batch else 0
    ends = [shape for shapes in spec.ranges for shape in (shapes.min, shapes.max)]
    sides = [ends[0][axis] if len({end[axis] for end in ends}) == 1 else -1 for axis in (2, 3)]
    batch = [] if spec.dynamic_batch else [spec.max_batch]
    _add_tensor(config.input, "input", "TYPE_FP32", [*batch, 3, *sides])
    grown = [side * scale if side > 0 else -1 for side in sides]
    _add_tensor(config.output, "output", "TYPE_FP32", [*batch, 3, *grown])
    _set_queue(config, limits)
    group = config.instance_group.add(count=spec.instances)
    if spec.backend == "tensorrt":
        config.platform = "tensorrt_plan"
        group.kind = type(group).KIND_GPU
        group.profile.extend(str(index) for index in range(len(spec.ranges)))
        config.default_model_filename = spec.plans.get("", "")
        for capability, plan in spec.plans.items():
            if capability:
                config.cc_model_filenames[capability] = plan
    else:
        # Triton reads it as KIND_GPU with each of its GPUs, and as KIND_CPU where it has none.
        group.kind = type(group).KIND_AUTO
        _set_parameters(config, spec.parameters)
    _add_warmup(config, spec)
    return config


def image_model_config(
    name: str, raw_models: Sequence[RawModelSpec], *, scale: int, limits: ServingLimits, instances: int = 1
) -> Any:
    """The ModelConfig message of the picture model in front of these raw models."""
    config = _new_config(name, "python", limits)
    config.max_batch_size = IMAGE_BATCH
    tensor = _add_tensor(config.input, "image", "TYPE_UINT8", [-1])
    tensor.allow_ragged_batch = True  # files have different lengths, and each stays its own request
    _add_tensor(config.output, "upscaled", "TYPE_UINT8", [-1])
    _set_queue(config, limits)
    group = config.instance_group.add(count=instances)
    group.kind = type(group).KIND_CPU
    buckets = [
        {
            "name": raw.name,
            "min": list(shapes.min),
            "max": [min(raw.max_batch, shapes.max[0]), *shapes.max[1:]],
        }
        for raw in raw_models
        for shapes in raw.ranges
    ]
    _set_parameters(config, {"scale": str(scale), "raw_models": json.dumps(buckets)})
    return config


def config_text(config: Any) -> str:
    """The text of config.pbtxt."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))


def config_from_text(text: str) -> Any:
    """Parses config.pbtxt as Triton does. Raises: google.protobuf.text_format.ParseError."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _new_config(name: str, backend: Backend, limits: ServingLimits) -> Any:
    from tritonclient.grpc import model_config_pb2

    config = model_config_pb2.ModelConfig(name=name, backend=backend)
    config.version_policy.latest.num_versions = 1
    if backend == "python":
        _set_parameters(config, limits.as_parameters())
    return config


def _add_tensor(tensors: Any, name: str, kind: str, dims: Sequence[int]) -> Any:
    from tritonclient.grpc import model_config_pb2

    return tensors.add(name=name, data_type=model_config_pb2.DataType.Value(kind), dims=dims)


def _set_queue(config: Any, limits: ServingLimits) -> None:
    batching = config.dynamic_batching
    batching.max_queue_delay_microseconds = BATCH_DELAY_US
    if config.max_batch_size > 1:
        batching.preferred_batch_size.append(config.max_batch_size)
    policy = batching.default_queue_policy
    policy.max_queue_size = limits.queue_length
    policy.default_timeout_microseconds = limits.queue_time_ms * 1000
    policy.timeout_action = type(policy).REJECT
    policy.allow_timeout_override = True


def _set_parameters(config: Any, parameters: Mapping[str, str]) -> None:
    for name, value in parameters.items():
        config.parameters[name].string_value = value


def _add_warmup(config: Any, spec: RawModelSpec) -> None:
    """One request at each end of each range and at what it is tuned for, before the model counts as ready."""
    from tritonclient.grpc import model_config_pb2

    shapes = [shape for shapes in spec.ranges for shape in (shapes.min, shapes.opt, shapes.max)]
    if spec.backend == "python":  # on a CPU the largest size takes seconds and tunes nothing
        shapes = [shapes.min for shapes in spec.ranges]
    for n, *sizes in dict.fromkeys((min(shape[0], spec.max_batch), *shape[1:]) for shape in shapes):
        warmup = config.model_warmup.add(name="x".join(map(str, (n, *sizes))))
        warmup.batch_size = n if spec.dynamic_batch else 0
        tensor = warmup.inputs["input"]
        tensor.data_type = model_config_pb2.DataType.Value("TYPE_FP32")
        tensor.dims.extend(sizes if spec.dynamic_batch else (n, *sizes))
        tensor.random_data = True
