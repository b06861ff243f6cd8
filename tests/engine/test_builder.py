"""The builder's own part of a build: its thread, what it makes of refusals, and what it tells TensorRT. On doubles."""

from __future__ import annotations

import logging
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.small_networks import attention_network
from support.tensorrt_double import MemoryPoolType, Release, releases

from trt_hspan.engine import builder as module
from trt_hspan.engine.builder import BuiltPlan, _call_in_thread, build_plan
from trt_hspan.engine.spec import EngineSpec
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.graph import model_with_plugin_nodes
from trt_hspan.names import OP_TYPE


def spec(**changes: Any) -> EngineSpec:
    return EngineSpec(**{"onnx": Path("net.onnx"), "output": Path("net.plan"), **changes})


def called(work: Any, *, poll: Any = lambda: None, cancel: Any = lambda: None) -> Any:
    return _call_in_thread(work, poll=poll, cancel=cancel)


def test_what_is_called_gives_its_result_while_this_thread_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.001)
    polls: list[int] = []
    ident = called(lambda: (time.sleep(0.02), threading.get_ident())[1], poll=lambda: polls.append(0))
    assert ident != threading.get_ident()
    assert len(polls) > 1
    polls.clear()
    assert called(lambda: 7, poll=lambda: polls.append(0)) == 7
    assert polls  # once more at the end


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_what_is_called_raises_here(kind: type[BaseException]) -> None:
    def broken() -> None:
        raise kind("why")

    with pytest.raises(kind, match="why"):
        called(broken)


def test_a_build_is_polled_twenty_times_a_second() -> None:
    assert module._POLL_SECONDS == 1 / 20


@pytest.mark.parametrize("how", ["signal", "poll"])
def test_an_interrupt_cancels_and_waits_for_the_end(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.001)
    cancelled, ended = threading.Event(), threading.Event()

    def work() -> None:
        assert cancelled.wait(20)
        time.sleep(0.01)
        ended.set()

    def poll() -> None:
        if not cancelled.is_set():
            if how == "poll":
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGINT)

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        called(work, poll=poll, cancel=cancelled.set)
    assert ended.is_set()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_others_stay_and_other_threads_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(*_: object) -> None: ...

    before = signal.signal(signal.SIGINT, own)
    try:
        assert called(lambda: signal.getsignal(signal.SIGINT)) is own
    finally:
        signal.signal(signal.SIGINT, before)
    assert called(lambda: called(lambda: 3)) == 3
    with module._interrupts_noted() as noted:
        assert signal.getsignal(signal.SIGINT) not in (own, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)
        assert noted == [signal.SIGINT]


def layer(name: str, kind: str) -> Any:
    output = SimpleNamespace(dtype=SimpleNamespace(name=kind))
    return SimpleNamespace(name=name, get_output=lambda index: [output][index])


def network_of(*layers: Any) -> Any:
    return SimpleNamespace(num_layers=len(layers), get_layer=lambda index: layers[index])


@pytest.mark.parametrize(
    ("error", "node"),
    [
        ("Could not find an implementation for {a/b}", "a/b"),
        ("for a/b/c and a/b", "a/b/c"),
        ("for xa/b", None),
        ("for a/bc", None),
        ("for full", None),
        ("[low]", "low"),
        ("", None),
    ],
)
def test_the_node_that_an_error_names_is_one_in_low_precision(error: str, node: str | None) -> None:
    network = network_of(
        layer("a/b", "HALF"), layer("a/b/c", "BF16"), layer("full", "FLOAT"), layer("low", "HALF")
    )
    assert module._low_node_in(network, error) == node


def test_each_failure_of_a_build_has_advice() -> None:
    rtx, classic = SimpleNamespace(__name__="tensorrt_rtx"), SimpleNamespace(__name__="tensorrt")
    network = network_of(layer("a node", "HALF"))
    refittable = spec(traits=frozenset({"refittable"}))
    assert module._advice(rtx, refittable, network, "").startswith(
        "build it where there is a GPU, which TensorRT-RTX"
    )
    for trt, request in ((classic, refittable), (rtx, spec())):
        assert module._advice(trt, request, network, "of a node") == (
            "keep that node in float32: --keep-fp32 'a node'"
        )
        assert module._advice(trt, request, network, "") == "see its messages with --verbose"
    more = module._advice(rtx, spec(workspace_mib=1), network, "")
    assert more == "see its messages with --verbose, or raise --workspace-mib"


