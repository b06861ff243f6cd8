"""Parts of real networks around the attention block: what torch.onnx exports correctly stays correct."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trt_hspan
from trt_hspan import HspanError, UsageError, onnx_from_model
from trt_hspan.export.agreement import require_agreement
from trt_hspan.graph import (
    base_precision_from_model,
    metadata_from_model,
    model_with_plugin_nodes,
    variants_from_model,
)


def windows(features: Tensor) -> Tensor:
    """(N, C, H, W) to (windows of 2x2, 4, C)."""
    n, c, h, w = features.shape
    return features.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)


def from_windows(tokens: Tensor, like: Tensor) -> Tensor:
    n, c, h, w = like.shape
    return tokens.reshape(n, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def attention_of_rank_3(features: Tensor) -> Tensor:
    tokens = windows(features)
    mask = torch.eye(4, dtype=torch.bool).roll(1, 0) | torch.eye(4, dtype=torch.bool)
    return from_windows(F.scaled_dot_product_attention(tokens, tokens, tokens, mask, scale=0.3), features)


def attention_of_rank_4(features: Tensor) -> Tensor:
    heads = windows(features).unflatten(2, (2, 4)).transpose(1, 2)
    result = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    return from_windows(result.transpose(1, 2).flatten(2), features)


def attention_of_rank_5(features: Tensor) -> Tensor:
    n, _, h, w = features.shape
    heads = windows(features).unflatten(2, (2, 4)).transpose(1, 2).reshape(n, h * w // 4, 2, 4, 4)
    result = F.scaled_dot_product_attention(heads, heads, heads, torch.eye(4) * 3)
    return from_windows(result.flatten(0, 1).transpose(1, 2).flatten(2), features)


class WindowAttention(nn.Module):
    """Windows, a normalization, torch's attention module, the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        tokens = self.norm(windows(features))
        return features + from_windows(self.attention(tokens, tokens, tokens)[0], features)


class ChannelsLastNorm(nn.Module):
    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, elementwise_affine=affine)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return result


