"""What a file is: engine, ONNX model, checkpoint or library; behind `trt-hspan inspect`.

No code of a library runs, and a plan is opened only on a machine that can run it. Checkpoints need PyTorch.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import sha256_from_file
from trt_hspan.machine.install_advice import install_command
from trt_hspan.names import OP_TYPE

if TYPE_CHECKING:
    import onnx

    from trt_hspan.engine.manifest import EngineManifest


Kind = Literal["engine", "onnx", "checkpoint", "plugin", "CPU library", "CUDA library"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer, node or weight.

    Attributes:
        name: as in the file.
        type: operator, layer type, or kind of weight.
        precision: of its result or values, such as "float16"; None when the file does not say.
        shape: of its result or values; free dimensions keep their names, None when the file does not say.
    """

    name: str
    type: str
    precision: str | None = None
    shape: tuple[int | str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A file, described.

    Attributes:
        path: the file or preset.
        kind: what it is.
        facts: names and plain values: who built it, precisions, profiles, memory.
        layers: in the file's order.
        layers_from: where the layers were read.
    """

    path: str
    kind: Kind
    facts: dict[str, Any]
    layers: tuple[Layer, ...] = field(default=())
    layers_from: str = "the file"


def inspect_file(source: str | os.PathLike[str]) -> Inspection:
    """Describes a file.

    Args:
        source: `.plan` with its manifest beside it, `.onnx`, `.pt`, `.pth`, `.safetensors` or a preset's name, or a
            compiled library `.so`.

    Raises:
        HspanError: missing, damaged, or not a file of this project.
        UsageError: no such suffix.

    Example:
        >>> from trt_hspan.inspection.files import inspect_file
        >>> inspection = inspect_file("hspan-tiny-x2")
        >>> inspection.kind, inspection.facts["parameters"], len(inspection.layers)
        ('checkpoint', 144738, 51)
    """
    path = Path(source)
    readers: dict[str, Callable[[Path], Inspection]] = {
        ".plan": _inspect_engine,
        ".onnx": _inspect_onnx,
        ".so": _inspect_library,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        return _inspect_checkpoint(os.fspath(source))
    if not path.is_file():
        raise HspanError(path, "no such file" if not path.exists() else "is not a file", "check the path")
    return reader(path)


def _inspect_engine(plan: Path) -> Inspection:
    """Describes an engine from its manifest; layers come from TensorRT where it can run here, else from the ONNX file.

    A plan or model that does not match its manifest is described too, and the fact `vouched_for` says what is wrong.
    """
    from trt_hspan.engine.manifest import read_manifest, verify_manifest
    from trt_hspan.graph import load_onnx

    manifest = read_manifest(plan)
    try:
        verify_manifest(plan)
        verified = "plan and ONNX file are those of the manifest"
    except HspanError as error:
        verified = f"NO: {error}"
    record = json.loads(manifest.as_json())
    facts = {
        "built_by": f"{manifest.flavor} {manifest.tensorrt_version}, trt-hspan {manifest.tool_version}",
        "built_at": manifest.created_utc,
        "build_time_seconds": round(manifest.build_time_seconds, 2),
        "vouched_for": verified,
        "traits": record["traits"] or "none: for this TensorRT release and these GPUs only",
        "timing_cache_sha256": manifest.timing_cache_sha256,
        "precision": manifest.precision,
        "base_precision": manifest.base_precision,
        "quantization": record["quantization"],
        "targets": record["targets"] or "TensorRT-RTX's default set",
        "attention": manifest.attention,
        "plugin": record["plugin"],
        "scale": manifest.scale,
        "size_multiple": manifest.size_multiple,
        "profiles": record["profiles"],
        "tensors": record["io_tensors"],
        "plan_bytes": manifest.plan_size_bytes,
        "activation_memory_bytes": manifest.activation_memory_bytes,
        "activation_memory_from": manifest.activation_memory_source,
        "weights_memory_bytes": manifest.weights_memory_bytes,
        "layers_of_the_network": record["network_layer_counts"],
        "layers_of_the_engine": record["engine_layer_counts"],
        "onnx_file": manifest.onnx_file,
        "checkpoint_sha256": manifest.source_sha256,
        "plan_sha256": manifest.plan_sha256,
    }
    where = "TensorRT's inspector"
    layers = None if verified.startswith("NO") else _layers_by_tensorrt(plan, manifest)
    if layers is None:
        where, layers = f"{manifest.onnx_file}, because the engine cannot be opened here", ()
        with suppress(
            HspanError, ValueError
        ):  # `vouched_for` says so already; the name itself may be invalid
            layers = _onnx_layers(load_onnx(plan.parent / manifest.onnx_file))
    return Inspection(path=str(plan), kind="engine", facts=facts, layers=layers, layers_from=where)


def _inspect_onnx(path: Path) -> Inspection:
    from onnx import helper

    from trt_hspan.graph import (
        attention_nodes,
        metadata_from_model,
        model_in_own_domain,
        precision_from_model,
        quantization_from_model,
        read_onnx,
    )

    written = read_onnx(path)
    model = model_in_own_domain(written)
    metadata, quantization = metadata_from_model(model), quantization_from_model(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    bytes_of: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        itemsize = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        bytes_of[_type_name(tensor.data_type)] += math.prod(tensor.dims) * itemsize
    facts = {
        "built_by": f"trt-hspan {metadata.tool_version}"
        if metadata.tool_version
        else " ".join(filter(None, (model.producer_name, model.producer_version))) or None,
        "architecture": metadata.architecture,
        "precision": precision_from_model(model),
        "quantization": None if quantization is None else asdict(quantization),
        "scale": metadata.scale,
        "size_multiple": metadata.size_multiple,
        "min_size": metadata.min_size,
        "residual_scale": metadata.res_scale,
        "opset": {item.domain or "ai.onnx": item.version for item in written.opset_import},
        "inputs": {v.name: _value_text(v) for v in model.graph.input if v.name not in weights},
        "outputs": {v.name: _value_text(v) for v in model.graph.output},
        "attention_nodes": len(attention_nodes(model)),
        "attention_has_a_function_body": bool(model.functions),
        "nodes": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "weights_memory_bytes": sum(bytes_of.values()),
        "weights_memory_by_type": dict(bytes_of),
        "file_bytes": path.stat().st_size,
        "checkpoint_sha256": metadata.source_sha256,
        "file_sha256": sha256_from_file(path),
    }
    return Inspection(path=str(path), kind="onnx", facts=facts, layers=_onnx_layers(model))


def _inspect_checkpoint(source: str) -> Inspection:
    if importlib.util.find_spec("torch") is None:
        raise HspanError(
            source, "PyTorch, which reads checkpoints, is not installed", install_command("export")
        )
    from trt_hspan.model.checkpoint import load_model, source_sha256

    try:
        model = load_model(source)
    except UsageError as error:
        raise UsageError(
            error.where, error.what, "name a .plan, .onnx, .pt, .pth, .safetensors or .so, or a preset"
        ) from error
    config = model.config
    state = model.state_dict()
    parameters = sum(tensor.numel() for tensor in state.values())
    layers = tuple(
        Layer(
            name=name,
            type="bias" if name.endswith("bias") else "weight",
            precision=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
        )
        for name, tensor in state.items()
    )
    facts = {
        "architecture": config.name,
        "scale": config.scale,
        "features": config.n_feats,
        "modules": config.n_groups,
        "blocks_per_module": config.n_blocks,
        "query_channels": config.query_channels,
        "residual_scale": "not stored in official checkpoints; 0.1 unless the file or --res-scale says otherwise",
        "parameters": parameters,
        "keys": len(state),
        "weights_memory_bytes": sum(tensor.numel() * tensor.element_size() for tensor in state.values()),
        "sha256": source_sha256(source),
    }
    return Inspection(path=source, kind="checkpoint", facts=facts, layers=layers)


def _inspect_library(path: Path) -> Inspection:
    """Describes the compiled TensorRT plugin, or the attention's library for CPUs or GPUs; no code of it runs."""
    from trt_hspan.native.cpu_attention import source_sha256_from_library
    from trt_hspan.native.cuda_attention import state_of_library
    from trt_hspan.native.plugin import plugin_info_from_library

    facts: dict[str, Any]
    try:
        info = plugin_info_from_library(path)
    except HspanError:
        if (sources := source_sha256_from_library(path)) is not None:
            facts = {"library": f"{OP_TYPE} on CPUs", "sources_sha256": sources, **_file_facts(path)}
            return Inspection(path=str(path), kind="CPU library", facts=facts)
        if (state := state_of_library(path)) is None:
            raise
        sources, architectures = state
        codes = [f"sm_{number}" for number in architectures]
        facts = {"library": f"{OP_TYPE} on GPUs without TensorRT", "machine_code_for": codes}
        facts |= {"sources_sha256": sources, **_file_facts(path)}
        return Inspection(path=str(path), kind="CUDA library", facts=facts)
    facts = {
        "plugin": f"{info.namespace}::{info.name}" if info.namespace else info.name,
        "version": info.version,
        "abi_version": info.abi_version,
        "processor": info.machine,
        "machine_code_for": [f"sm_{number}" for number in info.cubin_architectures],
        "ptx_for": [f"compute_{number}" for number in info.ptx_architectures],
        "built_by": f"CUDA {info.cuda_version}, headers of TensorRT {info.tensorrt_header_version}",
        "sources_sha256": info.source_sha256,
        **_file_facts(path),
    }
    return Inspection(path=str(path), kind="plugin", facts=facts)


def _file_facts(path: Path) -> dict[str, Any]:
    return {"file_bytes": path.stat().st_size, "file_sha256": sha256_from_file(path)}


def _layers_by_tensorrt(plan: Path, manifest: EngineManifest) -> tuple[Layer, ...] | None:
    """The built engine's layers; None where it cannot be opened."""
    from trt_hspan.engine.passport import engine_mismatches, this_machine

    if engine_mismatches(plan, manifest, this_machine()):
        return None
    from trt_hspan.runtime.tensorrt_runner import TensorRtRunner

    try:
        with TensorRtRunner(plan) as runner:
            return layers_from_tensorrt_json(runner.layer_information())
    except HspanError:
        return None


def layers_from_tensorrt_json(text: str) -> tuple[Layer, ...]:
    """Layers from the output of TensorRT's inspector: names alone, or objects where the engine was built with details.

    Raises:
        ValueError: it is not JSON with a list "Layers".
    """
    layers = []
    for item in json.loads(text)["Layers"]:
        if isinstance(item, str):
            layers.append(Layer(name=item, type="layer"))
            continue
        outputs = item.get("Outputs") or [{}]
        layers.append(
            Layer(
                name=str(item.get("Name", "")),
                type=str(item.get("LayerType", "layer")),
                precision=outputs[0].get("Format/Datatype"),
                shape=tuple(outputs[0].get("Dimensions") or ()) or None,
            )
        )
    return tuple(layers)


def _onnx_layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    graph = model.graph
    values = {value.name: value for value in (*graph.value_info, *graph.output)}
    layers = []
    for node in graph.node:
        value = values.get(node.output[0]) if node.output else None
        element_type = value.type.tensor_type.elem_type if value is not None else 0
        layers.append(
            Layer(
                name=node.name or (node.output[0] if node.output else ""),
                type=node.op_type,
                precision=_type_name(element_type) if element_type else None,
                shape=_dimensions(value) if value is not None else None,
            )
        )
    return tuple(layers)


def _dimensions(value: onnx.ValueInfoProto) -> tuple[int | str, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim
    )


def _value_text(value: onnx.ValueInfoProto) -> str:
    shape = _dimensions(value)
    return f"{_type_name(value.type.tensor_type.elem_type)} {'x'.join(map(str, shape or ()))}"


def _type_name(number: int) -> str:
    import onnx

    name = str(onnx.TensorProto.DataType.Name(number)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
