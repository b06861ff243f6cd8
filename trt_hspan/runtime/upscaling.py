"""One picture through a network, as a whole. Owns the order of the steps; formats and backends are elsewhere."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from trt_hspan.runtime.images import (
    image_from_tensor,
    read_image,
    require_writable_suffix,
    tensor_from_image,
    write_image,
)
from trt_hspan.runtime.memory import require_memory
from trt_hspan.runtime.runner import Runner


@dataclass(frozen=True, kw_only=True)
class Upscaled:
    """What `upscale_file` did. Sizes in pixels; `run_time_seconds` is the network alone, without loading it."""

    backend: str
    input_height: int
    input_width: int
    output_height: int
    output_width: int
    run_time_seconds: float


def upscale_file(runner: Runner, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Upscaled:
    """Reads a picture, runs the network on all of it at once, and writes the result, whole or not at all.

    Args:
        runner: not yet active.
        source: as `images.read_image` takes it.
        target: as `images.write_image` takes it.

    Raises:
        UsageError: the target's suffix is not a picture's.
        HspanError: the picture cannot be read, does not fit the network or would obviously fill the memory;
            the output holds NaN; the result cannot be written.
    """
    require_writable_suffix(target)
    image = read_image(source)
    batch = tensor_from_image(image)
    runner.require_shape(batch.shape, source)
    require_memory(runner, (1, 3, *image.shape[:2]), source)
    with runner:
        started = time.perf_counter()
        output = runner.run(batch)
        seconds = time.perf_counter() - started
    result = image_from_tensor(output, where=f"{runner.where} on {source}")
    write_image(target, result)
    return Upscaled(
        backend=runner.label,
        input_height=image.shape[0],
        input_width=image.shape[1],
        output_height=result.shape[0],
        output_width=result.shape[1],
        run_time_seconds=seconds,
    )
