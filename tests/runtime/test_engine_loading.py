"""From a plan to an engine and its contexts, on doubles of TensorRT. With a driver in `test_tensorrt_on_standin`."""

from __future__ import annotations

import enum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.runtime.engine_loading import LoadedEngine, engine_validity


class EngineValidity(enum.Enum):
    VALID, SUBOPTIMAL, INVALID = range(3)


class Diagnostics(enum.IntFlag):
    VERSION_MISMATCH, UNSUPPORTED_CC, NEW_ONE = 1, 2, 128


TRT = SimpleNamespace(EngineValidity=EngineValidity, EngineInvalidityDiagnostics=Diagnostics)


def check(validity: EngineValidity, diagnosis: int) -> None:
    runtime = SimpleNamespace(get_engine_validity=lambda data: (validity, diagnosis))
    engine_validity(TRT, runtime, b"", "net.plan")


def test_a_plan_that_is_valid_and_one_of_another_tensorrt_pass(caplog: pytest.LogCaptureFixture) -> None:
    engine_validity(TRT, SimpleNamespace(), b"", "net.plan")
    check(EngineValidity.VALID, 3)
    check(EngineValidity.INVALID, 0)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("diagnosis", "line"),
    [
        (
            1,
            "net.plan: was built by another TensorRT-RTX release; build the engine again with trt-hspan build",
        ),
        (
            3,
            "net.plan: was built by another TensorRT-RTX release; build the engine again with trt-hspan build",
        ),
        (
            2,
            "net.plan: contains no code for this GPU; build the engine again with trt-hspan build and --target",
        ),
        (128, "net.plan: is invalid: NEW_ONE; build the engine again with trt-hspan build"),
    ],
)
def test_an_invalid_plan_is_one_line(diagnosis: int, line: str) -> None:
    with pytest.raises(HspanError) as refused:
        check(EngineValidity.INVALID, diagnosis)
    assert str(refused.value) == line


@pytest.mark.parametrize(("diagnosis", "reasons"), [(130, "UNSUPPORTED_CC, NEW_ONE"), (0, "no reason")])
def test_a_slow_plan_is_a_warning(caplog: pytest.LogCaptureFixture, diagnosis: int, reasons: str) -> None:
    check(EngineValidity.SUBOPTIMAL, diagnosis)
    assert caplog.messages == [f"net.plan: runs here, but slower than it could: {reasons}"]


class Logger:
    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)


class Context:
    def __init__(self, answer: object) -> None:
        self.answer, self.selected = answer, None

    def set_optimization_profile_async(self, profile: int, stream: int) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        self.selected = (profile, stream)
        return self.answer


class Cache:
    """Of one release: takes its own data alone."""

    def __init__(self) -> None:
        self.data: bytes | None = b""

    def deserialize(self, data: bytes) -> bool:
        self.data = data
        return data == b"good"

    def serialize(self) -> Any:
        return None if self.data is None else memoryview(self.data)


class Config:
    def __init__(self) -> None:
        self.cuda_graph_strategy = self.dynamic_shapes_kernel_specialization_strategy = "none"
        self.strategy, self.cache = "none", None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Cache:
        return Cache()

    def set_runtime_cache(self, cache: Cache) -> None:
        self.cache = cache


class Engine:
    """With so many profiles; `rtx` has a configuration."""

    def __init__(self, profiles: int = 1, names: tuple[str, ...] = ("input", "output"), **facts: Any) -> None:
        self.num_optimization_profiles, self.num_io_tensors = profiles, len(names)
        self.names, self.types = names, facts.get("types", {})
        self.context: Any = facts.get("context", Context(True))
        self.given: list[object] = []
        if facts.get("rtx"):
            self.create_runtime_config = Config

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> str:
        return self.types.get(name, "float")

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        assert name == "input"
        return [[1, 3, side, side + index] for side in (4, 8, 16)]

    def create_execution_context(self, what: object) -> Any:
        self.given.append(what)
        return self.context

    def get_engine_stat(self, what: str) -> int:
        return {"weights": 1234, "none": -1}[what]

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda form: f"layers in {form}")


