"""The models of a Triton repository: which engines are one model, and what its config.pbtxt says.

Source of the configuration's fields: Triton's model_config.proto, which tritonclient carries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trt_hspan.engine.families import EngineFamily, Member, families_from_engines
from trt_hspan.engine.manifest import ProfileRecord, manifest_path
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.serving.limits import ServingLimits
from trt_hspan.serving.v2 import model_name_from_text

Backend = Literal["tensorrt", "python"]
BackendChoice = Literal["auto", "tensorrt", "python"]
IMAGE_BATCH = 4
#: Microseconds that Triton waits for company before it runs a batch that is not full. None: what waits while an
#: instance is busy is batched all the same, and *measured*, half a millisecond for each tile of a picture adds up.
BATCH_DELAY_US = 0


@dataclass(frozen=True, kw_only=True)
class RawModel:
    """A raw model: float32 `input` (N, 3, H, W) in, float32 `output` (N, 3, scale H, scale W) out.

    Attributes:
        profiles: what it takes: the optimization profiles of its engines, in their order.
        dynamic_batch: whether the network's first dimension is free.
        files: of its version folder, by their names there.
        plans: for TensorRT: file name of the plan for each compute capability ("8.6"); "" is the default.
        parameters: for the Python backend, beside the limits.
        instances: copies of the model on each device.
    """

    name: str
    backend: Backend
    profiles: tuple[ProfileRecord, ...]
    dynamic_batch: bool
    files: Mapping[str, Path]
    plans: Mapping[str, str]
    parameters: Mapping[str, str]
    instances: int = 1

    @property
    def max_batch(self) -> int:
        """How many pictures a request may contain.

        Triton's TensorRT backend fills batches up to it before it looks for a profile, so there every profile must
        take as many; ours in Python cuts a batch to what the profile of its size takes.
        """
        batches = [profile.max[0] for profile in self.profiles]
        return min(batches) if self.backend == "tensorrt" else max(batches)


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network: raw models that differ in shapes, and the picture model in front of them."""

    name: str
    family: EngineFamily
    raw_models: tuple[RawModel, ...]

    @property
    def image_name(self) -> str:
        """Of the picture model."""
        return f"{self.name}_image"

    @property
    def model_names(self) -> tuple[str, ...]:
        """Raw models first, which the picture model needs."""
        return (*(raw.name for raw in self.raw_models), self.image_name)


def networks_from_engines(
    engines: Sequence[Path],
    *,
    backend: BackendChoice = "auto",
    name: str | None = None,
    plugin: Path | None = None,
    instances: int = 1,
) -> list[Network]:
    """The networks behind some engines.

    Engines of one network become one network: those of the same profiles for several GPUs one raw model, others one
    each, between which the picture model chooses. An engine is loaded once on a GPU, whatever the number of profiles.

    Args:
        backend: "auto" takes Triton's TensorRT backend for TensorRT, and ours in Python for TensorRT-RTX, which
            Triton has no backend for.
        name: of the network; only when there is one.
        plugin: as for `families_from_engines`.
        instances: copies of each raw model on a device.

    Raises:
        HspanError, UsageError: as `families_from_engines`; engines that the backend does not run, or not together.
    """
    if not engines:
        raise UsageError("serve export", "no engine given", "name .plan files that trt-hspan build wrote")
    families = families_from_engines(engines, plugin=plugin)
    if name is not None and len(families) > 1:
        what = f"is for one network, the engines are of {len(families)}"
        raise UsageError("--name", what, "leave it out: files name them")
    networks = [_network(family, backend, name, instances) for family in families]
    names = [each for network in networks for each in network.model_names]
    if twice := sorted({each for each in names if names.count(each) > 1}):
        what = f"two models would be called {twice[0]}"
        raise UsageError("serve export", what, "rename the engines' files")
    return networks


