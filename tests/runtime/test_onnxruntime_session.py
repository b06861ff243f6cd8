"""Sessions of ONNX Runtime: how they are opened, what is learned of a model by running it, and its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.small_networks import Dimension, attention_network

from trt_hspan.errors import HspanError
from trt_hspan.graph import OnnxMetadata, metadata_from_model, with_metadata
from trt_hspan.runtime import onnxruntime_session
from trt_hspan.runtime.onnxruntime_session import (
    cpu_network,
    described,
    open_session,
    run_session,
    scale_of,
    translate_errors,
    with_outputs,
)


def test_a_session_runs_one_node_at_a_time_plans_no_memory_and_logs_nothing() -> None:
    options = open_session(attention_network(), "a", threads=3).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.log_severity_level == 4
    assert not options.enable_mem_pattern


@pytest.mark.parametrize("optimize", [True, False])
def test_a_graph_is_optimized_unless_it_is_to_stay(optimize: bool) -> None:
    options = {} if optimize else {"optimize": False}
    session = open_session(attention_network(), "a", **options)
    levels = onnxruntime.GraphOptimizationLevel
    level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    assert session.get_session_options().graph_optimization_level == level


def test_the_arena_that_sessions_share_grows_by_what_is_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strategy 1 is kSameAsRequested, 0 bytes are no limit, -1 is ONNX Runtime's own choice."""
    registered: list[Any] = []
    monkeypatch.setattr(
        onnxruntime, "create_and_register_allocator", lambda kind, arena: registered.append((kind, arena))
    )
    monkeypatch.setattr(onnxruntime, "OrtArenaCfg", lambda *words: words)
    onnxruntime_session._register_arena.cache_clear()
    onnxruntime_session._register_arena()
    onnxruntime_session._register_arena()
    ((kind, arena),) = registered
    onnxruntime_session._register_arena.cache_clear()  # this one was none
    assert arena == (0, 1, -1, -1)
    assert (kind.name, kind.device_id) == ("Cpu", 0)
    for shared in (True, False):
        options = open_session(attention_network(), "a", shared_arena=shared).get_session_options()
        if shared:
            assert options.get_session_config_entry("session.use_env_allocators") == "1"
        else:
            with pytest.raises(RuntimeError):
                options.get_session_config_entry("session.use_env_allocators")


def test_more_outputs_are_added_once_to_a_copy() -> None:
    model = attention_network()
    added = with_outputs(model, ["conv0", "output", "conv1"])
    assert [value.name for value in model.graph.output] == ["output"]
    assert [value.name for value in added.graph.output] == ["output", "conv0", "conv1"]
    assert {value.type.tensor_type.elem_type for value in added.graph.output} == {TensorProto.FLOAT}
    batch = np.zeros((1, 3, 4, 5), np.float32)
    outputs = run_session(open_session(added, "a"), ["conv1", "output"], batch, "a")
    assert [output.shape for output in outputs] == [(1, 8, 4, 5), (1, 3, 4, 5)]


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Of the batches that sessions run."""
    seen: list[tuple[int, ...]] = []

    def noted(session: Any, names: list[str], batch: np.ndarray, where: str) -> list[Any]:
        seen.append(batch.shape)
        return run_session(session, names, batch, where)

    monkeypatch.setattr(onnxruntime_session, "run_session", noted)
    return seen


@pytest.mark.parametrize(
    ("shape", "run"),
    [
        ((2, 3, 8, 12), (2, 3, 8, 12)),
        (("N", 3, 8, "W"), (1, 3, 8, 24)),
        (("N", 3, "H", 16), (1, 3, 24, 16)),
    ],
)
def test_a_model_of_given_sides_that_does_not_say_its_scale_is_run_at_those(
    shapes: list[tuple[int, ...]], shape: tuple[Dimension, ...], run: tuple[int, ...]
) -> None:
    model = with_metadata(attention_network(shape=shape), OnnxMetadata(res_scale=0.5))
    assert described(model, "a") == OnnxMetadata(scale=1, res_scale=0.5)
    assert shapes == [run]


def test_a_model_of_any_size_that_does_not_say_its_scale_is_run_at_several(
    shapes: list[tuple[int, ...]],
) -> None:
    model = with_metadata(attention_network(), OnnxMetadata())
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"
    assert described(model, "a") == OnnxMetadata(scale=1)
    assert {shape[:2] for shape in shapes} == {(1, 3)}
    assert len(shapes) > 1


def test_a_model_that_says_its_scale_is_not_run(shapes: list[tuple[int, ...]]) -> None:
    model = attention_network()
    assert described(model, "a") == metadata_from_model(model)
    assert shapes == []


def test_a_model_that_runs_at_no_size_is_one_line() -> None:
    model = with_metadata(attention_network(), OnnxMetadata())
    weight = next(t for t in model.graph.initializer if t.name == "conv1.weight")
    weight.dims[:] = [8, 4, 6, 3]
    del model.graph.value_info[:]
    with pytest.raises(HspanError, match=r"^a\.onnx: ONNX Runtime .*; export it again$") as refused:
        described(model, "a.onnx")
    assert "\n" not in str(refused.value)


def test_a_network_without_a_scale_is_refused() -> None:
    assert scale_of(OnnxMetadata(scale=3), "a") == 3
    with pytest.raises(HspanError, match=r"^a: its output is no whole multiple of its input in size; give a"):
        scale_of(OnnxMetadata(), "a")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("std::bad_alloc"), state.Fail("Failed to allocate memory for requested")],
)
def test_a_lack_of_memory_is_called_that(error: Exception) -> None:
    line = r"^a: it failed: out of memory; give a smaller picture$"
    with pytest.raises(HspanError, match=line), translate_errors("a", "it failed"):
        raise error


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, state.Fail, state.InvalidGraph])
def test_another_error_is_one_line_of_300_letters_at_most(kind: type[Exception]) -> None:
    with pytest.raises(HspanError) as translated, translate_errors("a", "it failed"):
        raise kind("of two\n  lines " + 400 * "x")
    assert str(translated.value) == f"a: it failed: of two lines {(300 - 13) * 'x'}; export it again"


def test_mistakes_of_the_program_are_no_errors_of_onnx_runtime() -> None:
    with pytest.raises(KeyError), translate_errors("a", "it failed"):
        raise KeyError


def test_parts_of_a_network_share_the_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def noted(model: Any, where: str, **options: Any) -> Any:
        seen.append(options)
        return open_session(model, where, **options)

    monkeypatch.setattr(onnxruntime_session, "open_session", noted)
    network = cpu_network(attention_network(), "a", threads=3)
    assert seen == [{"threads": 3, "shared_arena": True}] * 2
    assert network.run(np.zeros((1, 3, 4, 5), np.float32)).shape == (1, 3, 4, 5)
