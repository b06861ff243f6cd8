"""Videos in and out: frames, times, audio."""

from __future__ import annotations

import re
import resource
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling import video as video_module
from trt_hspan.upscaling.upscaler import Upscaler
from trt_hspan.upscaling.video import UpscaledVideo, upscale_video, video_frames
from trt_hspan.upscaling.video_encoder import VideoOptions, require_encoder
from trt_hspan.upscaling.video_streams import StreamPlan

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


def test_frames_are_counted_by_the_header_or_by_its_length(tmp_path: Path) -> None:
    for suffix in (".mp4", ".mkv"):
        write_video(tmp_path / f"a{suffix}", audio=None)
        assert video_frames(tmp_path / f"a{suffix}") == (12, (32, 48))
    (tmp_path / "words.mp4").write_text("words")
    assert video_frames(tmp_path / "words.mp4") is None
    assert video_frames(tmp_path) is None
    for frames, rate, duration, count in (
        (7, None, None, 7),
        *[(0, Fraction(25), 2_000_000, 50), (0, Fraction(1, 9), 1_000_000, 1)],
        *[(0, None, 2_000_000, None), (0, Fraction(25), None, None)],
    ):
        stream = SimpleNamespace(frames=frames, average_rate=rate)
        assert video_module._frame_count(SimpleNamespace(duration=duration), stream) == count


def test_progress_counts_every_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", audio=None)
    seen: list[tuple[int, int | None]] = []
    with NearestRunner(scale=2) as runner:
        report = upscale_video(
            Upscaler(runner),
            tmp_path / "a.mp4",
            tmp_path / "b.mp4",
            on_frame=lambda *words: seen.append(words),
        )
    assert seen == [(number, 12) for number in range(1, 13)]
    assert (report.input_height, report.input_width) == (32, 48)
    assert (report.output_height, report.output_width) == (64, 96)
    assert (report.frames_per_second, report.backend) == (12, "numpy, FP32")


class Unopened(video_module._Transcoding):
    """Of no file: what it decides by facts alone."""

    def __init__(self, **facts: object) -> None:
        self._notes, self._av, self._time = {}, av, None
        vars(self).update({f"_{name}": value for name, value in facts.items()})


@pytest.mark.parametrize(
    ("name", "size", "place"),
    [
        *[("yuv420p", (4, 6), 0), ("yuv422p", (4, 6), 1), ("yuv444p", (4, 6), 2), ("rgb24", (4, 6), 3)],
        *[("gray", (4, 6), 0), ("yuv440p", (4, 6), 0), ("yuv411p", (4, 6), 1), ("yuv410p", (4, 6), 0)],
        *[("yuv420p", (3, 6), 2), ("yuv420p", (4, 7), 2), ("rgb24", (3, 6), 2)],
    ],
)
def test_chroma_is_kept_and_whole_where_a_side_is_odd(name: str, size: tuple[int, int], place: int) -> None:
    transcoding = Unopened(output_size=ImageSize(*size))
    assert transcoding._least_chroma(av.VideoFrame(16, 16, name)) == place