def _network(family: EngineFamily, backend: BackendChoice, name: str | None, instances: int) -> Network:
    engine = family.members[0][0]
    if backend == "tensorrt" and family.flavor != "tensorrt":
        raise HspanError(
            engine,
            f"is built by {family.flavor}, and Triton's TensorRT backend runs engines of tensorrt only",
            "leave out --backend or give --backend python, or build it with --flavor tensorrt",
        )
    chosen: Backend = "python" if backend == "python" or family.flavor != "tensorrt" else "tensorrt"
    base = model_name_from_text(name or engine.stem)
    groups, raw_models = family.by_profiles(), dict[str, RawModel]()
    for members in groups:
        (first, manifest), raw_name = members[0], base
        if len(groups) > 1 and name is None:
            raw_name = model_name_from_text(first.stem)
        elif len(groups) > 1:
            size = max((profile.sizes[2] for profile in manifest.profiles), key=lambda size: size.pixels)
            raw_name = f"{base}_{size}"
        if raw_name in raw_models:
            raw_name = f"{raw_name}_{len(raw_models) + 1}"
        plans, parameters, files = (_python if chosen == "python" else _tensorrt)(members, family.plugin)
        raw_models[raw_name] = RawModel(
            name=raw_name,
            backend=chosen,
            profiles=manifest.profiles,
            dynamic_batch=next(t for t in manifest.io_tensors if t.mode == "input").shape[0] < 0,
            files=files,
            plans=plans,
            parameters=parameters,
            instances=instances,
        )
        least, most = max(profile.min[0] for profile in manifest.profiles), raw_models[raw_name].max_batch
        if least > most:
            what = f"one of its profiles takes at most {most} pictures at a time, another at least {least}"
            raise HspanError(first, what, "export it with --backend python, or build an engine for each")
    return Network(name=base, family=family, raw_models=tuple(raw_models.values()))


_Contents = tuple[dict[str, str], dict[str, str], dict[str, Path]]


def _python(members: list[Member], plugin: Path | None) -> _Contents:
    """Plans by compute capability, parameters, and files of a raw model on our runners."""
    if len(members) > 1:
        raise UsageError(
            members[1][0],
            f"has the same shapes as {members[0][0].name}, and the Python backend runs one of them",
            "export them as repositories of their own",
        )
    engine, manifest = members[0]
    beside = [engine, manifest_path(engine), engine.parent / manifest.onnx_file]
    parameters = {"source": engine.name}
    if plugin is not None:
        beside.append(plugin)
        parameters["plugin"] = plugin.name
    return {}, parameters, {path.name: path for path in beside}


def _tensorrt(members: list[Member], _: Path | None) -> _Contents:
    """The same of a raw model on Triton's TensorRT backend, which gets the plugin library from start.sh."""
    alone = len(members) == 1
    plans, files = dict[str, str](), dict[str, Path]()
    for engine, manifest in members:
        file = "model.plan" if alone else f"model_{'_'.join(manifest.targets)}.plan"
        files[file] = engine
        for capability in (f"{target[3:-1]}.{target[-1]}" for target in manifest.targets):
            if capability in plans:
                what = f"is for compute capability {capability} and shapes that another engine is for too"
                raise UsageError(engine, what, "name one of them")
            plans[capability] = file
    return plans | ({"": "model.plan"} if alone else {}), {}, files


