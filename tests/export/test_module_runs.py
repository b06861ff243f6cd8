"""Which modules and sizes are taken, and what is refused with the next step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.around_block import Around, require_same
from torch import Tensor, nn

from trt_hspan import HspanError, UsageError
from trt_hspan.export.module_runs import (
    StandInAttention,
    device_of,
    evaluation_mode,
    taken_by_module,
    unwrapped,
)
from trt_hspan.export.to_onnx import onnx_from_model, require_float32
from trt_hspan.graph import metadata_from_model
from trt_hspan.graph.taken_sizes import TakenSizes
from trt_hspan.ops import high_similarity_pass_attention
from trt_hspan.sizes import ImageSize


class HolderOfAverages(nn.Module):
    """As training libraries have them: the network is in it, and it cannot be run itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.module = network


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        HolderOfAverages,
        lambda network: SimpleNamespace(ema=network),
    ],
    ids=["compiled", "parallel", "averaged", "holder", "holder that is no module"],
)
def test_wrapped_network_is_exported_without_the_wrapper(wrap: Callable[[nn.Module], nn.Module]) -> None:
    network = Around(nn.Identity()).eval()
    model = onnx_from_model(wrap(network))
    assert "attention/Attention" in [node.name for node in model.graph.node]
    require_same(network, model, (1, 3, 8, 9))


class PassingOn(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inner = network

    def forward(self, *inputs: Tensor) -> Tensor:
        result: Tensor = self.inner(*inputs)
        return result


def test_wrapper_that_passes_its_inputs_on_to_a_compiled_network_is_exported_in_silence(
    capfd: pytest.CaptureFixture[str],
) -> None:
    network = Around(nn.Identity()).eval()
    compiled: Any = torch.compile(network)
    require_same(network, onnx_from_model(PassingOn(compiled)), (1, 3, 8, 9))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "other", [{}, Around, torch.jit.ScriptModule()], ids=["state dict", "class", "script"]
)
def test_what_is_no_module_is_refused(other: nn.Module) -> None:
    with pytest.raises(HspanError, match=r"expected a torch\.nn\.Module; give the module itself"):
        onnx_from_model(other)


def test_network_that_takes_more_than_the_picture_is_refused_with_the_next_step() -> None:
    with pytest.raises(
        HspanError,
        match=r"'input2'; wrap it in a module whose forward\(\) takes and returns the picture alone",
    ):
        onnx_from_model(nn.Bilinear(9, 9, 3))


class Returning(nn.Module):
    """A network whose forward() returns something around the picture."""

    def __init__(self, around: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.inner, self.around = Around(nn.Identity()), around

    def forward(self, image: Tensor) -> object:
        return self.around(self.inner(image))


@pytest.mark.parametrize("static", [None, (8, 9)])
@pytest.mark.parametrize(
    ("around", "name"),
    [
        (lambda picture: (picture, 2 * picture), "tuple"),
        (lambda picture: {"picture": picture}, "dict"),
        (lambda picture: picture.shape[2], "int"),
    ],
    ids=["several", "dict", "number"],
)
def test_output_that_is_not_one_tensor_is_refused_with_the_next_step(
    around: Callable[[Tensor], object], name: str, static: tuple[int, int] | None
) -> None:
    with pytest.raises(HspanError, match=f"returns a {name}, expected one tensor.*; wrap it in a module"):
        onnx_from_model(Returning(around), static=static)


@pytest.mark.parametrize(
    ("around", "what"),
    [
        (lambda picture: picture.flatten(1), r"a tensor of shape \(1, "),
        (lambda picture: (255 * picture).to(torch.uint8), "a tensor of uint8"),
    ],
    ids=["flat", "bytes"],
)
def test_output_that_is_no_picture_is_refused(around: Callable[[Tensor], object], what: str) -> None:
    with pytest.raises(HspanError, match=f"returns {what}.*; wrap it in a module"):
        onnx_from_model(Returning(around), static=(72, 80))


def test_operation_that_onnx_lacks_is_named_with_the_next_step() -> None:
    with pytest.raises(HspanError, match=r"does not translate aten\._to_sparse\S* as .*; write that part"):
        onnx_from_model(Around(lambda x: x.to_sparse().to_dense()), static=(8, 9))


def of_windows(side: int) -> nn.Module:
    """A network that takes whole windows alone."""
    return Around(
        lambda x: x.unflatten(3, (-1, side)).unflatten(2, (-1, side)).flatten(4, 5).flatten(2, 3)
    ).eval()


def test_sizes_that_a_network_takes_are_found_by_running_it_and_recorded() -> None:
    metadata = metadata_from_model(onnx_from_model(of_windows(6)))
    assert (metadata.scale, metadata.size_multiple, metadata.min_size) == (1, 6, 6)


def test_declared_multiple_is_recorded_and_one_that_the_network_does_not_take_is_refused() -> None:
    shuffles = nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(2, 2, 3, padding=1), nn.PixelUnshuffle(2))
    model = onnx_from_model(Around(shuffles).eval(), size_multiple=4)
    assert metadata_from_model(model).size_multiple == 4
    assert metadata_from_model(model).scale == 1
    with pytest.raises(
        HspanError, match=r"does not run on a picture of 3 channels and 28x36.*size_multiple="
    ):
        onnx_from_model(of_windows(8), size_multiple=4)
    with pytest.raises(UsageError, match="size_multiple: got 0"):
        onnx_from_model(of_windows(8), size_multiple=0)