class Parser:
    def __init__(self, *errors: tuple[str, str, str]) -> None:
        self.errors, self.num_errors = errors, len(errors)

    def get_error(self, index: int) -> Any:
        node, operator, reason = self.errors[index]
        return SimpleNamespace(node_name=lambda: node, node_operator=lambda: operator, desc=lambda: reason)


@pytest.mark.parametrize(
    ("errors", "first", "line"),
    [
        ((), "why", ("why", None)),
        ((), None, ("it did not say why", None)),
        ((("n", "Conv", "bad"),), None, ("node n (Conv): bad", None)),
        ((("n", "", "bad"), ("m", "", "x")), None, ("bad (and 1 more)", None)),
        (
            (("n", "FFT", "Plugin not found"), ("m", "", "x"), ("m", "", "x")),
            None,
            (
                "node n: it has no operator FFT (and 2 more)",
                "write that part of the network with other operations",
            ),
        ),
    ],
)
def test_what_the_parser_does_not_read_is_one_line(errors: Any, first: str | None, line: Any) -> None:
    log: Any = SimpleNamespace(first_error=first)
    assert module._parser_error(Parser(*errors), log) == line


def test_tensors_have_their_types_by_numpys_names() -> None:
    def tensor(name: str, kind: str) -> Any:
        return SimpleNamespace(name=name, dtype=SimpleNamespace(name=kind), shape=[1, -1])

    inputs = [tensor("a", "FLOAT"), tensor("b", "HALF")]
    outputs = [tensor("c", "BF16"), tensor("d", "INT8")]
    network = SimpleNamespace(
        num_inputs=2, num_outputs=2, get_input=lambda n: inputs[n], get_output=lambda n: outputs[n]
    )
    assert [(each.name, each.dtype, each.shape, each.mode) for each in module._io_tensors(network)] == [
        ("a", "float32", (1, -1), "input"),
        ("b", "float16", (1, -1), "input"),
        ("c", "bfloat16", (1, -1), "output"),
        ("d", "int8", (1, -1), "output"),
    ]


@pytest.mark.parametrize(
    ("name", "gpus", "opens", "expected"),
    [
        ("tensorrt", ("sm_86",), True, (100, 101)),
        ("tensorrt", ("sm_86",), False, None),
        ("tensorrt", (), True, None),
        ("tensorrt_rtx", ("sm_86",), True, None),
    ],
)
def test_an_engine_is_asked_for_its_memory_where_it_may_be_opened(
    monkeypatch: pytest.MonkeyPatch, name: str, gpus: Any, opens: bool, expected: Any
) -> None:
    engine = (
        SimpleNamespace(get_device_memory_size_for_profile_v2=lambda index: 100 + index) if opens else None
    )
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if plan == b"plan" else None)
    monkeypatch.setattr(module, "gpu_architectures", lambda: gpus)
    monkeypatch.setattr(module, "runtime_for", lambda trt, traits: runtime)
    trt = SimpleNamespace(__name__=name)
    assert module._activation_memory_from_engine(trt, b"plan", 2, frozenset()) == expected


class Config:
    """A builder's configuration."""

    def __init__(self) -> None:
        self.caches: list[bytes] = []
        self.takes = True

    def create_timing_cache(self, times: bytes) -> Any:
        return None if times == b"damaged" else times

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self.caches.append(cache)
        return self.takes or cache == b""


@pytest.mark.parametrize(
    ("content", "takes", "caches", "warned"),
    [
        (b"times", True, [b"times"], False),
        (None, True, [b""], False),
        (b"times", False, [b"times", b""], True),
        (b"damaged", True, [b""], True),
    ],
)
def test_times_of_another_gpu_are_measured_anew(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    content: bytes | None,
    takes: bool,
    caches: Any,
    warned: bool,
) -> None:
    config, path = Config(), tmp_path / "times"
    config.takes = takes
    if content is not None:
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        module._set_timing_cache(config, path)
    assert config.caches == caches
    assert bool(caplog.messages) is warned
    with pytest.raises(HspanError, match="is a folder"):
        module._set_timing_cache(config, tmp_path)


def test_what_a_release_does_not_have_is_refused() -> None:
    trt: Any = SimpleNamespace(
        __version__="10.3.0", HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="level")
    )
    config = SimpleNamespace(hardware_compatibility_level=None)
    module._set_traits(trt, config, spec(traits=frozenset({"ampere+"})))
    assert config.hardware_compatibility_level == "level"
    with pytest.raises(
        UsageError, match=r"--hardware-compatible same-cc: TensorRT 10\.3\.0 cannot do that; leave it"
    ):
        module._set_traits(trt, config, spec(traits=frozenset({"same-cc"})))


