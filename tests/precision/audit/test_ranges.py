"""The range audit, against values computed with numpy and PyTorch."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from support.golden import GOLDEN, load_golden_network
from support.loud_network import loud_network
from support.small_networks import attention_network

from trt_hspan import load_model, onnx_from_model
from trt_hspan.engine.range_record import LIMITS, NodeRange, RangeAudit
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.evaluation.datasets import Sample
from trt_hspan.graph import (
    Variants,
    attention_nodes,
    model_for_cpu,
    model_in_precision,
    model_with_attention_function,
    variants_from_model,
)
from trt_hspan.graph.float32_twin import Float32Twin, float_outputs
from trt_hspan.media.pixels import tensor_from_image
from trt_hspan.media.writing import write_picture
from trt_hspan.precision.audit import ranges
from trt_hspan.precision.audit.ranges import audit_ranges
from trt_hspan.runtime.onnxruntime_session import open_session, run_session
from trt_hspan.upscaling.tile_size import ANY_SIZE


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Two pictures of 20x16 and 18x18 pixels."""
    found = []
    for index, (height, width) in enumerate([(16, 20), (18, 18)]):
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = tmp_path / f"{index}.png"
        write_picture(path, pixels)
        found.append(Sample(name=path.name, low_resolution=path, ground_truth=None, scale=4))
    return found


def by_name(audit: RangeAudit) -> dict[str, NodeRange]:
    return {node.node: node for node in audit.nodes}


def test_largest_activations_are_those_of_pytorch(samples: list[Sample]) -> None:
    model = load_model(GOLDEN / "small_x4.pt")
    largest: dict[str, float] = {}

    def remember(name: str):
        def hook(_: object, __: object, output: torch.Tensor) -> None:
            largest[name] = max(largest.get(name, 0.0), float(output.abs().max()))

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(remember(name))
    with torch.inference_mode():
        for sample in samples:
            model(torch.from_numpy(tensor_from_image(sample.load()[0])))
    expected = dict(largest)  # before the export runs the module itself
    audit = audit_ranges(onnx_from_model(model), samples, "fp16", threads=1)
    nodes = by_name(audit)
    for node, module in [
        ("head.0/Conv", "head.0"),
        ("body.0.body.0/Add", "body.0.body.0"),
        ("body.0.body.1.conv_match1.1/PRelu", "body.0.body.1.conv_match1.1"),
        ("body.1/Add", "body.1"),
        ("tail.0.1/DepthToSpace", "tail.0.1"),
        ("add_mean/Conv", "add_mean"),
    ]:
        # Sums of 9 * 32 products in another order: some 300 roundings of 2^-24.
        assert nodes[node].largest == pytest.approx(expected[module], rel=3e-5), node
    assert audit.pictures == 2
    assert not audit.at_risk


def test_scores_are_those_of_query_and_key(samples: list[Sample]) -> None:
    model = attention_network()
    audit = audit_ranges(model, samples, "fp16", threads=1)
    weight = torch.from_numpy(numpy_helper.to_array(model.graph.initializer[0]).copy()).double()
    largest, moved = 0.0, 0.0
    for sample in samples:
        image = torch.from_numpy(tensor_from_image(sample.load()[0])).double()
        tokens = torch.nn.functional.conv2d(image, weight, padding=1).flatten(2)[0].T
        rounded = tokens.half().double()
        scores, low = tokens @ tokens.T, rounded @ rounded.T
        deciding = scores > scores.amax(1, keepdim=True) - 1
        largest = max(largest, float(scores.abs().max()))
        moved = max(moved, float((low - scores).abs()[deciding].max()))
    attention = by_name(audit)["attention0"]
    # Float32 sums of 8 products against float64; the rounding error is itself rounded to some 2^-24 * largest.
    assert attention.largest_score == pytest.approx(largest, rel=1e-5)
    assert attention.score_error == pytest.approx(moved, rel=0.05)
    assert all(node.largest_score is None for node in audit.nodes if node.op_type == "Conv")


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 31])
def test_scores_in_chunks_are_those_of_all_at_once(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(tokens)
    query, key = (random.normal(size=(1, 5, 1, tokens)).astype(np.float32) for _ in range(2))
    whole, chunks = ranges._Gathered(), ranges._Gathered()
    whole.add_scores(query, key, np.float16)
    monkeypatch.setattr(ranges, "_SCORES", 8 * tokens)
    chunks.add_scores(query, key, np.float16)
    scores = np.einsum("cq,ck->qk", query[0, :, 0].astype(np.float64), key[0, :, 0])
    # Float32 sums of 5 products, whose order may depend on the number of rows: some roundings of 2^-24.
    assert chunks.largest_score == pytest.approx(np.abs(scores).max(), rel=1e-5)
    assert chunks.largest_score == pytest.approx(whole.largest_score, rel=1e-6)
    assert chunks.score_error == pytest.approx(whole.score_error, abs=1e-5)


def test_no_array_of_the_audit_grows_with_the_square_of_the_picture() -> None:
    query = np.random.default_rng(0).normal(size=(1, 4, 64, 64)).astype(np.float32)
    tracemalloc.start()
    ranges._Gathered().add_scores(query, query, np.float16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 4096**2 / 4  # a quarter of all scores in float32


def test_an_overflow_of_a_score_counts_as_infinite() -> None:
    query = np.full((1, 2, 2, 2), 3e4, np.float32)
    query[0, 0, 0, 0] = 1e5  # infinite in FP16
    gathered = ranges._Gathered()
    gathered.add_scores(query, query, np.float16)
    assert gathered.score_error == math.inf
    assert gathered.largest_score == pytest.approx(1e10 + 9e8, rel=1e-6)


def test_typed_network_itself_says_which_nodes_are_low(samples: list[Sample]) -> None:
    model = attention_network()
    kept = model_with_attention_function(model_in_precision(model, "fp16", keep_fp32=["conv1", "conv2"]))
    low = {node.node: node.low for node in audit_ranges(kept, samples, "fp16", threads=1).nodes}
    assert low["conv0"]
    assert low["attention0"]
    assert not low["conv1"]


def scaled_up(model: onnx.ModelProto, index: int, factor: float) -> onnx.ModelProto:
    weight = model.graph.initializer[index]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))
    return model


