"""The kernel step of `make gpu` on the interpreter, whose device memory is main memory; timing and network on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.interpreted_cuda import InterpretedLibrary

from tools.gpu_report import kernels, network, timing
from tools.gpu_report.inputs import REGIMES
from tools.gpu_report.kernels import Attention, Case, Memory, run_cases
from tools.kernel_report.interpreter import missing_for_interpreter
from trt_hspan.native.cuda_attention import CudaProblem

MISSING = missing_for_interpreter()
needs_interpreter = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

SMALL = [Case(regime=regime, sizes=kernels._sizes(1, 3, 5, 33)) for regime in ("mid", "flat", "nan", "huge")]


@pytest.fixture(scope="module")
def library() -> InterpretedLibrary:
    return InterpretedLibrary()


@needs_interpreter
def test_every_configuration_type_and_layout_is_run_twice(library: InterpretedLibrary) -> None:
    outcome = run_cases(Attention(library, "cpu"), SMALL, budget_seconds=600)
    assert outcome.failures == []
    assert outcome.not_run == []
    of_both_layouts = 2 * 2 * len(SMALL)
    assert outcome.runs_by_configuration.keys() == set(library.configurations)
    # Some tile shapes are for FP16 and BF16 alone.
    assert set(outcome.runs_by_configuration.values()) <= {3 * of_both_layouts, 2 * of_both_layouts}
    assert outcome.runs_by_configuration["automatic"] == 3 * of_both_layouts
    assert set(outcome.of_bound) == {"float32", "float16", "bfloat16"}


class Spoiled(Attention):
    """Kernels with a mistake: of every second call the first output is wrong, or of every call."""

    every_call = False
    calls = 0

    def start(self, problem: CudaProblem, memory: Memory) -> None:
        super().start(problem, memory)
        self.calls += 1
        if self.every_call or self.calls % 2 == 0:
            memory.output.flatten()[0] = 5.0


@needs_interpreter
@pytest.mark.parametrize(
    ("every_call", "line"), [(False, "different bits"), (True, "row 0 channel 0: 5.0 instead of")]
)
def test_wrong_outputs_are_noticed(library: InterpretedLibrary, every_call: bool, line: str) -> None:
    attention = Spoiled(library, "cpu")
    attention.every_call = every_call
    outcome = run_cases(attention, SMALL[:1], budget_seconds=600)
    assert any(line in failure for failure in outcome.failures)
    assert ("different bits" in " ".join(outcome.failures)) != every_call


@needs_interpreter
def test_what_does_not_fit_the_time_is_listed(library: InterpretedLibrary) -> None:
    outcome = run_cases(Attention(library, "cpu"), SMALL, budget_seconds=-1)
    assert outcome.runs == 0
    assert outcome.not_run[0] == "mid N 1 C 3 D 5 L 33 float32"
    assert len(outcome.not_run) == 3 * len(SMALL)


def test_the_cases_go_from_one_position_to_65536_and_have_every_regime() -> None:
    cases = kernels.all_cases()
    positions = [case.sizes.positions for case in cases]
    assert (min(positions), max(positions)) == (1, 65536)
    assert {case.regime for case in cases} == {*REGIMES, "photograph"}
    assert {(case.sizes.score_channels, case.sizes.value_channels) for case in cases} >= {(16, 32), (96, 192)}
    assert {case.regime for case in kernels.quick_cases()} == set(REGIMES)


def test_every_size_is_for_every_configuration_and_plain_kernels_of_long_rows_come_last() -> None:
    cases = kernels.all_cases()
    for positions in {case.sizes.positions for case in cases}:
        taking = [case for case in cases if case.sizes.positions == positions]
        for configuration in ("automatic", "plain-32x128", "tiled-two-looks"):
            assert any(case.takes(configuration) for case in taking), (positions, configuration)
    is_plain = [case.is_plain for case in cases]
    assert is_plain == sorted(is_plain)
    assert not any(case.takes("automatic") for case in cases if case.is_plain)


@needs_interpreter
def test_the_timing_step_measures_every_form_and_checks_what_it_measured(
    library: InterpretedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "_WARM_UPS", 0)
    monkeypatch.setattr(timing, "_MOST_RUNS", 1)
    clock = timing.Clock("cpu")
    rates = timing.measured_rates(clock, copied_bytes=1 << 16, side=32)
    assert set(rates) == {"copy_gb_per_s", *(f"{name}_tflop_per_s" for name in kernels.TYPES)}
    answer = timing.times_of(clock, Attention(library, "cpu"), rates, sides=(5,), budget_seconds=600)
    assert (answer["failures"], answer["not_run"]) == ([], [])
    measured = [row for row in answer["rows"] if "median_ms" in row]
    assert {"this, automatic", "softmax, math", "dense sparsemax, by sorting"} <= {
        row["form"] for row in measured
    }
    assert {(row["score_channels"], row["type"], row["data"]) for row in measured} == {
        (channels, name, data)
        for channels in (16, 96)
        for name in ("float16", "float32")
        for data in ("photograph", "random")
    }
    wrong = Spoiled(library, "cpu")
    wrong.every_call = True
    answer = timing.times_of(clock, wrong, rates, sides=(5,), budget_seconds=600)
    assert not [row for row in answer["rows"] if row["form"].startswith("this")]
    assert len(answer["failures"]) == 8


def test_the_floor_is_arithmetic_or_traffic_whichever_takes_longer() -> None:
    sizes = kernels._sizes(1, 16, 32, 1000)
    rates = {"copy_gb_per_s": 100.0, "float16_tflop_per_s": 1.0}
    # 2 * 1000^2 * 16 operations at 1e12 a second; 2 * 1000 * 48 numbers of 2 bytes at 1e11 bytes a second
    assert timing.floor_ms(sizes, "float16", rates) == pytest.approx(0.032)
    assert timing.floor_ms(sizes, "float16", rates | {"float16_tflop_per_s": 1e6}) == pytest.approx(0.00192)


def test_the_dense_form_is_sparsemax_attention() -> None:
    inputs = SMALL[0].inputs(torch.float32, "cpu")
    reference = kernels.reference_of(inputs, most_rows=33)
    actual = timing.dense_form(inputs.query, inputs.key, inputs.value)
    torch.testing.assert_close(actual.double(), reference.outputs, rtol=0, atol=1e-5)


def test_the_network_step_holds_both_types_to_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr(network, "SIDES", (12,))
    monkeypatch.setattr(network, "TIMED_SIDES", (8,))
    monkeypatch.setattr(timing, "_MOST_RUNS", 1)
    answer = network.run(tmp_path / "library.so", environment, "cpu")
    assert answer["failures"] == []
    assert [(row["type"], row["side"]) for row in answer["rows"]] == [("float32", 12), ("float16", 12)]
    assert environment == {"TRT_HSPAN_CUDA_LIBRARY": str(tmp_path / "library.so")}
    monkeypatch.setattr(network, "BARS", {"float16": 200.0})
    (line,) = network.run(tmp_path / "library.so", environment, "cpu")["failures"]
    assert line.endswith("dB against float64, 200 are the bar")
