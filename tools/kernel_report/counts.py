"""Warp instructions that the compiled kernels issue on a photograph, counted by running their PTX on the CPU.

Counts, not times: they say how long the schedulers of a GPU are busy at least, and what share of that tensor cores
get. PTX is not machine code: ptxas drops moves, and a 64-bit division becomes many instructions.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tools.kernel_report.interpreter import build_program, missing_for_interpreter
from tools.kernel_report.plugin_code import demangled
from tools.kernel_report.roofline import GPUS
from trt_hspan.errors import HspanError
from trt_hspan.sizes import ImageSize

if TYPE_CHECKING:
    import torch

#: PTX of the plugin: that of its least architecture is assembled for all others.
_TARGET: Final = 80
_SCHEDULERS: Final = 4  # of a multiprocessor
_MATRIX_FLOPS: Final = 2 * 16 * 8 * 16  # of an m16n8k16
_ELEMENT_TYPES: Final = {"fp32": 0, "fp16": 1, "bf16": 2}
_AUTOMATIC: Final = 0  # the plugin's own choice of kernels and tiles

#: Multiprocessors and boost clock in GHz of the GPUs of the roofline, from the same documents.
_ISSUE_RATES: Final = {
    "A100 80GB SXM": (108, 1.41),
    "GeForce RTX 4090": (128, 2.52),
    "Jetson AGX Orin 64GB": (16, 1.30),
    "H100 SXM": (132, 1.83),
}

#: What a table shows, each with the starts of its opcodes; the rest is FP32 or integer arithmetic.
_KINDS: Final = {
    "tensor": ("mma",),
    "fragments": ("ldmatrix",),
    "copies": ("cp.async",),
    "between lanes": ("shfl", "vote", "match", "redux"),
    "barriers": ("bar",),
    "global": ("ld.global", "st.global"),
    "shared": ("ld.shared", "st.shared"),
    "convert": ("cvt.",),
    "compare, branch": ("bra", "ret", "setp", "selp", "and.pred", "or.pred", "xor.pred", "not.pred"),
    "moves": ("mov", "ld.param", "cvta"),
}
KINDS: Final = (*_KINDS, "FP32", "integers")


@dataclass(frozen=True, kw_only=True)
class AttentionInput:
    """Query, key and value of one attention block, (channels, H, W) float32."""

    block: int
    query: NDArray[np.float32]
    key: NDArray[np.float32]
    value: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class KernelCount:
    """Warp instructions of one kernel in one call of the operator.

    Attributes:
        block: number of the attention block in the network.
        kinds: instructions by name of KINDS.
    """

    block: int
    kernel: str
    instructions: int
    kinds: dict[str, int]

    @property
    def tensor_share(self) -> float:
        return self.kinds["tensor"] / self.instructions


@dataclass(frozen=True, kw_only=True)
class IssueFloor:
    """The least time in ms that a GPU's schedulers, or its tensor cores, are busy with one block's instructions."""

    block: int
    gpu: str
    issue_ms: float
    tensor_ms: float


def attention_inputs(picture: Path, size: ImageSize, network: str) -> list[AttentionInput]:
    """What the attention blocks of a network get, for a picture reduced to `size`.

    Raises:
        HspanError: there is no such picture or network.
    """
    import torch
    from PIL import Image

    from trt_hspan.model.checkpoint import load_model
    from trt_hspan.model.hspan import HighSimilarityPassAttention

    try:
        with Image.open(picture) as opened:
            pixels = opened.convert("RGB").resize((size.width, size.height), Image.Resampling.BICUBIC)
    except OSError as error:
        raise HspanError(picture, f"cannot be read: {error}", "name a picture") from error
    model = load_model(network)
    inputs: list[AttentionInput] = []

    def remember(block: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(block, HighSimilarityPassAttention)
        convolutions = (block.conv_match1, block.conv_match2, block.conv_assembly)
        query, key, value = (convolution(arguments[0])[0].numpy() for convolution in convolutions)
        inputs.append(AttentionInput(block=len(inputs), query=query, key=key, value=value))

    for module in model.modules():
        if isinstance(module, HighSimilarityPassAttention):
            module.register_forward_pre_hook(remember)
    image = torch.from_numpy(np.asarray(pixels, dtype=np.float32).transpose(2, 0, 1)[None] / 255)
    with torch.inference_mode():
        model(image)
    return inputs


def lifted(attention: AttentionInput) -> AttentionInput:
    """The same scores with the published 96 and 192 channels: by matrices with orthonormal columns."""
    generator = np.random.default_rng(0)
    score, value = (
        np.linalg.qr(generator.standard_normal((wide, array.shape[0])))[0]
        for wide, array in ((96, attention.query), (192, attention.value))
    )

    def times(matrix: NDArray[np.float64], array: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.tensordot(matrix, array, 1).astype(np.float32)

    return AttentionInput(
        block=attention.block,
        query=times(score, attention.query),
        key=times(score, attention.key),
        value=times(value, attention.value),
    )


def count_instructions(attention: AttentionInput, precision: str) -> list[KernelCount]:
    """Runs the operator with the kernels that it chooses itself.

    Raises:
        HspanError: nvcc is missing, or the interpreter notices a mistake of the kernels.
    """
    if (missing := missing_for_interpreter()) is not None:
        raise HspanError("--count", missing, None)
    program = build_program("count", _TARGET)
    channels, positions = attention.query.shape[0], attention.query[0].size
    with tempfile.TemporaryDirectory(prefix="trt-hspan-count-") as name:
        files = [Path(name) / part for part in ("query", "key", "value")]
        for file, array in zip(files, (attention.query, attention.key, attention.value), strict=True):
            file.write_bytes(_encoded(array, precision))
        numbers = (_AUTOMATIC, _ELEMENT_TYPES[precision], channels, attention.value.shape[0], positions)
        process = subprocess.run(
            [program, *map(str, numbers), *files], capture_output=True, text=True, check=False
        )
    if process.returncode != 0:
        raise HspanError(program, process.stderr.strip().splitlines()[0], None)
    by_kernel: dict[str, Counter[str]] = {}
    for line in process.stdout.splitlines():
        kernel, opcode, count = line.split()
        by_kernel.setdefault(kernel, Counter())[_kind(opcode)] += int(count)
    return [
        KernelCount(
            block=attention.block,
            kernel=demangled(kernel),
            instructions=kinds.total(),
            kinds={kind: kinds[kind] for kind in KINDS},
        )
        for kernel, kinds in by_kernel.items()
    ]


def issue_floors(counts: list[KernelCount]) -> list[IssueFloor]:
    """For the GPUs of the roofline, the floors of the kernels of each block taken together."""
    floors = []
    for block in dict.fromkeys(count.block for count in counts):
        own = [count for count in counts if count.block == block]
        instructions = sum(count.instructions for count in own)
        matrices = sum(count.kinds["tensor"] for count in own)
        for gpu in GPUS:
            multiprocessors, clock_ghz = _ISSUE_RATES[gpu.name]
            floors.append(
                IssueFloor(
                    block=block,
                    gpu=gpu.name,
                    issue_ms=instructions / (multiprocessors * _SCHEDULERS) / (clock_ghz * 1e6),
                    tensor_ms=matrices * _MATRIX_FLOPS / (gpu.tensor_tflops * 1e9),
                )
            )
    return floors


def photograph_of_scikit_image() -> Path:
    """Where scikit-image, if it is installed, keeps its astronaut."""
    try:
        import skimage
    except ImportError as error:
        raise HspanError("--picture", "scikit-image is not installed", "pip install scikit-image") from error
    return Path(skimage.__file__).parent / "data" / "astronaut.png"


def _kind(opcode: str) -> str:
    rest = "FP32" if opcode.endswith(".f32") else "integers"
    return next((kind for kind, starts in _KINDS.items() if opcode.startswith(starts)), rest)


def _encoded(array: NDArray[np.float32], precision: str) -> bytes:
    if precision != "bf16":
        return array.astype(np.float16 if precision == "fp16" else np.float32).tobytes()
    import ml_dtypes

    return array.astype(ml_dtypes.bfloat16).tobytes()