def test_activation_near_the_limit_is_reported_with_its_maker_and_readers(samples: list[Sample]) -> None:
    base = audit_ranges(attention_network(), samples, "fp16", threads=1)
    last = by_name(base)["conv1"].largest
    assert last is not None
    # A third of the limit is beyond the reserve's half of it only when multiplied by 2.
    quiet = audit_ranges(scaled_up(attention_network(), 1, 65504 / last / 2.2), samples, "fp16", threads=1)
    near = audit_ranges(scaled_up(attention_network(), 1, 65504 / last / 1.8), samples, "fp16", threads=1)
    assert "activation" not in by_name(quiet)["conv1"].risks
    assert by_name(near)["conv1"].risks == ("activation",)
    assert set(by_name(near)["conv1"].cure) == {"conv1", "conv2"}
    assert near.cure == ("conv1", "conv2")
    assert not audit_ranges(
        scaled_up(attention_network(), 1, 65504 / last), samples, "bf16", threads=1
    ).at_risk


def test_scores_near_the_limit_are_reported_though_activations_are_small(samples: list[Sample]) -> None:
    largest = by_name(audit_ranges(attention_network(), samples, "fp16", threads=1))[
        "attention0"
    ].largest_score
    assert largest is not None
    model = scaled_up(attention_network(), 0, math.sqrt(65504 / largest / 1.5))
    attention = by_name(audit_ranges(model, samples, "fp16", threads=1))["attention0"]
    assert attention.risks == ("score", "score precision")
    assert attention.largest_score == pytest.approx(65504 / 1.5, rel=1e-3)
    assert "attention0" in attention.cure


def test_weight_beyond_the_limit_is_reported(samples: list[Sample]) -> None:
    model = attention_network()
    weight = numpy_helper.to_array(model.graph.initializer[2]).copy()
    weight[0, 0, 0, 0] = 70000.0
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(weight, model.graph.initializer[2].name))
    found = by_name(audit_ranges(model, samples, "fp16", threads=1))["conv2"]
    assert "weight" in found.risks
    assert found.largest_weight == 70000.0


def test_sum_that_swallows_its_smaller_summand_is_reported_for_bf16_alone(samples: list[Sample]) -> None:
    # 30 + x, with x of some 0.3: BF16 keeps 8 bits, so its step there is 1/8 and its error 0.036; FP16 keeps 3 more.
    graph = attention_network()
    first = graph.graph.node[0].output[0]
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(30.0), "thirty"))
    large = helper.make_node("Mul", [first, "zero"], ["nothing"], name="nothing")
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(0.0), "zero"))
    lifted = helper.make_node("Add", ["nothing", "thirty"], ["lifted"], name="lifted")
    total = helper.make_node("Add", ["lifted", first], ["total"], name="total")
    for offset, node in enumerate((large, lifted, total)):
        graph.graph.node.insert(1 + offset, node)
    for node in graph.graph.node[4:]:
        for index, name in enumerate(node.input):
            if name == first:
                node.input[index] = "total"
    for precision, expected in (("bf16", True), ("fp16", False)):
        audit = by_name(audit_ranges(graph, samples, precision, threads=1))
        assert audit["lifted"].update_snr_db is None  # one of its summands is a constant
        assert ("update" in audit["total"].risks) is expected
    bf16 = by_name(audit_ranges(graph, samples, "bf16", threads=1))["total"].update_snr_db
    fp16 = by_name(audit_ranges(graph, samples, "fp16", threads=1))["total"].update_snr_db
    assert bf16 is not None
    assert fp16 is not None
    assert fp16 - bf16 == pytest.approx(20 * math.log10(8), abs=1)


