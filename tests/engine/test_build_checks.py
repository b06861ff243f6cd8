"""What is refused before an engine is built, and what the manifest says of it: without a builder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from support.small_networks import attention_network

from trt_hspan.engine import build
from trt_hspan.engine.spec import EngineSpec, Flavor, ProfileRequest
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.sizes import ImageSize


def spec(**changes: Any) -> EngineSpec:
    return EngineSpec(onnx=Path("net.onnx"), output=Path("net.plan"), **changes)


@pytest.mark.parametrize(
    ("targets", "refused"),
    [(("sm_80",), None), (("sm_79",), "sm_79"), (("sm_86", "sm_87"), "sm_87"), ((), None)],
)
@pytest.mark.parametrize("trait", ["ampere+", "same-cc", "refittable"])
def test_hardware_compatibility_begins_with_8_0(
    trait: Any, targets: tuple[str, ...], refused: str | None
) -> None:
    request = spec(traits=frozenset({trait}))
    if refused is None or trait == "refittable":
        build._check_hardware(request, targets)
        return
    with pytest.raises(UsageError, match=f"--hardware-compatible .*: is for GPUs .* this one is {refused};"):
        build._check_hardware(request, targets)


@pytest.mark.parametrize(
    ("trait", "attention", "line"),
    [
        ("version-compatible", "plugin", "--version-compatible: TensorRT-RTX engines run with the release"),
        ("ampere+", "plugin", r"--hardware-compatible ampere\+: a TensorRT-RTX engine is for the GPUs of"),
        ("same-cc", "function", "--hardware-compatible same-cc: a TensorRT-RTX engine is for the GPUs of"),
        ("refittable", "function", "--refittable: TensorRT-RTX cannot compile the function body"),
        ("refittable", "plugin", None),
        ("embedded-plugin", "plugin", None),
        ("embedded-plugin", "function", "--embed-plugin: has no use: "),
    ],
)
def test_traits_that_a_flavor_lacks_are_refused(trait: Any, attention: Any, line: str | None) -> None:
    request = spec(traits=frozenset({trait}))
    if trait != "embedded-plugin":
        build._check_combination(request, "tensorrt", attention)
    if line is None:
        build._check_combination(request, "tensorrt-rtx", attention)
        return
    with pytest.raises(UsageError, match=line):
        build._check_combination(request, "tensorrt-rtx", attention)


@pytest.mark.parametrize(
    ("changes", "flavor", "attention", "line"),
    [
        ({"targets": ("sm_86",)}, "tensorrt", "plugin", "--target: TensorRT builds for the GPU at hand only"),
        ({"targets": ("sm_86",)}, "tensorrt-rtx", "plugin", None),
        ({"timing_cache": Path("t")}, "tensorrt-rtx", "plugin", "--timing-cache: TensorRT-RTX tunes nothing"),
        ({"optimization_level": 0}, "tensorrt-rtx", "plugin", "--opt-level: TensorRT-RTX tunes nothing"),
        ({"timing_cache": Path("t"), "optimization_level": 0}, "tensorrt", "plugin", None),
        ({"plugin": Path("p")}, "tensorrt-rtx", "plugin", None),
        ({"plugin": Path("p")}, "tensorrt", "function", "--plugin: has no use: tensorrt takes the function"),
        ({}, "tensorrt", "function", None),
    ],
)
def test_an_option_without_effect_is_refused(
    changes: dict[str, Any], flavor: Flavor, attention: Any, line: str | None
) -> None:
    if line is None:
        build._check_combination(spec(**changes), flavor, attention)
        return
    with pytest.raises(UsageError, match=line):
        build._check_combination(spec(**changes), flavor, attention)


@pytest.mark.parametrize(
    ("own", "requested", "is_refittable", "line"),
    [
        (
            "fp16",
            "int8",
            False,
            "--precision: int8, but net.onnx computes in fp16; name pictures with --calibration",
        ),
        (
            "fp16",
            "fp8",
            False,
            "--precision: fp8, but net.onnx computes in fp16; name pictures with --calibration",
        ),
        (
            "fp16",
            "bf16",
            False,
            "--precision: bf16, but net.onnx computes in fp16; export it again with --precision",
        ),
        ("fp16", "int8", True, "--refittable: is for float networks"),
        ("fp16", "fp16", True, None),
        ("fp32", None, True, None),
    ],
)
def test_a_precision_that_the_model_lacks_is_refused(
    own: Any, requested: Any, is_refittable: bool, line: str | None
) -> None:
    request = spec(precision=requested, traits=frozenset({"refittable"} if is_refittable else set[Any]()))
    model = attention_network(precision=own)
    if line is None:
        assert build._network(request, model, "plugin").precision == own
        return
    with pytest.raises(UsageError) as refused:
        build._network(request, model, "plugin")
    assert str(refused.value).startswith(line)


@pytest.mark.parametrize(
    ("shape", "is_static"),
    [
        ((1, 3, 8, 8), True),
        (("N", 3, 8, 8), False),
        ((1, 3, "H", 8), False),
        ((1, 3, 8, "W"), False),
    ],
)
def test_a_network_of_fixed_shape_is_told_from_others(shape: Any, is_static: bool) -> None:
    request = spec(profiles=(ProfileRequest(),))
    network = build._network(request, attention_network(shape=shape), "plugin")
    assert network.is_static == is_static
    assert network.shapes[0][1][1] == 3


def test_a_network_of_free_channels_is_refused() -> None:
    model = attention_network()
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, ("N", "C", "H", "W")))
    with pytest.raises(
        HspanError, match=r"net\.onnx: expected one input \(N, C, H, W\) with a fixed C; export it"
    ):
        build._network(spec(), model, "plugin")


def test_what_is_quantized_is_recorded_with_six_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(type="int8", convolutions=7, quantized_convolutions=5, mac_share=0.12345678)
    model = attention_network()
    built: Any = SimpleNamespace(quantized_convolutions=4)
    assert build._quantization_record(model, built) is None
    monkeypatch.setattr(build, "quantization_from_model", lambda _: facts)
    record = build._quantization_record(model, built)
    assert record is not None
    assert (record.type, record.convolutions, record.quantized_convolutions) == ("int8", 7, 5)
    assert (record.quantized_mac_share, record.builder_convolutions) == (0.123457, 4)


@pytest.mark.parametrize(
    ("memory", "kept", "most"),
    [
        ((500, 700), (500, 700), 700),
        ((700, 500), (700, 500), 700),
        ((700, 1), (700, None), None),
        (None, (None, None), None),
    ],
)
def test_the_memory_of_an_engine_is_that_of_its_largest_profile_if_all_are_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, memory: Any, kept: Any, most: int | None
) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    sides = ((1, 3, 2, 2), (1, 3, 2, 3))
    tools: Any = SimpleNamespace(
        trt=SimpleNamespace(__version__="10.3.0"),
        flavor="tensorrt",
        attention="function",
        targets=(),
        plugin=None,
    )
    network: Any = SimpleNamespace(
        model=attention_network(precision="fp16"),
        precision="fp16",
        shapes=tuple((side,) * 3 for side in sides),
    )
    built: Any = SimpleNamespace(
        timing_cache=b"times" if most else None,
        io_tensors=(),
        activation_memory_bytes=memory,
        activation_memory_source="engine",
        weights_memory_bytes=9,
        network_layer_counts={},
        engine_layer_counts=None,
        build_time_seconds=1.0,
        quantized_convolutions=None,
    )
    request = spec(traits=frozenset({"refittable", "embedded-plugin"}))
    manifest = build._manifest(
        request,
        tools,
        network,
        built,
        range_audit=None,
        plan_file=tmp_path / "file",
        onnx_file=tmp_path / "file",
    )
    assert tuple(profile.activation_memory_bytes for profile in manifest.profiles) == kept
    assert manifest.activation_memory_bytes == most
    assert manifest.activation_memory_source == (None if most is None else "engine")
    assert (manifest.timing_cache_sha256 is None) == (most is None)
    assert (manifest.plan_size_bytes, manifest.size_multiple) == (5, 1)
    assert manifest.traits == ("embedded-plugin", "refittable")  # as the manifest orders them
    assert isinstance(network.model, onnx.ModelProto)


@pytest.mark.parametrize(
    ("gpus", "flavor", "requested", "targets"),
    [
        (("sm_86", "sm_90"), "tensorrt", (), ("sm_86",)),
        (("sm_86",), "tensorrt-rtx", ("sm_89",), ("sm_89",)),
        ((), "tensorrt-rtx", (), ()),
    ],
)
def test_an_engine_is_for_the_first_gpu_or_for_the_named_targets(
    monkeypatch: pytest.MonkeyPatch, gpus: Any, flavor: Flavor, requested: Any, targets: Any
) -> None:
    monkeypatch.setattr(build, "gpu_architectures", lambda: gpus)
    assert build._targets(spec(targets=requested), flavor) == targets


@pytest.mark.parametrize(
    ("size", "batch", "fits"),
    [((1, 46340), None, True), ((1, 46341), None, False), ((20, 1638), 2, True), ((20, 1639), 2, False)],
)
def test_the_function_body_has_as_many_scores_as_a_tensor_has_elements(
    size: tuple[int, int], batch: int | None, fits: bool
) -> None:
    assert ((batch or 1) * (size[0] * size[1]) ** 2 <= 2**31 - 1) is fits
    largest = ImageSize(*size)
    build._check_scores("plugin", largest, batch)
    build._check_scores("function", None, batch)
    if fits:
        build._check_scores("function", largest, batch)
    else:
        with pytest.raises(UsageError, match="more than TensorRT's 2\\^31 - 1; add --attention plugin"):
            build._check_scores("function", largest, batch)


def test_a_memory_figure_holds_a_matrix_of_scores_in_fp16() -> None:
    least = 2 * 3 * (4 * 5) ** 2
    for figure, attention, expected in (
        (least, "function", least),
        (least - 1, "function", None),
        (0, "plugin", 0),
        (None, "plugin", None),
    ):
        assert build._plausible(figure, (3, 3, 4, 5), attention) == expected  # type: ignore[arg-type]


def test_fp8_is_for_gpus_that_have_it() -> None:
    check = build.check_fp8_targets
    check("fp8", "tensorrt-rtx", ("sm_89", "sm_120"))
    check("fp8", "tensorrt", ())
    check("int8", "tensorrt-rtx", ("sm_75",))
    check(None, "tensorrt-rtx", ())
    for targets, words in (
        (
            ("sm_89", "sm_88", "sm_80"),
            r"sm_88, sm_80 cannot compute in FP8 \(E4M3\), which GPUs have from sm_89 on;",
        ),
        (
            (),
            r"sm_80, sm_86 cannot compute in FP8 .* on; TensorRT-RTX's default set includes sm_80, sm_86; name",
        ),
    ):
        with pytest.raises(HspanError, match=f"--target: {words}"):
            check("fp8", "tensorrt-rtx", targets)
