"""An exported graph beside its module: how far they may differ, and which node is named."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import trt_hspan
from trt_hspan import HspanError, onnx_from_model
from trt_hspan.export import agreement
from trt_hspan.export.agreement import require_agreement
from trt_hspan.graph import model_with_plugin_nodes

PICTURE = torch.linspace(0.25, 1, 12).reshape(1, 1, 3, 4)


def scaling(first: float = 1.0, second: float = 1.0) -> nn.Module:
    """Two 1x1 convolutions by these factors."""
    layers = OrderedDict((name, nn.Conv2d(1, 1, 1, bias=False)) for name in ("first", "second"))
    for layer, factor in zip(layers.values(), (first, second), strict=True):
        nn.init.constant_(layer.weight, factor)
    return nn.Sequential(layers)


def graph_of(first: float = 1.0, second: float = 1.0, *, text: str | None = None) -> onnx.ModelProto:
    """The same as a graph, or what the text computes from x, w and v."""
    text = text or "a = Conv(x, w) y = Conv(a, v)"
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[n, 1, h, w_] x) => (float[n, 1, h, w_] y) <float[n, 1, h, w_] a> {{ {text} }}""")
    for name, factor in (("w", first), ("v", second)):
        weight = np.full((1, 1, 1, 1), factor, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    for node in model.graph.node:
        node.name = {"a": "first/Conv", "y": "second/Conv"}.get(node.output[0], node.output[0])
    return model


def require(graph: onnx.ModelProto, module: nn.Module, picture: Tensor = PICTURE, **options: Any) -> None:
    require_agreement(graph, module, picture, "net", **{"low": False, **options})


@pytest.mark.parametrize(("low", "allowed"), [(False, 1e-3), (True, 5e-2)])
@pytest.mark.parametrize("size", [0.5, 1.0, 40.0])
def test_results_may_differ_by_a_part_of_the_largest_value_or_of_1(
    low: bool, allowed: float, size: float
) -> None:
    module = scaling(size)
    part = allowed * max(1.0, size)  # PICTURE's largest value is 1
    require(graph_of(size + 0.95 * part), module, low=low)
    require(graph_of(size - 0.95 * part), module, low=low)
    with pytest.raises(
        HspanError, match=r"net: exported wrongly: node first/Conv differs from the module by"
    ):
        require(graph_of(size + 1.05 * part), module, low=low)


def test_the_first_node_that_differs_is_named_or_the_last_one_of_the_graph() -> None:
    with pytest.raises(HspanError, match="node first/Conv differs from the module by 1; write that part"):
        require(graph_of(2.0, 0.5), scaling())
    with pytest.raises(HspanError, match="node second/Conv differs"):
        require(graph_of(1.0, 2.0), scaling())
    outside = graph_of(text="a = Conv(x, w) b = Conv(a, v) y = Add(b, b)")
    for node, name in zip(outside.graph.node, ("first/Conv", "second/Conv", "Add"), strict=True):
        node.name = name
    with pytest.raises(HspanError, match="node Add differs from the module by 1;"):
        require(outside, scaling())


def test_another_shape_or_no_number_is_a_difference() -> None:
    with pytest.raises(HspanError, match="node second/Conv differs from the module by inf"):
        require(graph_of(text="a = Conv(x, w) y = Conv <pads = [1, 1, 1, 1]> (a, v)"), scaling())
    with pytest.raises(HspanError, match="node first/Conv differs from the module by nan"):
        require(graph_of(float("nan")), scaling())


def test_hooks_are_gone_afterwards_whatever_happens() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = scaling()[0]

        def forward(self, image: Tensor) -> Tensor:
            raise RuntimeError(str(self.first(image).shape))

    module, failing = scaling(), Failing()
    require(graph_of(), module)
    with pytest.raises(RuntimeError):
        require(graph_of(), failing)
    for each in (*module.modules(), *failing.modules()):
        assert not each._forward_hooks


class Several(nn.Module):
    """A module that returns no tensor, one that is called but has no result in the graph, and the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = scaling()[0], scaling()[0]

    def forward(self, image: Tensor) -> Tensor:
        return self.second(self.first(image)) + image


def test_a_module_with_several_results_or_sizes_alone_is_left_out() -> None:
    several = graph_of(
        text="a = Conv(x, w) b = Neg(a) s = Add(a, b) t = Conv(a, v) u = Add(t, s) y = Add(u, x)"
    )
    for name, node in zip(
        ("first/Conv", "first/Neg", "Add", "second/Conv", "Add_2", "Add_3"), several.graph.node, strict=True
    ):
        node.name = name
    several.graph.value_info.extend(onnx.helper.make_tensor_value_info(n, 1, None) for n in "bstu")
    assert {path: node.name for path, node in agreement._result_nodes(several.graph).items()} == {
        "second": "second/Conv"
    }
    require(several, Several())
    sizes = graph_of(text="s = Shape(x) a = Conv(x, w) r = Reshape(a, s) y = Conv(r, v)")
    for name, node in zip(
        ("first/Shape", "first/Conv", "Reshape", "second/Conv"), sizes.graph.node, strict=True
    ):
        node.name = name
    found = {path: node.name for path, node in agreement._result_nodes(sizes.graph).items()}
    assert found == {"first": "first/Conv", "second": "second/Conv"}


def test_a_result_that_is_not_the_first_of_its_node_is_left_out() -> None:
    split = graph_of(text="b, a = Split <num_outputs = 2, axis = 2> (x) y = Conv(a, v)")
    split.graph.node[0].name = "first/Split"
    assert list(agreement._result_nodes(split.graph)) == ["second"]


def test_of_several_outputs_the_first_is_compared() -> None:
    class Half(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image[..., :2]

    module = nn.Sequential(OrderedDict(first=Half(), second=scaling()[1]))
    graph = graph_of(text="a, rest = Split <num_outputs = 2, axis = 3> (x) y = Conv(a, v)")
    graph.graph.node[0].name = "first/Split"
    assert list(agreement._result_nodes(graph.graph)) == ["first", "second"]
    require(graph, module)
    other = graph_of(text="a, rest = Split <num_outputs = 2, axis = 2> (x) y = Conv(a, v)")
    other.graph.node[0].name = "first/Split"
    with pytest.raises(HspanError, match="node first/Split differs from the module by inf"):
        require(other, module)


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("a.b/Conv", ["a", "a.b"]),
        ("a/Conv_2", ["a"]),
        ("Conv", []),
        ("a.0.c/b/Conv", ["a", "a.0", "a.0.c/b"]),
    ],
)
def test_paths_above_a_node_are_those_of_its_modules(name: str, paths: list[str]) -> None:
    assert agreement._paths_above(onnx.NodeProto(name=name)) == paths


def test_inner_modules_are_compared_beside_those_that_contain_them() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outer = scaling()

        def forward(self, image: Tensor) -> Tensor:
            result: Tensor = self.outer(image)
            return result

    graph = graph_of(1.0, 2.0)
    for node in graph.graph.node:
        node.name = f"outer.{node.name}"
    assert {path: node.name for path, node in agreement._result_nodes(graph.graph).items()} == {
        "outer": "outer.second/Conv",
        "outer.first": "outer.first/Conv",
        "outer.second": "outer.second/Conv",
    }
    with pytest.raises(HspanError, match=r"node outer\.second/Conv differs"):
        require(graph, Outer())


def test_a_graph_that_does_not_run_is_an_error_with_its_reason() -> None:
    graph = graph_of(text="a = Conv(x, w) y = Conv <kernel_shape = [2, 2]> (a, v)")
    with pytest.raises(HspanError, match=r"net: exported wrongly: .*kernel.*; write that part of forward"):
        require(graph, scaling())


def test_a_long_reason_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("x" * 400)

    library = SimpleNamespace(SessionOptions=SimpleNamespace, InferenceSession=refuse)
    monkeypatch.setattr(agreement, "imported_onnxruntime", lambda: library)
    with pytest.raises(HspanError) as caught:
        require(graph_of(), scaling())
    assert caught.value.what.count("x") == 300 + "exported".count("x")


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.attention = nn.Conv2d(3, 8, 1), trt_hspan.HighSimilarityPassAttention(8)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.attention(self.head(image))
        return result


def test_with_the_attention_replaced_the_rest_is_still_compared() -> None:
    module = Attending().eval()
    graph = model_with_plugin_nodes(onnx_from_model(module))
    picture = torch.rand(1, 3, 8, 9)
    for cheap in (False, True):
        require(graph, module, picture, cheap=cheap)
    weight = next(tensor for tensor in graph.graph.initializer if tensor.name == "head.weight")
    weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), weight.name))
    for cheap in (False, True):
        with pytest.raises(HspanError, match="node head/Conv differs from the module"):
            require(graph, module, picture, cheap=cheap)