@pytest.mark.parametrize(("exponent", "naive_fails"), [(0, False), (18, True), (22, True)])
def test_network_that_overflows_naive_fp16_comes_out_right_when_nodes_at_risk_stay_float32(
    samples: list[Sample], exponent: int, naive_fails: bool
) -> None:
    golden = load_golden_network("small_x4")
    model = loud_network(load_model(golden.checkpoint, res_scale=golden.res_scale), 2.0**exponent)
    with torch.inference_mode():
        expected = model(torch.from_numpy(golden.input)).numpy()
    np.testing.assert_allclose(expected, golden.output, atol=2e-5)
    network = variants_from_model(onnx_from_model(model), "test")
    audit = audit_ranges(network.template("fp16"), samples, "fp16", keep_fp32=network.kept_fp32, threads=1)
    assert bool(audit.at_risk) is naive_fails
    if naive_fails:
        stream = by_name(audit)["body.0/Add"]
        assert stream.largest is not None
        assert stream.largest > LIMITS["fp16"]
        assert "activation" in stream.risks
        assert naive_fp16_is_broken(network, golden.input)
    cured = fp16_output(network, audit.cure, golden.input)
    # FP16 keeps 11 bits: 66 dB for one rounding of a value near 1, more through the residual path.
    assert -10 * math.log10(float(np.mean((cured - expected) ** 2))) > 66


def fp16_output(network: Variants, keep_fp32: tuple[str, ...], batch: np.ndarray) -> np.ndarray:
    typed = network.model("fp16", keep_fp32=keep_fp32)
    session = open_session(model_for_cpu(typed), "test", threads=1)
    return run_session(session, ["output"], batch, "test")[0]


def naive_fp16_is_broken(network: Variants, batch: np.ndarray) -> bool:
    """Whether plain FP16 cannot hold the network: a weight does not fit, or the output is not finite."""
    try:
        output = fp16_output(network, (), batch)
    except HspanError as error:
        return "does not fit fp16" in str(error)
    return not np.isfinite(output).all()


def test_large_pictures_are_audited_in_parts(tmp_path: Path) -> None:
    pixels = np.zeros((40, 70, 3), np.uint8)
    pixels[39, 69] = 255
    write_picture(tmp_path / "a.png", pixels)
    sample = Sample(name="a", low_resolution=tmp_path / "a.png", ground_truth=None, scale=1)
    whole = audit_ranges(attention_network(), [sample], "fp16", tile=70, threads=1)
    parts = audit_ranges(attention_network(), [sample], "fp16", tile=24, threads=1)
    assert by_name(parts)["conv0"].largest == pytest.approx(by_name(whole)["conv0"].largest, rel=1e-5)
    assert parts.tile == 24


def test_network_of_a_fixed_size_is_audited_in_tiles_of_that_size(samples: list[Sample]) -> None:
    audit = audit_ranges(attention_network(shape=(1, 3, 32, 40)), samples, "fp16", threads=1)
    free = audit_ranges(attention_network(), samples, "fp16", threads=1)
    assert [node.node for node in audit.nodes] == [node.node for node in free.nodes]