def refusing(*, shapes: int = 0, target: bool = True) -> tuple[Any, Any]:
    """TensorRT and a builder that take targets and shapes, or do not."""
    config = SimpleNamespace(
        clear_flag=lambda _: None,
        set_compute_capability=lambda value, index: target and (value, index) == ("SM", 0),
        add_optimization_profile=lambda _: shapes,
    )
    builder = SimpleNamespace(
        create_builder_config=lambda: config,
        create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *_: None),
    )
    trt = SimpleNamespace(
        BuilderFlag=SimpleNamespace(TF32=0),
        ComputeCapability=SimpleNamespace(__members__={"SM86": "SM"}),
    )
    return trt, builder


def test_targets_and_shapes_that_tensorrt_refuses_are_one_line() -> None:
    network: Any = SimpleNamespace(get_input=lambda index: [SimpleNamespace(name="input")][index])
    log: Any = SimpleNamespace(first_error="why")
    profiles: Any = (((1,), (2,), (3,)),)
    request = spec(targets=("sm_86",))
    trt, builder = refusing()
    config = module._config(trt, builder, network, request, profiles=profiles, log=log)
    assert config.num_compute_capabilities == 1
    trt, builder = refusing(shapes=-1)
    with pytest.raises(HspanError, match=r"net\.plan: TensorRT refuses these shapes: why"):
        module._config(trt, builder, network, request, profiles=profiles, log=log)
    trt, builder = refusing(target=False)
    with pytest.raises(HspanError, match="--target: TensorRT refuses sm_86: why"):
        module._config(trt, builder, network, request, profiles=profiles, log=log)


def test_the_first_build_after_one_that_failed_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[str] = []
    trt: Any = SimpleNamespace(__name__="some_tensorrt")

    def build(*_: Any, **__: Any) -> Any:
        builds.append("build")
        if len(builds) in (1, 2):
            module._FAILED.add(trt.__name__)
            raise HspanError("net.plan", f"failed {len(builds)}")
        return len(builds)

    class Log:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(module, "_build", build)
    monkeypatch.setattr(module, "collected_log", lambda _: Log())
    with pytest.raises(HspanError, match="failed 1"):
        module.build_plan(trt, spec(), b"", ())
    assert builds == ["build"]
    assert module.build_plan(trt, spec(), b"", ()) == 3
    module._FAILED.discard(trt.__name__)
    assert module.build_plan(trt, spec(), b"", ()) == 4


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Release:
    """TensorRT 10.3 and one GPU."""
    monkeypatch.setattr(module, "gpu_architectures", lambda: ("sm_86",))
    release = next(iter(releases()))
    release.plugins.add(OP_TYPE)
    return release


def built(release: Release, profiles: int, **changes: Any) -> BuiltPlan:
    model = model_with_plugin_nodes(attention_network()).SerializeToString()
    profile = ((1, 3, 8, 8), (1, 3, 16, 16), (1, 3, 32, 32))
    return build_plan(release.module, spec(**changes), model, (profile,) * profiles)


@pytest.mark.parametrize("profiles", [1, 2, 3])
def test_the_memory_of_each_profile_is_recorded(release: Release, profiles: int) -> None:
    plan = built(release, profiles)
    assert plan.activation_memory_bytes == tuple(5000 + index for index in range(profiles))
    assert plan.activation_memory_source == "engine"
    assert (plan.timing_cache, plan.weights_memory_bytes, plan.quantized_convolutions) == (None, None, None)
    assert plan.build_time_seconds == round(plan.build_time_seconds, 3) >= 0
    assert plan.network_layer_counts == {"CONVOLUTION": 3, "PLUGIN_V3": 1}


@pytest.mark.parametrize(("profiles", "memory"), [(1, (4096,)), (2, None)])
def test_the_log_is_taken_only_where_it_has_a_figure_for_each_profile(
    release: Release, monkeypatch: pytest.MonkeyPatch, profiles: int, memory: object
) -> None:
    monkeypatch.setattr(module, "gpu_architectures", lambda: ())
    plan = built(release, profiles)
    assert plan.activation_memory_bytes == memory
    assert plan.activation_memory_source == (None if memory is None else "builder log")


def test_limits_are_given_in_mebibytes(release: Release) -> None:
    built(release, 1, workspace_mib=3, tactic_dram_mib=5, optimization_level=0)
    assert release.built is not None
    config = release.built[1]
    assert config.pools == {MemoryPoolType.WORKSPACE: 3 << 20, MemoryPoolType.TACTIC_DRAM: 5 << 20}
    assert config.builder_optimization_level == 0
