"""Which graphs are kept, and what a capture leaves behind when it fails; on a driver that only notes its calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trt_hspan.runtime import cuda_graph
from trt_hspan.runtime.cuda_graph import IDLE_USES, CaptureError, CudaGraph, GraphCache, capture_graph


class Kept:
    """In place of a graph; notes that it was freed."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.last_use = name, log, 0

    def free(self) -> None:
        self.log.append(f"free {self.name}")


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def cache(log: list[str]) -> GraphCache:
    return GraphCache(2, lambda: log.append("wait"))


def keep(cache: GraphCache, name: str, log: list[str]) -> None:
    cache.keep(name, Kept(name, log))  # type: ignore[arg-type]


def test_a_key_is_worth_a_graph_when_it_is_used_again(cache: GraphCache) -> None:
    assert cache.use("a") is None
    assert [cache.worth_capturing(key) for key in ("a", "b", "a", "b", "a")] == [
        False,
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize(("others", "is_worth"), [(15, True), (16, False)])
def test_a_key_of_long_ago_is_a_new_one(cache: GraphCache, others: int, is_worth: bool) -> None:
    assert IDLE_USES == 8
    cache.worth_capturing("a")
    for key in range(others):
        cache.worth_capturing(key)
    assert cache.worth_capturing("a") is is_worth


def test_a_key_that_is_used_on_is_not_forgotten(cache: GraphCache) -> None:
    for key in range(40):
        cache.worth_capturing("a")
        cache.worth_capturing(key)
    assert cache.worth_capturing("a")
    assert not cache.worth_capturing(3)


def test_the_graph_not_used_for_longest_gives_way(cache: GraphCache, log: list[str]) -> None:
    for name in ("a", "b"):
        cache.use(name)
        keep(cache, name, log)
    assert log == []
    assert len(cache) == 2
    assert cache.use("a") is not None
    keep(cache, "c", log)
    assert log == ["wait", "free b"]
    assert len(cache) == 2
    assert [cache.use(key) is not None for key in ("a", "b", "c")] == [True, False, True]


@pytest.mark.parametrize(("uses", "is_worth"), [(16, False), (17, True)])
def test_a_full_cache_takes_a_new_graph_once_its_oldest_is_idle(
    cache: GraphCache, log: list[str], uses: int, is_worth: bool
) -> None:
    for name in ("a", "b"):
        cache.use(name)
        keep(cache, name, log)
    cache.use("a")  # so that the oldest is "b", used one before
    cache.worth_capturing("c")
    for _ in range(uses - 1):
        cache.use("c")
    assert cache.worth_capturing("c") is is_worth
    assert not cache.worth_capturing("d")


def test_clearing_waits_once_and_frees_all(cache: GraphCache, log: list[str]) -> None:
    cache.clear()
    assert log == []
    for name in ("a", "b"):
        keep(cache, name, log)
    cache.clear()
    assert log[0] == "wait"
    assert sorted(log[1:]) == ["free a", "free b"]
    assert len(cache) == 0


class NotingDriver:
    """Succeeds unless told a code for a call; gives 7 for a graph and 9 for one that can be launched."""

    def __init__(self, names: dict[int, bytes] | None = None, **codes: int) -> None:
        self.calls: list[str] = []
        self._codes, self._names = codes, names or {}

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            handles = {"cuStreamEndCapture": (1, 7), "cuGraphInstantiateWithFlags": (0, 9)}
            if name == "cuGetErrorName":
                arguments[1]._obj.value = self._names.get(arguments[0])
            elif name in handles:
                place, handle = handles[name]
                arguments[place]._obj.value = handle
            return self._codes.get(name, 0)

        return call


BEGIN, END, INSTANTIATE = "cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"
DESTROY, LAUNCH, FREE = "cuGraphDestroy", "cuGraphLaunch", "cuGraphExecDestroy"


def driven(monkeypatch: pytest.MonkeyPatch, driver: NotingDriver) -> NotingDriver:
    monkeypatch.setattr(cuda_graph, "_driver", lambda: driver)
    return driver


def test_a_graph_is_captured_launched_and_freed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = driven(monkeypatch, NotingDriver())
    graph = capture_graph(5, lambda: driver.calls.append("enqueue") is None, (1, 3, 8, 8), SimpleNamespace())
    assert driver.calls == [BEGIN, "enqueue", END, INSTANTIATE, DESTROY]
    assert (graph.output_shape, graph.last_use) == ((1, 3, 8, 8), 0)
    graph.launch(5)
    graph.free()
    graph.free()
    assert driver.calls[5:] == [LAUNCH, FREE]


def test_a_graph_of_no_handle_is_not_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = driven(monkeypatch, NotingDriver())
    CudaGraph(0, (1,), None).free()
    assert driver.calls == []


def test_what_cannot_be_enqueued_leaves_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = driven(monkeypatch, NotingDriver())
    with pytest.raises(CaptureError, match=r"^TensorRT refused to enqueue during the capture$"):
        capture_graph(5, lambda: False, (1,), None)
    assert driver.calls == [BEGIN, END, DESTROY]


@pytest.mark.parametrize("code", [0, 901])
def test_what_enqueuing_raises_is_raised_after_the_capture_has_ended(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    driver = driven(monkeypatch, NotingDriver(cuStreamEndCapture=code, cuGraphDestroy=code))

    def interrupted() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture_graph(5, interrupted, (1,), None)
    assert [call for call in driver.calls if call != "cuGetErrorName"] == [BEGIN, END, DESTROY]


@pytest.mark.parametrize(
    ("names", "text"), [({2: b"CUDA_ERROR_OUT_OF_MEMORY"}, "CUDA_ERROR_OUT_OF_MEMORY"), ({}, "error 2")]
)
def test_what_cuda_refuses_is_named_with_the_call(
    monkeypatch: pytest.MonkeyPatch, names: dict[int, bytes], text: str
) -> None:
    driver = driven(monkeypatch, NotingDriver(names, cuGraphInstantiateWithFlags=2))
    with pytest.raises(CaptureError, match=f"^{INSTANTIATE}: {text}$"):
        capture_graph(5, lambda: True, (1,), None)
    assert driver.calls[-1] == DESTROY
