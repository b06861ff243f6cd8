"""Videos in and out: frames, times, audio."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.upscaling.upscaler import Upscaler
from trt_hspan.upscaling.video import UpscaledVideo, upscale_video
from trt_hspan.upscaling.video_encoder import VideoOptions, require_encoder

_TICK = Fraction(1, 1200)


def write_video(
    path: Path,
    *,
    size: tuple[int, int] = (32, 48),
    uneven: bool = False,
    audio: str | None = "aac",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
) -> None:
    """One second, 12 frames of a moving gradient, a tone in stereo."""
    height, width = size
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=12)
        video.width, video.height, video.pix_fmt = width, height, pix_fmt
        video.codec_context.time_base = _TICK
        tone = container.add_stream(audio, rate=48_000) if audio else None
        y, x = np.mgrid[:height, :width]
        time = 0
        for index in range(12):
            colors = [(4 * x + 5 * index) % 256, 6 * y % 256, np.full_like(x, 20 * index)]
            frame = av.VideoFrame.from_ndarray(np.stack(colors, -1).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, _TICK
            time += 60 + 30 * (index % 3) if uneven else 100
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if tone is not None:
            wave = (0.4 * np.sin(np.arange(48_000) * 2 * np.pi * 440 / 48_000)).astype(np.float32)
            for start in range(0, 48_000, 1024):
                part = np.stack([wave[start : start + 1024]] * 2)
                sound = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
                sound.sample_rate, sound.pts, sound.time_base = 48_000, start, Fraction(1, 48_000)
                container.mux(tone.encode(sound))
            container.mux(tone.encode(None))


def read_video(path: Path) -> tuple[list[Fraction], list[np.ndarray], list[bytes]]:
    """Times and pictures of the frames, and the audio's packets."""
    with av.open(str(path)) as container:
        frames = [
            (frame.pts * frame.time_base, frame.to_ndarray(format="rgb24"))
            for frame in container.decode(video=0)
        ]
    with av.open(str(path)) as container:
        sounds = (
            [bytes(packet) for packet in container.demux(audio=0) if packet.dts is not None]
            if container.streams.audio
            else []
        )
    return [time for time, _ in frames], [picture for _, picture in frames], sounds


def upscaled(source: Path, target: Path, *, scale: int = 2, **options: object) -> UpscaledVideo:
    with NearestRunner(scale=scale) as runner:
        return upscale_video(Upscaler(runner), source, target, VideoOptions(**options))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("uneven", [False, True])
def test_frames_times_and_audio_are_kept(tmp_path: Path, suffix: str, uneven: bool) -> None:
    source, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_video(source, uneven=uneven)
    report = upscaled(source, target)
    times, frames, sounds = read_video(target)
    expected_times, expected_frames, expected_sounds = read_video(source)
    assert times == expected_times
    assert sounds == expected_sounds != []
    assert (report.frames, report.copied_streams, report.codec) == (12, 1, "libx264")
    for actual, expected in zip(frames, expected_frames, strict=True):
        assert actual.shape == (64, 96, 3)
        # H.264 at CRF 18 on steep gradients, and colors at half resolution twice.
        assert np.abs(actual.astype(int) - expected.repeat(2, 0).repeat(2, 1)).mean() < 4


def test_webm_gets_vp9_and_keeps_opus(tmp_path: Path) -> None:
    write_video(tmp_path / "a.webm", codec="libvpx-vp9", audio="libopus")
    assert upscaled(tmp_path / "a.webm", tmp_path / "b.webm").codec == "libvpx-vp9"
    assert read_video(tmp_path / "b.webm")[2] == read_video(tmp_path / "a.webm")[2]