@pytest.mark.parametrize(
    ("facts", "note"),
    [
        ({"frames": 100, "seen": 99}, None),
        ({"frames": 100, "seen": 98}, "its header promises 100 frames, it contains 98: it may be cut off"),
        ({"frames": 9, "seen": 8}, "its header promises 9 frames, it contains 8: it may be cut off"),
        ({"frames": 9, "seen": 8, "format": "avi"}, None),
        ({"duration": 10_000, "end": "9.8"}, None),
        (
            {"duration": 10_000, "end": "9.7"},
            "its header promises 0.3 s more than there is: it may be cut off",
        ),
        ({"duration": 100_000, "end": "99"}, None),
        ({"duration": 100_000, "end": "98.9"}, "its header promises 1.1 s more"),
        ({"duration": 10_000, "start": 2_000, "end": "11"}, "its header promises 1.0 s more"),
        ({"whole": 10_000_000, "end": "9.7"}, "its header promises 0.3 s more"),
        ({"whole": 10_000_000, "end": "9.7", "dropped": ["sound"]}, None),
        ({"end": "1"}, None),
    ],
)
def test_a_file_that_ends_before_its_header_says_is_noted(facts: dict[str, Any], note: str | None) -> None:
    """By more than a hundredth of its frames; of its length by as much, and by more than 0.2 s."""
    stream = SimpleNamespace(
        frames=facts.get("frames", 0),
        duration=facts.get("duration"),
        time_base=Fraction(1, 1000),
        start_time=facts.get("start"),
    )
    container = SimpleNamespace(
        format=SimpleNamespace(name=facts.get("format", "mov,mp4")), duration=facts.get("whole")
    )
    transcoding = Unopened(
        video=stream, container=container, seen=facts.get("seen", 0), end=Fraction(facts.get("end", 0))
    )
    transcoding._note_missing_end(StreamPlan(dropped=facts.get("dropped", [])))
    (found,) = transcoding._notes or [None]
    assert (found is None) is (note is None)
    assert note is None or str(found).startswith(note)


def times(transcoding: Unopened, *stamps: int | None) -> list[tuple[int, Fraction, int]]:
    frames = [SimpleNamespace(pts=pts, time_base=_TICK, duration=50) for pts in stamps]
    return [transcoding._timed(frame) for frame in frames]


def test_time_stamps_rise_from_frame_to_frame() -> None:
    line = "frames without a time of their own follow one tick after the frame before"
    transcoding = Unopened(even_rate=None)
    assert [time for time, *_ in times(transcoding, 0, 100, 100, 90, None, 200)] == [
        0,
        100,
        101,
        102,
        103,
        200,
    ]
    assert list(transcoding._notes) == [line]
    assert times(Unopened(even_rate=None), 7) == [(7, _TICK, 50)]
    first = Unopened(even_rate=None)
    assert times(first, None) == [(0, _TICK, 50)]
    assert first._notes == {}


def test_frames_of_an_avi_are_counted_and_uneven_ones_noted() -> None:
    """Of 12 in a second, 100 of 1200 ticks each; a fourth of a frame is even enough."""
    even = Unopened(even_rate=12)
    assert times(even, 0, 125, 175, 300) == [(number, Fraction(1, 12), 1) for number in range(4)]
    assert even._notes == {}
    uneven = Unopened(even_rate=12)
    assert [time for time, *_ in times(uneven, 0, 126)] == [0, 1]
    assert list(uneven._notes) == ["AVI stores frames at even intervals only: these were uneven"]


@pytest.mark.parametrize(
    ("alpha", "interlaced", "data", "notes"),
    [
        ({}, False, [], []),
        ({"alpha_mode": "1"}, False, [], ["its alpha channel is dropped"]),
        ({"ALPHA_MODE": "1"}, False, [], ["its alpha channel is dropped"]),
        (
            {"alpha_mode": "0"},
            True,
            ["DISPLAYMATRIX"],
            ["its frames are interlaced and were upscaled as they are"],
        ),
        ({}, False, ["CONTENT_LIGHT_LEVEL"], ["HDR metadata of the mastering display and light level"]),
    ],
)
def test_what_frames_lose_is_noted(
    alpha: dict[str, str], interlaced: bool, data: list[str], notes: list[str]
) -> None:
    frame = SimpleNamespace(
        format=av.VideoFormat("yuv420p"),
        interlaced_frame=interlaced,
        side_data=[SimpleNamespace(type=SimpleNamespace(name=name)) for name in data],
    )
    transcoding = Unopened(video=SimpleNamespace(metadata=alpha))
    transcoding._note_losses(frame)
    assert len(transcoding._notes) == len(notes)
    assert all(note.startswith(start) for note, start in zip(transcoding._notes, notes, strict=True))


