"""Other weights for an engine that was built to take them: no layer is built or tuned again."""

from __future__ import annotations

import copy
import datetime
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from trt_hspan.engine.manifest import EngineManifest, verify_manifest, write_manifest
from trt_hspan.engine.passport import build_command, require_match, this_machine
from trt_hspan.engine.tensorrt_api import (
    CollectedLog,
    collected_log,
    load_plugin_library,
    load_tensorrt,
    refusal,
    runtime_for,
    tensorrt_logger,
)
from trt_hspan.errors import HspanError
from trt_hspan.files import check_writable, sha256_from_file, staged_files
from trt_hspan.graph import (
    load_onnx,
    metadata_from_model,
    model_with_inlined_functions,
    model_with_plugin_nodes,
)
from trt_hspan.native.plugin import default_plugin_path
from trt_hspan.version import __version__


def refit_engine(
    plan: Path, model: onnx.ModelProto, *, output: Path | None = None, plugin: Path | None = None
) -> EngineManifest:
    """Puts a model's weights into a copy of an engine: NAME.plan, NAME.onnx and NAME.json, all or none.

    TensorRT exchanges the weights on the GPU that the engine is for. The new engine can be refitted again.

    Args:
        plan: the engine, built with the trait "refittable"; its manifest and model are beside it.
        model: the same graph as the engine's model, with other weights.
        output: the new plan; None replaces the engine.
        plugin: as for a run.

    Returns:
        The new manifest, as written.

    Raises:
        HspanError: the engine is not refittable, cannot run here, or has another graph; TensorRT refuses; the files
            cannot be written.
    """
    manifest = verify_manifest(plan)
    require_refittable(plan, manifest)
    target = output or plan
    if target.suffix != ".plan":
        raise HspanError(target, "is no name for an engine", "name a file that ends in .plan")
    template = load_onnx(plan.parent / manifest.onnx_file)
    if _structure(model) != _structure(template):
        raise HspanError(
            plan,
            "its graph is another than that of these weights",
            "take a checkpoint of the same architecture, or build an engine of it: trt-hspan build",
        )
    check_writable(target)
    require_match(plan, manifest, this_machine(), plugin=plugin)
    trt = load_tensorrt(manifest.flavor)
    if manifest.needs_library:
        load_plugin_library(trt, plugin or default_plugin_path())
    data = _refitted(trt, plan, manifest, model, plugin)
    with staged_files([target, target.with_suffix(".onnx"), target.with_suffix(".json")]) as staged:
        plan_file, onnx_file, manifest_file = staged
        plan_file.write_bytes(data)
        onnx_file.write_bytes(model.SerializeToString(deterministic=True))
        written = replace(
            manifest,
            plan_sha256=sha256_from_file(plan_file),
            plan_size_bytes=plan_file.stat().st_size,
            onnx_file=onnx_file.name,
            onnx_sha256=sha256_from_file(onnx_file),
            source_sha256=metadata_from_model(model).source_sha256,
            range_audit=None,  # of the weights before
            tool_version=__version__,
            created_utc=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )
        write_manifest(written, manifest_file)
    return written


def require_refittable(plan: Path, manifest: EngineManifest) -> None:
    """Raises: HspanError unless the engine was built to take other weights."""
    if "refittable" not in manifest.traits:
        raise HspanError(
            plan, "was built without --refittable", f"{build_command(plan, manifest)} --refittable"
        )


def _refitted(
    trt: Any, plan: Path, manifest: EngineManifest, model: onnx.ModelProto, plugin: Path | None
) -> bytes:
    where = str(plan)

    def check(accepted: object, what: str, log: CollectedLog) -> None:
        if not accepted:
            raise refusal(
                where, what, log, build_command(plan, manifest, plugin), "free some of the GPU's memory"
            )

    prepare = model_with_plugin_nodes if manifest.attention == "plugin" else model_with_inlined_functions
    logger = tensorrt_logger(trt)
    with collected_log(trt) as log:
        runtime = runtime_for(trt, manifest.traits)
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
        check(engine is not None, "cannot be loaded", log)
        refitter = trt.Refitter(engine, logger)
        parser = trt.OnnxParserRefitter(refitter, logger)
        accepted = parser.refit_from_bytes(prepare(model).SerializeToString())
        check(accepted, "does not take these weights", log)
        missing = list(refitter.get_missing_weights())
        check(not missing, f"wants weights that the model does not have: {', '.join(missing[:3])}", log)
        check(refitter.refit_cuda_engine(), "cannot be refitted", log)
        data = engine.serialize()
        check(data is not None, "cannot be written after the refit", log)
    return bytes(data)


def _structure(model: onnx.ModelProto) -> bytes:
    """All of a model but the values of its weights, and its producer."""
    bare = copy.deepcopy(model)
    del bare.metadata_props[:]
    bare.ClearField("producer_version")
    for tensor in bare.graph.initializer:
        name, kind, dims = tensor.name, tensor.data_type, list(tensor.dims)
        tensor.Clear()
        tensor.name, tensor.data_type = name, kind
        tensor.dims.extend(dims)
    return bytes(bare.SerializeToString(deterministic=True))