def test_wrong_requests_are_one_line(samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'int8' has no range to audit"):
        audit_ranges(attention_network(), samples, "int8")
    with pytest.raises(UsageError, match="--tile: got 8"):
        audit_ranges(attention_network(), samples, "fp16", tile=8)
    with pytest.raises(HspanError, match="there are no pictures"):
        audit_ranges(attention_network(), [], "fp16")
    gone = Sample(name="a", low_resolution=tmp_path / "gone.png", ground_truth=None, scale=1)
    with pytest.raises(HspanError, match=r"gone\.png: no such file"):
        audit_ranges(attention_network(), [gone], "fp16")
    no_attention = attention_network()
    for node in attention_nodes(no_attention):
        no_attention.graph.node.remove(node)
    with pytest.raises(HspanError, match="contains no hspan::"):
        audit_ranges(no_attention, samples, "fp16")


def test_progress_is_the_number_of_audited_pictures_and_16_is_the_least_tile(samples: list[Sample]) -> None:
    shown: list[tuple[str, float, float]] = []
    audit = audit_ranges(
        attention_network(),
        samples,
        "fp16",
        tile=16,
        threads=1,
        on_progress=lambda *moment: shown.append(moment),
    )
    assert shown == [("auditing", 0, 2), ("audited 0.png", 1, 2), ("audited 1.png", 2, 2)]
    assert (audit.tile, audit.pictures, audit.limit) == (16, 2, 65504.0)
    with pytest.raises(UsageError, match="--tile: got 15, expected at least 16 pixels"):
        audit_ranges(attention_network(), samples, "fp16", tile=15)


def test_nodes_that_are_kept_are_not_low(samples: list[Sample]) -> None:
    audit = audit_ranges(attention_network(), samples, "fp16", keep_fp32=["conv1", "conv2"], threads=1)
    assert {node.node: node.low for node in audit.nodes} == {
        "conv0": True,
        "attention0": True,
        "conv1": False,
        "conv2": False,
    }


def test_every_pixel_is_in_a_tile_of_the_side_at_most(tmp_path: Path) -> None:
    places = np.indices((40, 70)).transpose(1, 2, 0).astype(np.uint8)
    pixels = np.dstack([places, places[..., :1]])
    write_picture(tmp_path / "a.png", pixels)
    sample = Sample(name="a", low_resolution=tmp_path / "a.png", ground_truth=None, scale=1)
    tiles = list(ranges._tiles(sample, ANY_SIZE, 24))
    assert [tile.shape for tile in tiles] == [(1, 3, 24, 24)] * (2 * 3)
    seen = np.concatenate([np.rint(255 * tile[0, :2].reshape(2, -1)) for tile in tiles], axis=1)
    assert len(np.unique(seen, axis=1).T) == 40 * 70
    assert [tile.shape for tile in ranges._tiles(sample, ANY_SIZE, 70)] == [(1, 3, 40, 70)]


def test_powers_and_the_largest_are_sums_over_parts_and_a_nan_stays() -> None:
    parts = [np.array([[3.0, -4.0]], np.float32), np.array([[0.1], [2049.0]], np.float32)]
    gathered = ranges._Gathered()
    for part in parts:
        gathered.add(part, np.float16)
    values = np.concatenate([part.ravel() for part in parts]).astype(np.float64)
    errors = values.astype(np.float16).astype(np.float64) - values
    assert gathered.largest == 2049.0
    assert gathered.power == pytest.approx((values**2).sum(), rel=1e-12)
    assert gathered.error_power == pytest.approx((errors**2).sum(), rel=1e-6)
    for before, after in (([math.nan], [1.0]), ([1.0], [math.nan])):
        broken = ranges._Gathered()
        for part in (before, after):
            broken.add(np.array(part, np.float32), np.float16)
        assert math.isnan(broken.largest)


def test_a_score_one_below_the_largest_has_no_weight_and_no_say() -> None:
    """2049 is rounded to 2048 in FP16, 2050 to itself."""
    for key, moved in (([2050.0, 2049.0], 0.0), ([2050.0, 2049.0625], 0.9375), ([2049.0, 5.0], 1.0)):
        gathered = ranges._Gathered()
        key_array = np.array(key, np.float32).reshape(1, 1, 1, 2)
        gathered.add_scores(np.ones_like(key_array), key_array, np.float16)
        assert (gathered.largest_score, gathered.score_error) == (max(key), moved)


def test_a_score_that_is_no_number_in_the_low_type_counts_as_infinite() -> None:
    query = np.array([1e5, 0.0], np.float32).reshape(1, 2, 1, 1)  # infinite in FP16, times 0
    gathered = ranges._Gathered()
    gathered.add_scores(query, query[:, ::-1], np.float16)
    assert (gathered.largest_score, gathered.score_error) == (0.0, math.inf)


def block() -> onnx.ModelProto:
    """a, then b and c to query and key, a itself as value; a sum around it, and a convolution with weights."""
    text = """
        <ir_version: 10, opset_import: ["" : 22, "hspan" : 1]>
        net (float[1, 2, 4, 4] input) => (float[1, 2, 4, 4] output)
        <float[2, 2, 1, 1] w = {1, -65504, 2, 3}, int64[4] sizes = {1, 2, 4, 4}>
        {
            a = Relu(input)
            b = Relu(a)
            c = Relu(a)
            attended = hspan.HighSimilarityPassAttention(b, c, a)
            total = Add(attended, a)
            shaped = Reshape(total, sizes)
            output = Conv(total, w)
        }
    """
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def judged(*, low: str = "a b c attended total output", **figures: dict[str, float]) -> dict[str, NodeRange]:
    """Verdicts on `block` for FP16 where tensors have these statistics; others are harmless."""
    model = block()
    harmless = {"largest": 1.0, "power": 100.0, "error_power": 1.0}
    gathered = {
        tensor: ranges._Gathered(**{**harmless, **figures.get(tensor, {})})
        for _, tensor in float_outputs(model)
    }
    twin = Float32Twin(model=model, low_nodes=frozenset(low.split()))
    verdict = ranges._Verdict(twin, float_outputs(model), gathered, twin.low_nodes, "fp16")
    return {node.node: node for node in verdict.ranges()}


HALF = 65504.0 / 2
BEYOND = math.nextafter(HALF, math.inf)


@pytest.mark.parametrize(
    ("tensor", "figures", "risks", "cure"),
    [
        ("a", {"largest": HALF}, (), ()),
        ("a", {"largest": BEYOND}, ("activation",), ("a", "attended", "b", "c", "total")),
        ("b", {"largest": BEYOND}, ("activation",), ("attended", "b")),
        ("a", {"largest": math.inf}, ("not finite", "activation"), ("a", "attended", "b", "c", "total")),
        ("a", {"power": math.nan}, ("not finite",), ()),
        ("attended", {"largest_score": HALF, "score_error": 0.5}, (), ()),
        ("attended", {"largest_score": BEYOND}, ("score",), ("attended", "b", "c")),
        ("attended", {"score_error": 0.51}, ("score precision",), ("attended", "b", "c")),
        ("a", {"largest_score": BEYOND, "score_error": 1.0}, (), ()),
        ("total", {"error_power": 1.0}, (), ()),
        ("total", {"error_power": 1.01}, ("update",), ("total",)),
        ("total", {"error_power": math.inf}, ("update",), ("total",)),
        ("total", {"error_power": 0.0}, (), ()),
    ],
)  # fmt: skip
def test_what_is_past_a_threshold_is_a_risk_with_its_cure(
    tensor: str, figures: dict[str, float], risks: tuple[str, ...], cure: tuple[str, ...]
) -> None:
    verdict = judged(**{tensor: figures})[tensor]
    assert (verdict.risks, verdict.cure) == (risks, cure)
    others = [node for name, node in judged(**{tensor: figures}).items() if name != tensor]
    assert not [node.node for node in others if node.risks]


def test_a_nodes_figures_are_those_of_its_result() -> None:
    verdicts = judged(b={"largest": 3.0, "power": 1000.0, "error_power": 1.0}, total={"error_power": 0.0})
    assert (verdicts["b"].largest, verdicts["b"].rounding_snr_db) == (3.0, pytest.approx(30.0))
    assert (verdicts["total"].rounding_snr_db, verdicts["total"].update_snr_db) == (None, None)
    assert judged()["total"].update_snr_db == pytest.approx(20.0)
    smaller = judged(attended={"power": 10.0})["total"]
    assert smaller.update_snr_db == pytest.approx(10.0)
    assert judged(a={"power": 0.0})["total"].risks == ("update",)
    assert verdicts["b"].update_snr_db is None
    weights = {
        name: node.largest_weight for name, node in verdicts.items() if node.largest_weight is not None
    }
    assert weights == {"output": 65504.0}  # sizes are no weights
    assert (verdicts["attended"].largest_score, verdicts["b"].largest_score) == (0.0, None)
    broken = judged(attended={"largest": math.nan, "largest_score": math.inf, "score_error": math.nan})
    attended = broken["attended"]
    assert (attended.largest, attended.largest_score, attended.score_error) == (None, None, None)


def test_a_result_is_low_where_its_node_or_a_reader_is_and_the_output_never() -> None:
    low = {name: node.low for name, node in judged(low="b output").items()}
    assert {name for name, is_low in low.items() if is_low} == {"a", "b", "total"}
    kept = judged(low="b output", a={"largest": BEYOND}, attended={"largest_score": BEYOND})
    assert kept["a"].cure == ("b",)
    assert (kept["attended"].risks, kept["attended"].cure) == ((), ())
    assert judged(low="a", total={"error_power": 9.0})["total"].risks == ()


def test_a_weight_is_a_risk_beyond_the_limit_in_a_low_node(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judged()["output"].risks == ()
    monkeypatch.setitem(LIMITS, "fp16", 65503.0)  # type: ignore[arg-type]
    assert (judged()["output"].risks, judged()["output"].cure) == (("weight",), ("output",))
    assert judged(low="a")["output"].risks == ()
