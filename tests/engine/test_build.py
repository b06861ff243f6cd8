"""Engines are built by the real TensorRT-RTX; every failure is one line and leaves what was there."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from support.export_cache import ExportCache
from support.small_networks import attention_network, write_attention_network

from trt_hspan.engine import build as build_module
from trt_hspan.engine import builder, tensorrt_api
from trt_hspan.engine.build import PreparedModel, build_engine
from trt_hspan.engine.manifest import EngineManifest, verify_manifest
from trt_hspan.engine.spec import EngineSpec, ProfileRequest
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import sha256_from_file
from trt_hspan.graph import load_onnx, save_onnx
from trt_hspan.native.progress import BuildProgress
from trt_hspan.sizes import ImageSize

SMALL = ProfileRequest(max=ImageSize(height=24, width=32))


def spec_for(network: Path, **changes: Any) -> EngineSpec:
    arguments: dict[str, Any] = {
        "onnx": network,
        "output": network.parent / "engines" / "net.plan",
        "profiles": (SMALL,),
        "flavor": "tensorrt-rtx",
        **changes,
    }
    return EngineSpec(**arguments)


def build(network: Path, **changes: Any) -> EngineManifest:
    return build_engine(spec_for(network, **changes))


def assert_nothing_was_written(network: Path) -> None:
    assert [path.name for path in network.parent.iterdir()] == [network.name]


def nothing_prepared() -> PreparedModel:
    raise AssertionError("the model was prepared")


def test_an_engine_comes_with_its_model_and_a_manifest_that_vouches_for_both(network: Path) -> None:
    manifest = build(network)
    folder = network.parent / "engines"
    assert sorted(path.name for path in folder.iterdir()) == ["net.json", "net.onnx", "net.plan"]
    assert verify_manifest(folder / "net.plan") == manifest
    assert (folder / "net.onnx").read_bytes() == network.read_bytes()
    assert manifest.plan_size_bytes == (folder / "net.plan").stat().st_size > 1000
    assert (manifest.flavor, manifest.precision, manifest.attention) == ("tensorrt-rtx", "fp16", "function")
    assert (manifest.scale, manifest.source_sha256, manifest.targets) == (1, "c" * 64, ())
    assert manifest.profiles[0].min == (1, 3, 16, 16)
    assert manifest.profiles[0].opt == manifest.profiles[0].max == (1, 3, 24, 32)
    assert manifest.plugin is None
    assert manifest.build_time_seconds > 0


def test_an_engine_of_two_profiles_takes_the_shapes_of_both(network: Path) -> None:
    large = ProfileRequest(
        min=ImageSize(height=24, width=32), max=ImageSize(height=64, width=64), max_batch=2
    )
    manifest = build(network, profiles=(SMALL, large))
    assert [(p.min, p.opt, p.max) for p in manifest.profiles] == [
        ((1, 3, 16, 16), (1, 3, 24, 32), (1, 3, 24, 32)),
        ((1, 3, 24, 32), (1, 3, 64, 64), (2, 3, 64, 64)),
    ]
    # TensorRT tells each profile's own: the score matrices of two pictures of 64x64 alone are these many bytes.
    small, most = (p.activation_memory_bytes or 0 for p in manifest.profiles)
    assert 4 * (24 * 32) ** 2 <= small < 4 * 2 * (64 * 64) ** 2 <= most
    assert manifest.activation_memory_bytes == most
    alone = build(network, output=network.parent / "alone.plan")
    first = manifest.profiles[0]
    assert [(p.min, p.opt, p.max) for p in alone.profiles] == [(first.min, first.opt, first.max)]
    assert manifest.plan_size_bytes > alone.plan_size_bytes


def test_inputs_and_outputs_are_float32_of_free_size(network: Path) -> None:
    first, second = build(network).io_tensors
    assert (first.name, first.dtype, first.shape, first.mode) == (
        "input",
        "float32",
        (-1, 3, -1, -1),
        "input",
    )
    assert (second.name, second.dtype, second.mode) == ("output", "float32", "output")


def test_the_function_body_becomes_a_loop_and_the_plugin_one_layer_each(
    network: Path, plugin_library: Path
) -> None:
    function = build(network, attention="function").network_layer_counts
    plugin = build(network, attention="plugin", plugin=plugin_library).network_layer_counts
    assert (function["TRIP_LIMIT"], function.get("PLUGIN_V3", 0)) == (2, 0)
    assert (plugin["PLUGIN_V3"], plugin.get("TRIP_LIMIT", 0)) == (2, 0)
    assert function["CONVOLUTION"] == plugin["CONVOLUTION"] == 4


def test_the_plugin_is_recorded_with_its_hash(network: Path, plugin_library: Path) -> None:
    record = build(network, attention="plugin", plugin=plugin_library).plugin
    assert record is not None
    assert (record.file, record.sha256) == (plugin_library.name, sha256_from_file(plugin_library))
    assert record.abi_version == 4
    assert "sm_86" in record.architectures


def test_the_plugin_of_the_default_place_is_taken_when_none_is_named(
    network: Path, plugin_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRT_HSPAN_PLUGIN", str(plugin_library))
    record = build(network, attention="plugin").plugin
    assert record is not None
    assert record.sha256 == sha256_from_file(plugin_library)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["function", "plugin"])
def test_the_other_precisions_build_both_ways(
    tmp_path: Path, plugin_library: Path, precision: Any, attention: Any
) -> None:
    network = write_attention_network(tmp_path / "net.onnx", precision=precision)
    plugin = plugin_library if attention == "plugin" else None
    assert build(network, attention=attention, plugin=plugin).precision == precision


def test_an_exported_checkpoint_becomes_an_engine(
    exported: ExportCache, tmp_path: Path, plugin_library: Path
) -> None:
    model = exported("small_x4", precision="fp16")
    manifest = build(model, output=tmp_path / "x4.plan", attention="plugin", plugin=plugin_library)
    assert (manifest.scale, manifest.network_layer_counts["PLUGIN_V3"]) == (4, 2)


def test_the_plugin_needs_a_fraction_of_the_function_bodys_memory(
    network: Path, plugin_library: Path
) -> None:
    """At L = 96 * 96 one float32 score matrix alone is 4 * L * L = 340 MB, and the function body needs two.

    The plugin's workspace is less than half of one.
    """
    large = ProfileRequest(max=ImageSize(height=96, width=96))
    function = build(network, attention="function", profiles=(large,))
    plugin = build(network, attention="plugin", plugin=plugin_library, profiles=(large,))
    assert function.activation_memory_source == plugin.activation_memory_source == "builder log"
    assert function.activation_memory_bytes is not None
    assert plugin.activation_memory_bytes is not None
    assert function.activation_memory_bytes >= 4 * (96 * 96) ** 2
    assert plugin.activation_memory_bytes <= function.activation_memory_bytes / 4


def test_an_engine_of_tensorrt_rtx_is_never_opened(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt_api.load_tensorrt("tensorrt-rtx")
    monkeypatch.setattr(builder, "gpu_architectures", lambda: ("sm_86",))
    monkeypatch.setattr(trt, "Runtime", never_called)
    assert build(network).activation_memory_source == "builder log"


@pytest.mark.parametrize(
    ("size", "batch", "scores", "side"), [(216, None, "2,176,782,336", 215), (512, 2, "137,438,953,472", 181)]
)
def test_more_scores_than_tensorrt_takes_in_a_tensor_are_an_error_before_anything_is_built(
    network: Path, monkeypatch: pytest.MonkeyPatch, size: int, batch: int | None, scores: str, side: int
) -> None:
    monkeypatch.setattr("trt_hspan.engine.build.load_tensorrt", never_called)
    profile = ProfileRequest(max=ImageSize(height=size, width=size), max_batch=batch)
    expected = (
        f"at {size}x{size} the function body has {scores} scores .* or choose at most --max {side}x{side}"
    )
    tuned = ProfileRequest(
        opt=ImageSize(height=size, width=size), opt_batch=batch
    )  # and so no smaller at most
    for each in (profile, tuned):
        with pytest.raises(UsageError, match=expected):
            build(network, profiles=(each,))
    assert (batch or 1) * side**4 <= 2**31 - 1 < (batch or 1) * (side + 1) ** 4


def test_a_memory_figure_that_cannot_be_right_is_left_out(network: Path) -> None:
    """At 214x214 TensorRT-RTX reports less than at 200x200."""
    beyond = build(network, profiles=(ProfileRequest(max=ImageSize(height=214, width=214)),))
    assert (beyond.activation_memory_bytes, beyond.activation_memory_source) == (None, None)
    below = build(network, profiles=(ProfileRequest(max=ImageSize(height=200, width=200)),))
    assert below.activation_memory_bytes is not None
    assert below.activation_memory_bytes > 4 * (200 * 200) ** 2


def test_targets_are_passed_on_and_recorded(network: Path, plugin_library: Path) -> None:
    options: dict[str, Any] = {"attention": "plugin", "plugin": plugin_library}
    one = build(network, targets=("8.6",), **options)
    assert one.targets == ("sm_86",)
    two = build(network, targets=("sm_86", "sm_120"), **options)
    assert two.targets == ("sm_86", "sm_120")
    assert one.plan_sha256 != two.plan_sha256


def test_a_target_without_the_arithmetic_fails_in_tensorrts_words(network: Path) -> None:
    with pytest.raises(HspanError, match=r"net\.plan: TensorRT built no engine: .*Turing .SM75.*FP32 GEMM"):
        build(network, targets=("sm_75",))
    assert_nothing_was_written(network)


def test_a_workspace_too_small_fails_and_names_the_option(network: Path) -> None:
    with pytest.raises(HspanError, match=r"workspace.*raise --workspace-mib"):
        build(network, workspace_mib=1, profiles=(ProfileRequest(max=ImageSize(height=64, width=64)),))
    assert_nothing_was_written(network)


def test_progress_rises_to_the_end(network: Path) -> None:
    seen: list[BuildProgress] = []
    build_engine(spec_for(network), on_progress=seen.append)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert any(progress.phase for progress in seen)


def test_a_batch_range_is_built(network: Path) -> None:
    request = ProfileRequest(max=ImageSize(height=16, width=16), opt_batch=2, max_batch=4)
    manifest = build(network, profiles=(request,))
    assert (manifest.profiles[0].min[0], manifest.profiles[0].opt[0], manifest.profiles[0].max[0]) == (
        1,
        2,
        4,
    )


def test_a_model_of_fixed_size_needs_no_profile(tmp_path: Path) -> None:
    network = write_attention_network(tmp_path / "net.onnx", shape=(1, 3, 20, 28))
    manifest = build(network, profiles=(ProfileRequest(),))
    assert manifest.profiles[0].min == manifest.profiles[0].max == (1, 3, 20, 28)
    assert manifest.io_tensors[0].shape == (1, 3, 20, 28)


def test_a_model_of_fixed_picture_size_may_have_a_free_batch(tmp_path: Path) -> None:
    network = write_attention_network(tmp_path / "net.onnx", shape=("N", 3, 20, 28))
    manifest = build(network, profiles=(ProfileRequest(max_batch=2),))
    assert (manifest.profiles[0].min, manifest.profiles[0].max) == ((1, 3, 20, 28), (2, 3, 20, 28))


def test_a_profile_that_contradicts_a_fixed_size_is_refused(tmp_path: Path) -> None:
    network = write_attention_network(tmp_path / "net.onnx", shape=(1, 3, 20, 28))
    with pytest.raises(
        UsageError, match="--max: height 24, but the model was exported with the fixed height 20"
    ):
        build(network)


def test_a_model_of_one_channel_builds(tmp_path: Path) -> None:
    network = write_attention_network(tmp_path / "net.onnx", shape=("N", 1, "H", "W"))
    assert build(network).profiles[0].opt == (1, 1, 24, 32)


def test_tf32_is_off(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[Any] = []
    made = builder._config

    def config(trt: Any, *arguments: Any, **options: Any) -> Any:
        configs.append(made(trt, *arguments, **options))
        assert not configs[-1].get_flag(trt.BuilderFlag.TF32)
        return configs[-1]

    monkeypatch.setattr(builder, "_config", config)
    build(network)
    assert len(configs) == 1


def test_a_precision_the_model_does_not_hold_is_refused(network: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--precision: fp32, but .*net\.onnx computes in fp16; export it again"
    ):
        build(network, precision="fp32")
    assert_nothing_was_written(network)


def test_a_precision_the_model_holds_may_be_said(network: Path) -> None:
    assert build(network, precision="fp16").precision == "fp16"


def test_an_unknown_target_is_refused_with_the_known_ones(network: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot build for sm_99; choose from .*sm_86.*sm_120"):
        build(network, targets=("sm_99",))
    assert_nothing_was_written(network)


def test_an_optimization_level_is_refused_where_it_would_do_nothing(network: Path) -> None:
    with pytest.raises(UsageError, match="--opt-level: TensorRT-RTX tunes nothing"):
        build(network, optimization_level=5)
    with pytest.raises(UsageError, match="tactic_dram_mib: TensorRT-RTX tunes nothing"):
        build(network, tactic_dram_mib=512)


def test_a_plugin_is_refused_where_it_would_not_be_used(network: Path, plugin_library: Path) -> None:
    with pytest.raises(UsageError, match="--plugin: has no use: tensorrt-rtx takes the function body"):
        build(network, plugin=plugin_library)


def test_a_model_without_the_operator_is_refused(tmp_path: Path) -> None:
    model = attention_network()
    for node in model.graph.node:
        if node.domain:
            node.domain, node.op_type = "", "Sum"
    del model.functions[:]
    save_onnx(model, tmp_path / "net.onnx")
    with pytest.raises(HspanError, match=r"net\.onnx: contains no hspan::HighSimilarityPassAttention node"):
        build(tmp_path / "net.onnx")
    assert_nothing_was_written(tmp_path / "net.onnx")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_truncated_model_is_refused(network: Path, part: float) -> None:
    data = network.read_bytes()
    network.write_bytes(data[: int(part * len(data))])
    with pytest.raises(HspanError, match=r"net\.onnx: not an ONNX"):
        build(network)
    assert_nothing_was_written(network)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match=r"net\.onnx: no such file"):
        build(tmp_path / "net.onnx")


def test_a_model_with_two_inputs_is_refused(network: Path) -> None:
    model = load_onnx(network)
    model.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, ("N", 1)))
    save_onnx(model, network)
    with pytest.raises(HspanError, match="expected one input"):
        build(network)


def test_what_the_parser_refuses_is_reported_with_the_node(network: Path) -> None:
    model = load_onnx(network)
    model.graph.node[0].op_type = "Bernoulli"
    del model.graph.node[0].attribute[:]
    del model.graph.node[0].input[1:]
    save_onnx(model, network)
    with pytest.raises(
        HspanError, match=r"net\.plan: TensorRT cannot read this model: .*Bernoulli"
    ) as caught:
        build(network)
    assert "\n" not in str(caught.value)
    assert_nothing_was_written(network)


def test_a_missing_plugin_is_reported_with_how_to_get_it(network: Path) -> None:
    with pytest.raises(HspanError, match=r"gone\.so: there is no plugin library here; build one with"):
        build(network, attention="plugin", plugin=network.parent / "gone.so")
    assert_nothing_was_written(network)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {b'"abi_version": 4': b'"abi_version": 5'},
            "has plugin ABI version 5, this package needs 4; rebuild",
        ),
        (
            {b'"ptx_architectures": [75]': b'"ptx_architectures": []  ', b"100, 120]": b"100]     "},
            "built without sm_120; rebuild with trt-hspan plugin build --arch",
        ),
    ],
    ids=["another ABI", "a default target missing"],
)
def test_a_plugin_that_does_not_fit_is_refused_before_its_code_runs(
    network: Path,
    plugin_library: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[bytes, bytes],
    message: str,
) -> None:
    data = plugin_library.read_bytes()
    for before, after in changes.items():
        assert before in data
        data = data.replace(before, after)
    unfit = network.parent / "libhspan_plugin.so"
    unfit.write_bytes(data)
    monkeypatch.setattr(build_module, "load_plugin_library", never_called)
    with pytest.raises(HspanError, match=message):
        build(network, attention="plugin", plugin=unfit)
    assert not (network.parent / "engines").exists()


def never_called(*_: object) -> None:
    raise AssertionError("this should not have been called")


def test_a_second_plugin_library_in_one_process_is_refused(network: Path, plugin_library: Path) -> None:
    build(network, attention="plugin", plugin=plugin_library)
    other = network.parent / "libhspan_plugin.so"
    other.write_bytes(plugin_library.read_bytes() + b"another build")
    with pytest.raises(HspanError, match=r"this process has loaded .* already; start a new one"):
        build(network, attention="plugin", plugin=other)


def test_the_same_plugin_library_elsewhere_will_do(network: Path, plugin_library: Path) -> None:
    copy = network.parent / "copy.so"
    copy.write_bytes(plugin_library.read_bytes())
    build(network, attention="plugin", plugin=plugin_library)
    record = build(network, attention="plugin", plugin=copy).plugin
    assert record is not None
    assert record.file == "copy.so"


def test_an_output_folder_without_permission_is_refused(network: Path, unwritable_folder: Path) -> None:
    spec = spec_for(network, output=unwritable_folder / "net.plan")
    with pytest.raises(HspanError, match=r"net\.plan: no permission to write here"):
        build_engine(spec, prepare=nothing_prepared)


def test_a_full_disk_leaves_the_old_engine_as_it_was(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = build(network)
    plan = network.parent / "engines" / "net.plan"
    written = Path.write_bytes

    def write_bytes(self: Path, *arguments: Any, **options: Any) -> int:
        if self.name == "net.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return written(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(HspanError, match=r"net\.json: the disk is full; free some space"):
        build(network, profiles=(ProfileRequest(max=ImageSize(height=40, width=40)),))
    assert verify_manifest(plan) == old
    assert sorted(path.name for path in plan.parent.iterdir()) == ["net.json", "net.onnx", "net.plan"]


def test_a_failing_build_leaves_the_old_engine_as_it_was(network: Path) -> None:
    old = build(network)
    with pytest.raises(HspanError):
        build(network, targets=("sm_75",))
    assert verify_manifest(network.parent / "engines" / "net.plan") == old


def raised(_: BuildProgress) -> None:
    raise KeyboardInterrupt


def signaled_in_a_finalizer(_: BuildProgress) -> None:
    """Where Python prints what is raised, and goes on."""

    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    Dying()


@pytest.mark.parametrize("interrupt", [raised, signaled_in_a_finalizer])
def test_an_interrupted_build_stops_and_leaves_nothing(
    tmp_path: Path, interrupt: Callable[[BuildProgress], None]
) -> None:
    network = write_attention_network(tmp_path / "net.onnx", blocks=8)  # a second in the builder
    trt = tensorrt_api.load_tensorrt("tensorrt-rtx")
    with tensorrt_api.collected_log(trt) as log, pytest.raises(KeyboardInterrupt):
        build_engine(spec_for(network), on_progress=interrupt)
    assert "BuildCanceled" in str(log.first_error), "the builder was left running"
    assert_nothing_was_written(network)


def test_what_needs_no_model_is_checked_before_one_is_prepared(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.onnx"
    with pytest.raises(UsageError, match="cannot build for sm_99"):
        build_engine(spec_for(nothing, targets=("sm_99",)), prepare=nothing_prepared)
    with pytest.raises(HspanError, match="there is no plugin library here"):
        build_engine(
            spec_for(nothing, attention="plugin", plugin=tmp_path / "gone.so"), prepare=nothing_prepared
        )
    assert list(tmp_path.iterdir()) == []


def test_companions_of_a_prepared_model_lie_beside_the_engine_or_nowhere(network: Path) -> None:
    model = load_onnx(network)
    spec = spec_for(network)
    with pytest.raises(HspanError):
        build_engine(
            spec_for(network, targets=("sm_75",)),
            prepare=lambda: PreparedModel(model=model, companions={".txt": "how it was made"}),
        )
    assert_nothing_was_written(network)
    build_engine(spec, prepare=lambda: PreparedModel(model=model, companions={".txt": "how it was made"}))
    assert spec.output.with_suffix(".txt").read_text() == "how it was made"
    assert verify_manifest(spec.output)