def raw_model_config(raw: RawModel, *, scale: int, limits: ServingLimits) -> Any:
    """The ModelConfig message of a raw model."""
    ends = [shape for profile in raw.profiles for shape in (profile.min, profile.max)]
    sides = [ends[0][axis] if len({end[axis] for end in ends}) == 1 else -1 for axis in (2, 3)]
    grown = [side * scale if side > 0 else -1 for side in sides]
    batch = [] if raw.dynamic_batch else [raw.max_batch]
    fields: dict[str, Any]
    if raw.backend == "tensorrt":
        fields = {
            "platform": "tensorrt_plan",
            "instance_group": {"kind": "KIND_GPU", "profile": [str(n) for n in range(len(raw.profiles))]},
            "default_model_filename": raw.plans.get("", ""),
            "cc_model_filenames": {key: plan for key, plan in raw.plans.items() if key},
        }
    else:
        # Triton reads it as KIND_GPU with each of its GPUs, and as KIND_CPU where it has none.
        fields = {"instance_group": {"kind": "KIND_AUTO"}, "parameters": raw.parameters}
    fields["instance_group"]["count"] = raw.instances
    # One request at each end of each range and at what it is tuned for, before the model counts as ready; on a CPU the
    # largest size takes seconds and tunes nothing.
    shapes = [
        shape
        for profile in raw.profiles
        for shape in (
            (profile.min, profile.opt, profile.max) if raw.backend == "tensorrt" else (profile.min,)
        )
    ]
    fields["model_warmup"] = [
        {
            "name": "x".join(map(str, (n, *sizes))),
            "batch_size": n if raw.dynamic_batch else 0,
            "inputs": {
                "input": {
                    "data_type": "TYPE_FP32",
                    "dims": sizes if raw.dynamic_batch else [n, *sizes],
                    "random_data": True,
                }
            },
        }
        for n, *sizes in dict.fromkeys((min(shape[0], raw.max_batch), *shape[1:]) for shape in shapes)
    ]
    return _config(
        limits,
        name=raw.name,
        backend=raw.backend,
        max_batch_size=raw.max_batch if raw.dynamic_batch else 0,
        input=[{"name": "input", "data_type": "TYPE_FP32", "dims": [*batch, 3, *sides]}],
        output=[{"name": "output", "data_type": "TYPE_FP32", "dims": [*batch, 3, *grown]}],
        **fields,
    )


def image_model_config(network: Network, *, limits: ServingLimits) -> Any:
    """The ModelConfig message of the picture model in front of the raw models."""
    buckets = [
        {"name": raw.name, "min": p.min, "max": [min(raw.max_batch, p.max[0]), *p.max[1:]]}
        for raw in network.raw_models
        for p in raw.profiles
    ]
    files = {"data_type": "TYPE_UINT8", "dims": [-1]}
    return _config(
        limits,
        name=network.image_name,
        backend="python",
        max_batch_size=IMAGE_BATCH,
        # Files have different lengths, and each stays its own request.
        input=[{"name": "image", "allow_ragged_batch": True, **files}],
        output=[{"name": "upscaled", **files}],
        instance_group={"kind": "KIND_CPU", "count": 1},
        parameters={
            "scale": str(network.family.scale),
            "size_multiple": str(network.family.size_multiple),
            "raw_models": json.dumps(buckets),
        },
    )


def config_text(config: Any) -> str:
    """The text of config.pbtxt."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))


def config_from_text(text: str) -> Any:
    """Parses config.pbtxt as Triton does. Raises: google.protobuf.text_format.ParseError."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _config(limits: ServingLimits, **fields: Any) -> Any:
    """A message of these fields, and of what all models have."""
    from google.protobuf import json_format
    from tritonclient.grpc import model_config_pb2

    most = fields["max_batch_size"]
    policy = {
        "max_queue_size": limits.queue_length,
        "default_timeout_microseconds": limits.queue_time_ms * 1000,
        "timeout_action": "REJECT",
        "allow_timeout_override": True,
    }
    batching: dict[str, Any] = {
        "preferred_batch_size": [most] if most > 1 else [],
        "default_queue_policy": policy,
    }
    batching["max_queue_delay_microseconds"] = BATCH_DELAY_US
    if fields["backend"] == "python":
        texts = {**asdict(limits), **fields.get("parameters", {})}
        fields["parameters"] = {name: {"string_value": str(value)} for name, value in texts.items()}
    fields["instance_group"] = [fields["instance_group"]]
    fields |= {"version_policy": {"latest": {"num_versions": 1}}, "dynamic_batching": batching}
    return json_format.ParseDict(fields, model_config_pb2.ModelConfig())