def test_frames_of_two_sizes_are_one_line(tmp_path: Path) -> None:
    write_video(tmp_path / "a.h264", audio=None)
    write_video(tmp_path / "b.h264", size=(48, 32), audio=None)
    (tmp_path / "c.h264").write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
    with pytest.raises(HspanError, match=r"c\.h264: its frames change from 32x48 to 48x32 pixels; cut the"):
        upscaled(tmp_path / "c.h264", tmp_path / "d.mkv")
    assert not (tmp_path / "d.mkv").exists()


def test_a_full_disk_is_blamed_and_not_the_encoder(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", audio=None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(HspanError, match=r"b\.mkv: .*[Ff]ile.* too large") as caught:
            upscaled(tmp_path / "a.mp4", tmp_path / "b.mkv", codec="ffv1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "codec" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (av.error.OSError(28, "No space left on device", "b.mkv"), "b.mkv: the disk is full"),
        (
            av.error.PermissionError(1, "Not permitted", "avcodec_open2()"),
            "libx264 cannot write 64x96 pixels",
        ),
        (av.error.InvalidDataError(1094995529, "Invalid data", None), "libx264 cannot write 64x96 pixels"),
    ],
)
def test_an_error_of_the_system_is_of_the_file_and_others_are_of_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    write_video(tmp_path / "a.mkv", audio=None)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(video_module._Transcoding, "_timed", fail)
    with pytest.raises(HspanError, match=re.escape(line)):
        upscaled(tmp_path / "a.mkv", tmp_path / "b.mkv")


def test_what_was_read_is_counted_and_how_far_it_goes() -> None:
    def packet(stream: object, pts: int | None, duration: int | None, size: int = 9) -> SimpleNamespace:
        return SimpleNamespace(
            stream=stream, pts=pts, duration=duration, size=size, time_base=_TICK, is_corrupt=False
        )

    video, sound = object(), object()
    packets = [
        *[packet(video, 0, 100), packet(sound, 900, 300), packet(video, 400, 100), packet(video, None, 100)],
        *[packet(sound, 1100, None), packet(video, None, None, size=0)],
    ]
    container = SimpleNamespace(demux=lambda streams: iter(packets))
    transcoding = Unopened(container=container, video=video, seen=0, end=Fraction(0))
    assert list(transcoding._packets([video, sound])) == packets
    assert (transcoding._seen, transcoding._end, transcoding._notes) == (3, 1200 * _TICK, {})
    del packets[1:4]
    packets[0].is_corrupt = True
    transcoding = Unopened(container=container, video=video, seen=0, end=Fraction(0))
    list(transcoding._packets([video, sound]))
    assert transcoding._end == 1100 * _TICK
    assert [note.split(":")[0] for note in transcoding._notes] == ["it is damaged"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (av.error.OSError(28, "No space left on device", "b.mkv"), OSError),
        (av.error.InvalidDataError(1094995529, "Invalid data", None), HspanError),
    ],
)
def test_a_packet_that_cannot_be_copied_is_damaged_unless_the_system_says_why(
    error: Exception, expected: type[Exception]
) -> None:
    written: list[int] = []

    def mux(packet: int) -> None:
        written.append(packet)
        if packet == 2:
            raise error

    waiting = [1, 2, 3]
    with pytest.raises(expected):
        Unopened(source=Path("a.mkv"))._copy(SimpleNamespace(mux=mux), waiting)
    assert (written, waiting) == ([1, 2], [3])


@pytest.mark.parametrize(("suffix", "is_even"), [(".avi", True), (".AVI", True), (".mkv", False)])
def test_a_video_that_says_no_rate_has_25_frames_in_a_second(suffix: str, is_even: bool) -> None:
    stream = SimpleNamespace(type="video", disposition=0, average_rate=None)
    container = SimpleNamespace(streams=SimpleNamespace(video=[stream]))
    upscaler: Any = None
    target = Path(f"b{suffix}")
    transcoding = video_module._Transcoding(upscaler, Path("a"), target, VideoOptions(), container)
    assert transcoding._even_rate == (25 if is_even else None)
    output = SimpleNamespace(add_stream=lambda name, rate: (name, rate))
    assert transcoding._added_stream(output) == ("libx264", 25)