def test_network_of_a_fixed_size_is_run_at_that_size_however_large() -> None:
    class Wrong(nn.Module):
        """Is another function in the graph, at one size."""

        def forward(self, features: Tensor) -> Tensor:
            return features if torch.compiler.is_exporting() else 2 * features

    network = Around(Wrong()).eval()
    with pytest.raises(HspanError, match="differs from the module"):
        onnx_from_model(network, static=(88, 96))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_another_type_are_refused_with_the_call_that_works(dtype: torch.dtype) -> None:
    with pytest.raises(HspanError, match=r"call \.float\(\) first"):
        onnx_from_model(copy.deepcopy(Around(nn.Identity())).to(dtype))


def test_sparse_weights_are_refused_in_one_line() -> None:
    network = Around(nn.Identity())
    network.head.weight = nn.Parameter(network.head.weight.detach().to_sparse())
    with pytest.raises(HspanError, match=r"sparse, expected dense ones; call \.to_dense\(\)"):
        onnx_from_model(network)


def test_network_in_autocast_is_exported_in_its_type_and_no_other(capfd: pytest.CaptureFixture[str]) -> None:
    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Around(nn.Identity())

        def forward(self, image: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                result: Tensor = self.inner(image)
            return result

    with pytest.raises(HspanError, match='name precision="bf16"'):
        onnx_from_model(Autocast())
    assert onnx_from_model(Autocast(), precision="bf16").functions
    assert capfd.readouterr() == ("", "")


def test_training_mode_is_left_as_it_was() -> None:
    network = Around(nn.BatchNorm2d(8)).train()
    onnx_from_model(network)
    assert all(module.training for module in network.modules())


def test_a_network_is_found_in_every_holder_and_stays_itself_without_one() -> None:
    network = Around(nn.Identity())
    compiled: Any = torch.compile(network)
    holders: tuple[Any, ...] = (
        network,
        compiled,
        HolderOfAverages(compiled),
        nn.DataParallel(HolderOfAverages(network)),
        SimpleNamespace(ema=HolderOfAverages(network)),
        SimpleNamespace(ema=SimpleNamespace(ema=network)),
    )[:5]
    for holder in holders:
        assert unwrapped(holder) is network
    averaged = unwrapped(torch.optim.swa_utils.AveragedModel(network))
    assert type(averaged) is Around
    of_ema_model = HolderOfAverages(nn.Identity())
    of_ema_model.ema_model = network
    assert unwrapped(of_ema_model) is network
    sequential = nn.Sequential(network)  # has one child, and can be run itself
    assert unwrapped(sequential) is sequential


def test_a_holder_of_several_modules_is_no_wrapper() -> None:
    class Several(HolderOfAverages):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            self.other = nn.Identity()

    several = Several()
    assert unwrapped(several) is several
    for other in (
        SimpleNamespace(ema={}),
        {},
        torch.jit.ScriptModule(),
        SimpleNamespace(ema=torch.jit.ScriptModule()),
    ):
        with pytest.raises(
            HspanError, match=r"is no network that can be exported, expected a torch\.nn\.Module"
        ):
            unwrapped(other)


def test_modules_are_where_their_weights_are() -> None:
    assert device_of(nn.Identity()) == torch.device("cpu")
    assert device_of(nn.Sequential(nn.Identity(), nn.Conv2d(1, 1, 1, device="meta"))) == torch.device("meta")


def test_in_evaluation_a_module_returns_float32_and_is_as_it_was_afterwards() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Identity()).double()
    module[1].eval()
    picture = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    with evaluation_mode(module):
        assert not any(each.training for each in module.modules())
        assert module(picture).dtype == torch.float32
        assert module(picture[0]).dtype == torch.float64  # no picture
    assert [each.training for each in module.modules()] == [True, True, False]
    assert module(picture).dtype == torch.float64
    with pytest.raises(ZeroDivisionError), evaluation_mode(module):
        raise ZeroDivisionError
    assert module.training


