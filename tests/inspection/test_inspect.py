"""What `trt-hspan inspect` tells of each kind of file, and of bad ones."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import onnx
import pytest
from support.command_line import CommandLine
from support.golden import GoldenNetwork
from support.small_engine import SmallEngine
from support.small_networks import attention_network, write_attention_network

from trt_hspan.engine import passport
from trt_hspan.errors import HspanError
from trt_hspan.files import sha256_from_file, write_text
from trt_hspan.inspection import files
from trt_hspan.inspection.files import Layer, inspect_file, layers_from_tensorrt_json
from trt_hspan.native import plugin as plugin_library
from trt_hspan.native.plugin import default_plugin_path
from trt_hspan.runtime import tensorrt_runner


def test_an_engine_is_described_by_its_manifest(small_engine: SmallEngine) -> None:
    inspection, manifest = inspect_file(small_engine.plan), small_engine.manifest
    assert inspection.kind == "engine"
    assert f"tensorrt-rtx {manifest.tensorrt_version}" in inspection.facts["built_by"]
    assert inspection.facts["precision"] == "fp16"
    assert inspection.facts["profiles"][0]["max"] == list(manifest.profiles[0].max)
    assert inspection.facts["activation_memory_bytes"] == manifest.activation_memory_bytes
    assert inspection.facts["plan_bytes"] == small_engine.plan.stat().st_size
    assert inspection.facts["vouched_for"] == "plan and ONNX file are those of the manifest"
    assert inspection.layers_from == "small.onnx, because the engine cannot be opened here"
    counts = Counter(layer.type for layer in inspection.layers)
    assert counts == Counter(node.op_type for node in onnx.load(small_engine.onnx).graph.node)


def test_an_engine_that_is_not_its_manifests_is_described_and_said_so(
    small_engine: SmallEngine, tmp_path: Path
) -> None:
    plan = small_engine.copy_to(tmp_path)
    plan.write_bytes(b"other")
    assert "SHA-256 is" in inspect_file(plan).facts["vouched_for"]
    for content in (b"cut", b""):
        plan.with_suffix(".onnx").write_bytes(content)
        assert inspect_file(plan).layers == ()
    plan.with_suffix(".onnx").unlink()
    assert inspect_file(plan).layers == ()


def test_an_onnx_file_is_counted_truly(tmp_path: Path) -> None:
    path = write_attention_network(tmp_path / "a.onnx", precision="fp16", blocks=2)
    inspection, model = inspect_file(path), onnx.load(path)
    assert inspection.facts["attention_nodes"] == 2
    assert inspection.facts["precision"] == "fp16"
    weights = sum(len(onnx.numpy_helper.to_array(tensor).tobytes()) for tensor in model.graph.initializer)
    assert inspection.facts["weights_memory_bytes"] == weights
    assert inspection.facts["inputs"] == {"input": "float32 Nx3xHxW"}
    assert len(inspection.layers) == len(model.graph.node)
    convolution = next(layer for layer in inspection.layers if layer.type == "Conv")
    assert convolution.precision == "float16"
    assert convolution.shape == ("N", 8, "H", "W")


def test_the_network_of_another_program_is_described_by_its_graph(tmp_path: Path) -> None:
    path = write_attention_network(tmp_path / "a.onnx")
    model = onnx.load(path)
    weights = Counter({"float32": sum(4 * math.prod(tensor.dims) for tensor in model.graph.initializer)})
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "painter", "2"
    more = onnx.parser.parse_graph(
        """
        more (double y) => (int64[2] s, float t)
        <float16[2] h = {1, 2}, int64[3] k = {4, 5, 6}, float v>
        {
            s = Identity(k)
            v = Cast <to = 1> (y)
            t = Relu(v)
        }
        """
    )
    more.node[0].name = "named"
    for mine, added in (
        (model.graph.node, more.node),
        (model.graph.input, more.input),
        (model.graph.output, more.output),
        (model.graph.initializer, more.initializer),
    ):
        mine.extend(added)
    onnx.save(model, path)
    found = inspect_file(path)
    facts = found.facts
    assert facts["built_by"] == "painter 2"
    assert facts["inputs"] == {"input": "float32 Nx3xHxW", "y": "float64 "}
    assert (facts["outputs"]["s"], facts["outputs"]["t"]) == ("int64 2", "float32 ")
    assert Counter(facts["weights_memory_by_type"]) == weights + Counter(float16=4, int64=24)
    assert facts["weights_memory_bytes"] == weights["float32"] + 28
    assert (facts["nodes"]["Identity"], facts["nodes"]["Cast"], facts["attention_nodes"]) == (1, 1, 1)
    assert (facts["quantization"], facts["scale"], facts["architecture"]) == (None, None, None)
    assert facts["attention_has_a_function_body"] is bool(model.functions)
    assert facts["file_bytes"] == path.stat().st_size
    assert found.layers[-3:] == (
        Layer(name="named", type="Identity", precision="int64", shape=(2,)),
        Layer(name="v", type="Cast"),
        Layer(name="t", type="Relu", precision="float32", shape=()),
    )


def test_a_checkpoint_shows_sizes_and_weights(small_x4: GoldenNetwork) -> None:
    inspection = inspect_file(small_x4.checkpoint)
    assert inspection.kind == "checkpoint"
    assert inspection.facts["scale"] == 4
    assert inspection.facts["sha256"] == sha256_from_file(small_x4.checkpoint)
    assert inspection.facts["keys"] == len(inspection.layers)
    assert inspection.facts["weights_memory_bytes"] == 4 * inspection.facts["parameters"]
    assert {layer.precision for layer in inspection.layers} == {"float32"}


def test_the_plugin_shows_abi_and_architectures() -> None:
    inspection = inspect_file(default_plugin_path())
    assert (inspection.kind, inspection.facts["version"]) == ("plugin", "1")
    assert "sm_86" in inspection.facts["machine_code_for"]


def test_what_tensorrts_inspector_says_is_read() -> None:
    detailed = {
        "Name": "conv",
        "LayerType": "CaskConvolution",
        "Outputs": [{"Name": "x", "Dimensions": [1, 8, 4, 4], "Format/Datatype": "Half"}],
    }
    first, second = layers_from_tensorrt_json(json.dumps({"Layers": [detailed, "just a name"]}))
    assert (first.name, first.type, first.precision, first.shape) == (
        "conv",
        "CaskConvolution",
        "Half",
        (1, 8, 4, 4),
    )
    assert second.name == "just a name"


def test_layers_that_tensorrt_says_little_of_are_listed_all_the_same() -> None:
    layers = [{"Name": "a"}, {"LayerType": "Cast", "Outputs": []}, {"Outputs": [{"Dimensions": []}]}]
    assert layers_from_tensorrt_json(json.dumps({"Layers": [*layers, "b"]})) == (
        Layer(name="a", type="layer"),
        Layer(name="", type="Cast"),
        Layer(name="", type="layer"),
        Layer(name="b", type="layer"),
    )


@pytest.mark.parametrize("opens", [True, False])
def test_the_layers_of_an_engine_that_runs_here_are_tensorrts(
    small_engine: SmallEngine, monkeypatch: pytest.MonkeyPatch, opens: bool
) -> None:
    class Runner:
        def __init__(self, plan: Path) -> None: ...

        def __enter__(self) -> Runner:
            if not opens:
                raise HspanError("engine", "does not open")
            return self

        def __exit__(self, *_: object) -> None: ...

        def layer_information(self) -> str:
            return json.dumps({"Layers": ["fused"]})

    monkeypatch.setattr(passport, "engine_mismatches", lambda *_: [])
    monkeypatch.setattr(tensorrt_runner, "TensorRtRunner", Runner)
    inspection = inspect_file(small_engine.plan)
    if opens:
        assert inspection.layers_from == "TensorRT's inspector"
        assert inspection.layers == (Layer(name="fused", type="layer"),)
    else:
        assert inspection.layers_from == "small.onnx, because the engine cannot be opened here"


def test_a_manifest_is_shown_in_words(small_engine: SmallEngine, tmp_path: Path) -> None:
    plan = small_engine.copy_to(tmp_path)
    manifest = dataclasses.replace(small_engine.manifest, build_time_seconds=1.23456, traits=(), targets=())
    write_text(plan.with_suffix(".json"), manifest.as_json())
    facts = inspect_file(plan).facts
    assert facts["build_time_seconds"] == 1.23
    assert facts["traits"] == "none: for this TensorRT release and these GPUs only"
    assert facts["targets"] == "TensorRT-RTX's default set"
    manifest = dataclasses.replace(manifest, traits=("refittable",), targets=("sm_86", "sm_89"))
    write_text(plan.with_suffix(".json"), manifest.as_json())
    facts = inspect_file(plan).facts
    assert (facts["traits"], facts["targets"]) == (["refittable"], ["sm_86", "sm_89"])


def test_without_pytorch_a_checkpoint_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HspanError, match=r"PyTorch, which reads checkpoints, is not installed; pip install"):
        inspect_file("hspan-tiny-x2")


def test_weights_and_biases_of_a_checkpoint_are_told_apart() -> None:
    layers = inspect_file("hspan-tiny-x2").layers
    assert {layer.type for layer in layers if layer.name.endswith("bias")} == {"bias"}
    assert {layer.type for layer in layers if not layer.name.endswith("bias")} == {"weight"}


def test_what_a_graph_leaves_open_is_left_open(tmp_path: Path) -> None:
    model = attention_network()
    del model.metadata_props[:]
    model.ClearField("producer_name")
    model.graph.value_info[0].ClearField("type")
    model.graph.output[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    model.graph.node.add(op_type="Sink", domain="mine")
    model.opset_import.add(domain="mine", version=3)
    path = tmp_path / "a.onnx"
    onnx.save(model, path)
    inspection = inspect_file(path)
    assert inspection.layers[0] == Layer(name="conv0", type="Conv")
    assert inspection.layers[-2].shape == ("?", 3, "H", "W")
    assert inspection.layers[-1] == Layer(name="", type="Sink")
    opset = inspection.facts["opset"]
    assert (opset["ai.onnx"], opset["mine"]) == (22, 3)
    assert inspection.facts["built_by"] is None
    assert inspection.facts["outputs"] == {"output": "float32 ?x3xHxW"}


def test_the_library_for_cpus_says_which_sources_it_is_of(tmp_path: Path) -> None:
    path = tmp_path / "libhspan_cpu.so"
    path.write_bytes(b"\x7fELF hspan-cpu-source-sha256=" + b"a" * 64 + b"\0")
    inspection = inspect_file(path)
    assert (inspection.kind, inspection.facts["sources_sha256"]) == ("CPU library", "a" * 64)
    assert inspection.facts["file_bytes"] == path.stat().st_size
    assert inspection.facts["file_sha256"] == sha256_from_file(path)


@pytest.mark.parametrize(("namespace", "name"), [("ours", "ours::Attention"), ("", "Attention")])
def test_a_plugin_is_named_with_its_namespace(
    monkeypatch: pytest.MonkeyPatch, namespace: str, name: str
) -> None:
    path = default_plugin_path()
    info = dataclasses.replace(
        plugin_library.plugin_info_from_library(path), name="Attention", namespace=namespace
    )
    monkeypatch.setattr(plugin_library, "plugin_info_from_library", lambda path: info)
    assert inspect_file(path).facts["plugin"] == name


def test_the_command_prints_json_and_nothing_else(run: CommandLine, small_engine: SmallEngine) -> None:
    result = run("inspect", small_engine.plan, "--json")
    document = json.loads(result.out)
    assert result.code == 0
    assert result.err == ""
    assert document["kind"] == "engine"
    assert document["layers"][0].keys() == {"name", "type", "precision", "shape"}


def test_the_table_lists_layers_on_request(run: CommandLine, small_engine: SmallEngine) -> None:
    assert "Conv" not in run("inspect", small_engine.plan).out.split("layers")[-1]
    result = run("inspect", small_engine.plan, "--layers")
    assert "HighSimilarityPassAttention" in result.out
    assert "vouched for" in result.out


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("none.plan", None, "no such file"),
        ("none.onnx", None, "no such file"),
        ("none.so", None, "no such file"),
        ("none.pt", None, "no such file"),
        ("a.plan", b"x", "its manifest a.json is missing"),
        ("a.onnx", b"x", "not an ONNX file"),
        ("empty.onnx", b"", "not an ONNX file|empty"),
        ("a.so", b"x", "is no shared library"),
        ("a.pt", b"x", "a.pt"),
        ("a.txt", b"x", "not a checkpoint's name"),
    ],
)
def test_bad_files_are_one_line(
    run: CommandLine, tmp_path: Path, name: str, content: bytes | None, line: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    result = run("inspect", path, "--json")
    assert result.code in (1, 2)
    assert any(part in result.error_line for part in line.split("|"))
    assert result.out == ""


def test_a_folder_is_reported(run: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.plan").mkdir()
    assert "is not a file" in run("inspect", tmp_path / "a.plan").error_line


def test_a_damaged_manifest_is_reported(run: CommandLine, small_engine: SmallEngine, tmp_path: Path) -> None:
    plan = small_engine.copy_to(tmp_path)
    shutil.copy(plan, plan.with_suffix(".json"))
    assert "is not a manifest" in run("inspect", plan).error_line


def test_the_cuda_library_says_what_it_is_made_of(run: CommandLine, tmp_path: Path) -> None:
    """A library with the description that the product embeds; none of its code runs."""
    description = {"abi_version": 1, "cubin_architectures": [80, 90], "source_sha256": "abc"}
    text = json.dumps(f"hspan-cuda-info:{json.dumps(description)}")
    path = tmp_path / "libhspan_cuda.so"
    source = f"const char kInfo[] = {text};"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", path], input=source, text=True, check=True
    )
    report = json.loads(run("inspect", path, "--json").out)
    assert (report["kind"], report["facts"]["machine_code_for"]) == ("CUDA library", ["sm_80", "sm_90"])
    assert report["facts"]["library"].endswith("on GPUs without TensorRT")
    assert report["facts"]["sources_sha256"] == "abc"