class BlockThatEndsInAnotherModule(nn.Module):
    """What its own operations compute is not what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(8, 8, 1)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.convolution(2 * features + 1)
        return result


class Together(nn.Module):
    """The sum of what several parts return."""

    def __init__(self, *parts: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.modules_inside = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))
        self.parts = parts

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([part(features) for part in self.parts]).sum(0)


MODES = (
    *({"mode": mode} for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area")),
    *({"mode": mode, "align_corners": True} for mode in ("bilinear", "bicubic")),
    *({"mode": mode, "antialias": True} for mode in ("bilinear", "bicubic")),
)


def resized(factor: float) -> nn.Module:
    return Together(*(partial(F.interpolate, scale_factor=factor, **mode) for mode in MODES))


def doubled_by_size(features: Tensor, mode: dict[str, Any]) -> Tensor:
    height, width = features.shape[2:]
    return F.interpolate(features, size=(2 * height, 2 * width), **mode)


def padded(**how: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: F.pad(x, (1, 2, 2, 1), **how)


def normalizations(affine: bool) -> nn.Module:
    """All kinds, whose weights and statistics are those of a trained network: none is 0 or 1."""
    kinds = (nn.GroupNorm(2, 8, affine=affine), nn.BatchNorm2d(8, affine=affine))
    instances = (nn.InstanceNorm2d(8, affine=affine, track_running_stats=track) for track in (False, True))
    all_kinds = Together(*kinds, *instances, ChannelsLastNorm(affine=affine))
    for name, tensor in (*all_kinds.named_parameters(), *all_kinds.named_buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.3, 1.5 if name.endswith("var") else 0.9)
    return all_kinds


def half_as_bright_in_frequencies(features: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(features) * 0.5, s=features.shape[2:])


PARTS: dict[str, Callable[[], nn.Module]] = {
    "larger by scale": lambda: resized(2),
    "larger by size": lambda: Together(*(partial(doubled_by_size, mode=mode) for mode in MODES)),
    "smaller by scale": lambda: resized(0.5),
    "borders": lambda: Together(
        padded(), padded(value=0.3), *(padded(mode=mode) for mode in ("reflect", "replicate", "circular"))
    ),
    "convolutions with borders": lambda: Together(
        *(
            nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode)
            for mode in ("zeros", "reflect", "replicate", "circular")
        )
    ),
    "grouped, depthwise and dilated convolutions": lambda: Together(
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
    ),
    "transposed and strided convolutions": lambda: nn.Sequential(
        nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
    ),
    "shuffle and unshuffle": lambda: nn.Sequential(
        nn.PixelShuffle(2), nn.Conv2d(2, 2, 3, padding=1), nn.PixelUnshuffle(2)
    ),
    "normalizations": lambda: normalizations(affine=True),
    "normalizations without affine": lambda: normalizations(affine=False),
    "attention in windows": lambda: Together(
        attention_of_rank_3, attention_of_rank_4, attention_of_rank_5, WindowAttention()
    ),
    "channel attention and einsum": lambda: Together(
        lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
        lambda x: torch.einsum("nchw,cd->ndhw", x, torch.eye(8).roll(1, 0)),
        lambda x: torch.einsum("nchw,nchv->nhvc", x, x).mean((1, 2))[:, :, None, None] + x,
    ),
    "Fourier transform": lambda: Together(half_as_bright_in_frequencies),
    "another module last": BlockThatEndsInAnotherModule,
}


# Their graph for a fixed size is another one.
COMPUTES_SIZES = ("larger by size", "borders", "attention in windows", "Fourier transform")


class Around(nn.Module):
    """A convolution, the part, the block, a convolution."""

    def __init__(self, part: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.part = nn.Conv2d(3, 8, 3, padding=1), part
        self.attention, self.tail = trt_hspan.HighSimilarityPassAttention(8), nn.Conv2d(8, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.tail(self.attention(self.part(self.head(image))))
        return result


def require_same(module: nn.Module, model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    image = torch.rand(shape)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(
            session.run(None, {"input": image.numpy()})[0], module(image).numpy(), atol=1e-4
        )


@pytest.mark.parametrize("name", PARTS)
def test_part_of_a_real_network_is_exported_as_it_computes_and_written_in_each_type(name: str) -> None:
    torch.manual_seed(0)
    network = Around(PARTS[name]()).eval()
    model = onnx_from_model(network)
    require_same(network, model, (2, 3, 18, 14))
    for precision in ("fp16", "bf16"):
        typed = variants_from_model(model, name).model(precision)
        assert base_precision_from_model(typed) == precision
    if name in COMPUTES_SIZES:
        require_same(network, onnx_from_model(network, static=(12, 10)), (1, 3, 12, 10))


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
    model = onnx_from_model(Around(PARTS["shuffle and unshuffle"]()).eval(), size_multiple=4)
    assert metadata_from_model(model).size_multiple == 4
    assert metadata_from_model(model).scale == 1
    with pytest.raises(
        HspanError, match=r"does not run on a picture of 3 channels and 28x36.*size_multiple="
    ):
        onnx_from_model(of_windows(8), size_multiple=4)
    with pytest.raises(UsageError, match="size_multiple: got 0"):
        onnx_from_model(of_windows(8), size_multiple=0)


def test_network_of_a_fixed_size_is_run_at_that_size_however_large(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_graph_that_computes_something_else_is_an_error_that_names_the_node() -> None:
    network = Around(nn.Identity()).eval()
    graph = model_with_plugin_nodes(onnx_from_model(network))
    weight = next(tensor for tensor in graph.graph.initializer if tensor.name == "head.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), weight.name))
    with pytest.raises(HspanError, match="node head/Conv differs from the module"):
        require_agreement(graph, network, torch.rand(1, 3, 8, 9), "net", low=False)
