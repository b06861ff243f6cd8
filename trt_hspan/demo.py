"""The main job from nothing to a picture: export, plugin, two engines, validation, one photograph upscaled.

Each step is a call that users can write themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trt_hspan.data import DEMO_PHOTOGRAPH
from trt_hspan.engine.build import build_engine
from trt_hspan.engine.manifest import EngineManifest
from trt_hspan.engine.spec import Attention, EngineSpec, ProfileRequest
from trt_hspan.evaluation.compare import ValidationReport, validate_all
from trt_hspan.evaluation.datasets import Sample
from trt_hspan.evaluation.figures import Crop, Panel, save_comparison
from trt_hspan.evaluation.metrics import Quality
from trt_hspan.evaluation.resize import bicubic_pixels
from trt_hspan.export import export_onnx
from trt_hspan.media.pictures import read_image
from trt_hspan.media.writing import write_picture
from trt_hspan.native.build import build_plugin
from trt_hspan.runtime.opening import open_runner
from trt_hspan.runtime.torch_runner import TorchRunner
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.pictures import Upscaled, upscale_file

CHECKPOINT: Final = "hspan-tiny-x4"
# The shipped photograph is 75x111 pixels after down-scaling by 4; one profile serves it and the two figures.
_PROFILE: Final = ProfileRequest(max=ImageSize(height=128, width=128))
# The cat's eye, in pixels of the ground truth.
_DETAIL: Final = Crop(top=82, left=124, height=60, width=90)


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """What the demo wrote and measured. Paths are in its output folder."""

    onnx: Path
    plugin_library: Path
    engines: dict[Attention, tuple[Path, EngineManifest]]  # attention kind -> plan and its manifest
    validation: ValidationReport  # the FP16 graph against PyTorch FP32 on the photograph
    bicubic: Quality
    photograph: Path  # the input, made smaller
    upscaled: Path
    upscale_run: Upscaled
    comparison: Path  # input, bicubic, network and ground truth side by side
    seconds: dict[str, float]  # wall time of each step


def run_demo(output: Path, *, on_step: Callable[[str], None] | None = None) -> DemoReport:
    """Runs the main job on the shipped network and photograph; calls `on_step` with each step's name as it begins."""
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        if on_step is not None:
            on_step(name)
        began = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - began

    with step("export the network to ONNX, FP16"):
        onnx = export_onnx(CHECKPOINT, output / f"{CHECKPOINT}_fp16.onnx", precision="fp16")
    with step("compile the plugin"):
        plugin = build_plugin().path
    engines: dict[Attention, tuple[Path, EngineManifest]] = {}
    kinds: tuple[Attention, ...] = ("function", "plugin")
    for kind in kinds:
        plan = output / "engines" / f"{CHECKPOINT}_fp16_{kind}.plan"
        spec = EngineSpec(onnx=onnx, output=plan, flavor="tensorrt-rtx", attention=kind, profiles=(_PROFILE,))
        with step(f"build a TensorRT-RTX engine, attention as {kind}"):
            engines[kind] = plan, build_engine(spec)
    plan = engines["function"][0]
    with step("validate against PyTorch"):
        sample = Sample(name=DEMO_PHOTOGRAPH.name, low_resolution=None, ground_truth=DEMO_PHOTOGRAPH, scale=4)
        (validation,) = validate_all([open_runner(plan)], TorchRunner(CHECKPOINT), [sample])
    with step("upscale the photograph"):
        low, truth = sample.load()
        photograph, upscaled = output / "photograph_low.png", output / "photograph_x4.png"
        write_picture(photograph, low)
        run = upscale_file(open_runner(plan), photograph, upscaled)
        bicubic = bicubic_pixels(low, 4)
        write_picture(output / "photograph_bicubic.png", bicubic)
        quality, bicubic_quality = validation.total.candidate_quality, validation.total.bicubic_quality
        assert truth is not None
        assert quality is not None
        assert bicubic_quality is not None
        pixels = low.repeat(4, axis=0).repeat(4, axis=1)
        panels = [
            Panel(title="input", note=f"{low.shape[0]} x {low.shape[1]} pixels", image=pixels),
            Panel(title="bicubic", note=_note(bicubic_quality), image=bicubic),
            Panel(title=f"{CHECKPOINT}, FP16", note=_note(quality), image=read_image(upscaled)),
            Panel(title="ground truth", note=f"{truth.shape[0]} x {truth.shape[1]} pixels", image=truth),
        ]
        comparison = save_comparison(output / "comparison.png", panels, _DETAIL)
    return DemoReport(
        onnx=onnx,
        plugin_library=plugin,
        engines=engines,
        validation=validation,
        bicubic=bicubic_quality,
        photograph=photograph,
        upscaled=upscaled,
        upscale_run=run,
        comparison=comparison,
        seconds=seconds,
    )


def _note(quality: Quality) -> str:
    return f"PSNR-Y {quality.psnr_y_db:.2f} dB, SSIM {quality.ssim_y:.4f}"
