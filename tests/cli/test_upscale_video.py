"""`trt-hspan upscale` on videos."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from support.command_line import CommandLine
from support.small_networks import write_attention_network


def write_video(path: Path, pix_fmt: str) -> None:
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=10)
        video.width, video.height, video.pix_fmt = 16, 12, pix_fmt
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((12, 16, 3), 80 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))


def test_a_folder_reports_what_each_video_lost(run: CommandLine, tmp_path: Path) -> None:
    network = write_attention_network(tmp_path / "network.onnx")
    source = tmp_path / "in"
    source.mkdir()
    write_video(source / "alpha.mkv", "yuva420p")
    write_video(source / "plain.mkv", "yuv420p")
    result = run("upscale", source, "-o", tmp_path / "out", "--onnx", network)
    assert result.code == 0
    assert result.err.splitlines() == [
        f"trt-hspan: {source / 'alpha.mkv'}: its alpha channel is dropped",
    ]