def test_the_stand_in_replaces_the_attention_alone() -> None:
    q, k, v = torch.randn(3, 2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    expected = (2 * q + k).mean(1, keepdim=True).sigmoid() * v
    with StandInAttention():  # type: ignore[no-untyped-call]
        torch.testing.assert_close(high_similarity_pass_attention(q, k, v), expected)
        low = high_similarity_pass_attention(q.half(), k.half(), v.half())
        assert low.dtype == torch.float16
        torch.testing.assert_close(torch.add(q, k, alpha=2), q + 2 * k)
    assert not torch.allclose(high_similarity_pass_attention(q, k, v), expected)


class Multiple(nn.Module):
    """Takes multiples of 4 from 8 on, of 5 channels."""

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[1] != 5 or image.shape[2] % 4 or image.shape[3] % 4 or min(image.shape[2:]) < 8:
            raise ValueError("no " * 300)
        return image.repeat_interleave(3, 2).repeat_interleave(3, 3)


def test_sizes_are_those_that_the_module_runs_on() -> None:
    assert taken_by_module(Multiple(), 5) == TakenSizes(scale=3, size_multiple=4, min_size=8)
    assert taken_by_module(Multiple(), 5, fixed=ImageSize(8, 12)).scale == 3
    assert taken_by_module(Multiple(), 5, size_multiple=8).size_multiple == 8
    with pytest.raises(HspanError) as caught:
        taken_by_module(Multiple(), 4)
    assert caught.value.what.startswith("does not run on a picture of 4 channels and 23x25: no no")
    assert len(caught.value.what.split(": ")[1]) == 300 - 1  # a space at the end
    assert caught.value.next_step is not None
    assert "pad in forward()" in caught.value.next_step


@pytest.mark.parametrize(
    ("result", "what"),
    [
        (torch.ones(1, 3, 4, 4, 1), r"a tensor of shape \(1, 3, 4, 4, 1\)"),
        (torch.ones(1, 3, 0, 4), r"a tensor of shape \(1, 3, 0, 4\)"),
        (torch.ones(1, 3, 4, 4, dtype=torch.int64), "a tensor of int64"),
        ([torch.ones(1, 3, 4, 4)], "a list"),
    ],
)
def test_what_is_no_picture_is_named(result: object, what: str) -> None:
    class Other(nn.Module):
        def forward(self, image: Tensor) -> object:
            return result

    with pytest.raises(HspanError, match=f"Other: returns {what}, expected one tensor, the picture"):
        taken_by_module(Other(), 3)


def test_weights_are_dense_float32_with_values() -> None:
    class Holding(nn.Module):
        def __init__(self, tensor: Tensor, *, buffer: bool) -> None:
            super().__init__()
            if buffer:
                self.register_buffer("held", tensor)
            else:
                self.held = nn.Parameter(tensor, requires_grad=False)

    for buffer in (True, False):
        for fine in (torch.ones(2), torch.ones(2, dtype=torch.int64)):
            require_float32(Holding(fine, buffer=buffer))
        for tensor, line in (
            (torch.eye(2).to_sparse(), "some of its weights are sparse, expected dense ones"),
            (torch.ones(2, device="meta"), r"its weights are without values \(meta tensors\)"),
            (torch.ones(2, dtype=torch.float16), r"its weights are float16, expected float32; call \.float"),
            (torch.ones(2, dtype=torch.complex64), "its weights are complex64, expected float32"),
        ):
            with pytest.raises(HspanError, match=f"Holding: {line}"):
                require_float32(Holding(tensor, buffer=buffer))
    both = nn.Sequential(
        Holding(torch.ones(1).half(), buffer=True), Holding(torch.ones(1).double(), buffer=False)
    )
    with pytest.raises(HspanError, match="its weights are float16, float64, expected float32"):
        require_float32(both)