def test_codec_and_quality_are_obeyed(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", audio=None)
    upscaled(tmp_path / "a.mp4", tmp_path / "fine.mkv", crf=5)
    upscaled(tmp_path / "a.mp4", tmp_path / "coarse.mkv", crf=45)
    assert (tmp_path / "coarse.mkv").stat().st_size < (tmp_path / "fine.mkv").stat().st_size
    upscaled(tmp_path / "a.mp4", tmp_path / "other.mkv", codec="ffv1")
    with av.open(str(tmp_path / "other.mkv")) as container:
        assert container.streams.video[0].codec_context.name == "ffv1"


def test_ten_bits_stay_ten_bits(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", pix_fmt="yuv420p10le", audio=None)
    upscaled(tmp_path / "a.mkv", tmp_path / "b.mkv")
    with av.open(str(tmp_path / "b.mkv")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p10le"


def test_odd_sizes_keep_every_pixel(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", size=(31, 45), pix_fmt="yuv444p", audio=None)
    upscaled(tmp_path / "a.mkv", tmp_path / "b.mkv", scale=3)
    assert read_video(tmp_path / "b.mkv")[1][0].shape == (93, 135, 3)


def test_what_is_no_video_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    write_video(tmp_path / "whole.mp4")
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "words.mp4").write_text("words" * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    before = sorted(tmp_path.iterdir())
    for name in ("cut.mp4", "words.mp4", "empty.mp4", "folder.mp4", "none.mp4"):
        with pytest.raises(HspanError) as caught:
            upscaled(tmp_path / name, tmp_path / "out.mp4")
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_sound_without_pictures_is_reported(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        tone = container.add_stream("aac", rate=48_000)
        sound = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        sound.sample_rate = 48_000
        container.mux(tone.encode(sound))
        container.mux(tone.encode(None))
    with pytest.raises(HspanError, match="contains no video stream"):
        upscaled(tmp_path / "a.mp4", tmp_path / "b.mp4")


def test_options_that_make_no_sense_are_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got 64, expected 0 to 63"):
        VideoOptions(crf=64)
    with pytest.raises(UsageError, match="no encoder is named 'nosuch'"):
        require_encoder(VideoOptions(codec="nosuch"))
    with pytest.raises(UsageError, match="aac encodes audio, not video"):
        require_encoder(VideoOptions(codec="aac"))
    write_video(tmp_path / "a.mp4", audio=None)
    with pytest.raises(UsageError, match=r"cannot tell the format from '\.png'"):
        upscaled(tmp_path / "a.mp4", tmp_path / "b.png")


def test_a_codec_that_does_not_fit_the_container_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", audio=None)
    with pytest.raises(HspanError, match=r"b\.webm: .*choose another --codec or container") as caught:
        upscaled(tmp_path / "a.mp4", tmp_path / "b.webm", codec="libx264")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_without_pyav_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(HspanError, match=r"needs PyAV.*pip install -e '\.\[media\]'"):
        require_encoder(VideoOptions())


@pytest.mark.parametrize("stream", ["sound", "picture"])
def test_a_damaged_transport_stream_is_blamed_and_not_its_encoder(tmp_path: Path, stream: str) -> None:
    """Sound is copied, so that the new container meets what is wrong with it; of pictures a packet is missing."""
    source, target = tmp_path / "a.ts", tmp_path / "b.mkv"
    write_video(source, size=(64, 96))
    packets = [source.read_bytes()[at : at + 188] for at in range(0, source.stat().st_size, 188)]
    number = {"picture": 0x100, "sound": 0x101}[stream]
    own = [
        at
        for at, packet in enumerate(packets)
        if packet[1] & 0x1F == number >> 8 and packet[2] == number & 0xFF
    ]
    if stream == "sound":
        packets[own[1]] = packets[own[1]][:4] + bytes(184)
        source.write_bytes(b"".join(packets))
        with pytest.raises(HspanError, match=rf"{source}: a damaged or truncated video \(Invalid data"):
            upscaled(source, target)
        assert not target.exists()
    else:
        del packets[own[len(own) // 2]]
        source.write_bytes(b"".join(packets))
        assert any("it is damaged" in note for note in upscaled(source, target).notes)