def loaded(engine: Any, *, cache: bytes | None = None, **more: Any) -> LoadedEngine:
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: engine if data == b"plan" else None)
    trt = ModuleType("tensorrt")
    vars(trt).update(
        ILogger=Logger,
        Runtime=lambda logger: runtime,
        DataType=SimpleNamespace(FLOAT="float"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="ours"),
        CudaGraphStrategy=SimpleNamespace(DISABLED="off"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        LayerInformationFormat=SimpleNamespace(JSON="JSON"),
        **more,
    )
    return LoadedEngine(trt, b"plan", "net.plan", cache=cache)


def test_an_engine_says_its_profiles_and_layers() -> None:
    engine = loaded(Engine(2))
    assert engine.profiles == (
        ((1, 3, 4, 4), (1, 3, 8, 8), (1, 3, 16, 16)),
        ((1, 3, 4, 5), (1, 3, 8, 9), (1, 3, 16, 17)),
    )
    assert engine.layer_information() == "layers in JSON"
    assert engine.runtime_cache_data() is None


def test_the_size_of_weights_is_said_where_tensorrt_says_it() -> None:
    assert loaded(Engine()).weights_bytes() is None
    for statistic, size in (("weights", 1234), ("none", None)):
        engine = loaded(Engine(), EngineStat=SimpleNamespace(TOTAL_WEIGHTS_SIZE=statistic))
        assert engine.weights_bytes() == size
    empty = Engine()
    empty.get_engine_stat = lambda what: 0  # type: ignore[method-assign]
    assert loaded(empty, EngineStat=SimpleNamespace(TOTAL_WEIGHTS_SIZE="")).weights_bytes() == 0


def test_a_context_has_no_memory_of_its_own_and_a_profile_if_there_are_several() -> None:
    one, two = Engine(1), Engine(2)
    assert loaded(one).create_context(0, 7).selected is None
    assert loaded(two).create_context(1, 7).selected == (1, 7)
    assert one.given == two.given == ["ours"]


@pytest.mark.parametrize(
    ("context", "profiles", "line"),
    [
        (None, 1, "cannot create an execution context: TensorRT gives no reason; build the engine again"),
        (Context(False), 2, "cannot select profile 1: TensorRT gives no reason; build the engine again"),
        (Context(RuntimeError("refused")), 2, "cannot select profile 1: refused; build the engine again"),
        (Context(ValueError("refused")), 2, "cannot select profile 1: refused; build the engine again"),
    ],
)
def test_a_context_that_tensorrt_refuses_is_one_line(context: Any, profiles: int, line: str) -> None:
    with pytest.raises(HspanError) as refused:
        loaded(Engine(profiles, context=context)).create_context(1, 7)
    assert str(refused.value).startswith(f"net.plan: {line}")


def test_a_context_without_room_is_a_lack_of_memory() -> None:
    context = Context(RuntimeError("Error Code 2: OutOfMemory"))
    with pytest.raises(OutOfMemoryError, match=r"cannot select profile 0: .*; free some of the GPU's memory"):
        loaded(Engine(2, context=context)).create_context(0, 7)


def test_a_plan_that_tensorrt_cannot_read_is_one_line() -> None:
    with pytest.raises(
        HspanError, match=r"^net\.plan: cannot be loaded: TensorRT gives no reason; build the"
    ):
        loaded(None)


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"names": ("input", "picture")}, "its tensors are input, picture, expected input and output; build"),
        ({"names": ("input",)}, "its tensors are input, expected input and output"),
        ({"types": {"input": "half"}}, "its input is not float32; build"),
        ({"types": {"output": "half"}}, "its output is not float32"),
    ],
)
def test_an_engine_of_another_interface_is_refused(facts: dict[str, Any], line: str) -> None:
    with pytest.raises(HspanError, match=rf"^net\.plan: {line}"):
        loaded(Engine(**facts))


@pytest.mark.parametrize(
    ("cache", "is_noted", "kept"),
    [(None, False, None), (b"good", False, b"good"), (b"of another", True, b"of another")],
)
def test_rtx_compiles_before_it_runs_and_keeps_what_it_compiled(
    caplog: pytest.LogCaptureFixture, cache: bytes | None, is_noted: bool, kept: bytes | None
) -> None:
    double = Engine(rtx=True)
    with caplog.at_level("INFO"):
        engine = loaded(double, cache=cache, IRuntimeCache=Cache)
    assert caplog.messages == (
        ["net.plan: its runtime cache is of another GPU or driver; a new one is written"] if is_noted else []
    )
    engine.create_context(0, 7)
    (config,) = double.given
    assert isinstance(config, Config)
    assert (config.strategy, config.cuda_graph_strategy) == ("ours", "off")
    assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert engine.runtime_cache_data() == kept
    assert config.cache is not None
    config.cache.data = None
    assert engine.runtime_cache_data() is None


def test_an_engine_of_classic_tensorrt_has_no_cache_even_with_a_configuration() -> None:
    double = Engine(rtx=True)
    loaded(double).create_context(0, 7)
    assert double.given == ["ours"]
    assert loaded(Engine(), IRuntimeCache=Cache).runtime_cache_data() is None
