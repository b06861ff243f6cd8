"""The operator on GPUs by the library of plugins/cuda: from tensors to addresses, layouts, workspace and stream."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from trt_hspan.native.cuda_attention import (
    UNFIT,
    CudaError,
    CudaLibrary,
    CudaProblem,
    DeviceAddresses,
    cuda_library,
    give_up,
)
from trt_hspan.native.loading import ElementType

ELEMENT_TYPES: Final[dict[torch.dtype, ElementType]] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
_TENSOR_ALIGNMENT: Final = 16
_WORKSPACE_ALIGNMENT: Final = 256


def gpu_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
    """The operator on the tensors' GPU, in the order of PyTorch's current stream there. Neither waits nor synchronizes.

    Returns:
        As `device_attention`; None where no library has code for this GPU, which is logged once as a warning.
    """
    if torch.version.cuda is None:  # ROCm calls its devices "cuda" too
        return None
    major, minor = torch.cuda.get_device_capability(value.device)
    architecture = 10 * major + minor
    library = cuda_library(architecture)
    if library is None:
        return None
    with torch.cuda.device(value.device):
        stream = torch.cuda.current_stream(value.device).cuda_stream
        try:
            return device_attention(library, query, key, value, stream=stream)
        except CudaError as error:
            if error.number not in UNFIT:
                raise
            give_up(architecture, error)
            return None


def device_attention(
    library: CudaLibrary, query: Tensor, key: Tensor, value: Tensor, *, stream: int
) -> Tensor:
    """The operator by the library, on tensors in memory of its current device.

    Contiguous tensors and channels-last ones are read as they are. Others are copied first, and so are channels-last
    ones of FP16 and BF16 whose channels are no multiples of 8. Output, copies and workspace come from the allocator of
    `value`'s device, so PyTorch's rules for streams hold, and those for capturing a CUDA graph.

    Args:
        query, key, value: as `high_similarity_pass_attention` takes them, none empty; float32, float16 or bfloat16.
        stream: CUDA's stream, as a number.

    Returns:
        (N, D, H, W), in memory as `output_format` says.

    Raises:
        ValueError, OutOfMemoryError, CudaError: as `CudaLibrary.attend`.
    """
    n, channels, height, width = query.shape
    element_type = ELEMENT_TYPES[value.dtype]
    problem = CudaProblem(
        batch=n,
        score_channels=channels,
        value_channels=value.shape[1],
        positions=height * width,
        element_type=element_type,
        channels_last=all(
            tensor.is_contiguous(memory_format=torch.channels_last)
            and library.channel_pitch(element_type, tensor.shape[1]) == tensor.shape[1]
            for tensor in (query, key, value)
        ),
    )
    layout = torch.channels_last if problem.channels_last else torch.contiguous_format
    # Copies, where there are any, live until the call has been put on the stream; later their memory is reused in its
    # order.
    inputs = [_aligned(tensor.contiguous(memory_format=layout)) for tensor in (query, key, value)]
    output = torch.empty_like(value, memory_format=layout)
    workspace_bytes = library.workspace_bytes(problem)
    workspace = torch.empty(
        workspace_bytes + _WORKSPACE_ALIGNMENT - 1, dtype=torch.uint8, device=value.device
    )
    library.attend(
        problem,
        DeviceAddresses(
            query=inputs[0].data_ptr(),
            key=inputs[1].data_ptr(),
            value=inputs[2].data_ptr(),
            output=output.data_ptr(),
            workspace=-(-workspace.data_ptr() // _WORKSPACE_ALIGNMENT) * _WORKSPACE_ALIGNMENT,
            workspace_bytes=workspace_bytes,
        ),
        stream=stream,
    )
    return output.contiguous(memory_format=output_format(value))


def output_format(value: Tensor) -> torch.memory_format:
    """How the operator's result lies in memory: on GPUs as `value` where that is channels-last, else contiguous."""
    keeps = (
        value.device.type == "cuda"
        and not value.is_contiguous()
        and value.is_contiguous(memory_format=torch.channels_last)
    )
    return torch.channels_last if keeps else torch.contiguous_format


def _aligned(tensor: Tensor) -> Tensor:
    return tensor if tensor.data_ptr() % _TENSOR_ALIGNMENT == 0 else tensor.clone()
