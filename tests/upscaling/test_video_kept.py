"""What a video keeps beside its frames, and that one line notes the rest."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError
from trt_hspan.media.writing import encode_image
from trt_hspan.upscaling import video_streams
from trt_hspan.upscaling.upscaler import Upscaler
from trt_hspan.upscaling.video import UpscaledVideo, upscale_video
from trt_hspan.upscaling.video_encoder import VideoOptions

_MILLISECOND = Fraction(1, 1000)


def write_video(
    path: Path,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: tuple[int, ...] = tuple(range(0, 1000, 100)),
    sounds: tuple[str, ...] = (),
    aspect: Fraction | None = None,
    rotation: int | None = None,
    mirrored: bool = False,
    matrix: int = 2,
) -> None:
    """Ten frames, white in the upper left quarter and black elsewhere, and silent sound tracks."""
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream(codec, rate=10)
        video.width, video.height, video.pix_fmt = 32, 16, pix_fmt
        video.codec_context.time_base, video.codec_context.colorspace = _MILLISECOND, matrix
        if aspect is not None:
            video.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            video.set_display_rotation(rotation, hflip=mirrored)
        tones = [container.add_stream(name, rate=48_000) for name in sounds]
        for index, tone in enumerate(tones):
            tone.metadata.update(language=("ger", "fre")[index], title=("Ton", "Son")[index])
            tone.disposition = index  # the second one is the default
        if path.suffix == ".mkv":
            container.add_attachment("a.ttf", "application/x-truetype-font", b"glyphs")
            container.set_chapters(
                [{"id": 1, "start": 0, "end": 500, "time_base": _MILLISECOND, "metadata": {"title": "One"}}]
            )
        pixels = np.zeros((16, 32, 3), np.uint8)
        pixels[:8, :16] = 255
        for time in times:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, _MILLISECOND
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for tone in tones:
            for start in range(0, 48_000, 960):
                sound = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1920), np.int16), format="s16", layout="stereo"
                )
                sound.sample_rate, sound.pts, sound.time_base = 48_000, start, Fraction(1, 48_000)
                container.mux(tone.encode(sound))
            container.mux(tone.encode(None))


def upscaled(source: Path, target: Path, **options: object) -> UpscaledVideo:
    with NearestRunner(scale=2) as runner:
        return upscale_video(Upscaler(runner), source, target, VideoOptions(**options))


def seen(path: Path) -> tuple[list[float], np.ndarray]:
    """Times of the frames in seconds, and the first frame in RGB as it is stored."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [frame.time for frame in frames], frames[0].to_ndarray(format="rgb24")


def test_tracks_keep_order_and_names_and_chapters_and_fonts_are_kept(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", sounds=("aac", "libopus"))
    report = upscaled(tmp_path / "a.mkv", tmp_path / "b.mkv")
    assert (report.copied_streams, report.dropped_streams, report.notes) == (3, (), ())
    contents = []
    for name in ("a.mkv", "b.mkv"):
        with av.open(str(tmp_path / name)) as container:
            streams = [
                (s.type, s.metadata.get("language"), s.metadata.get("title"), int(s.disposition))
                for s in container.streams
            ]
            contents.append((streams, container.chapters(), container.streams.attachments[0].data))
    assert contents[0] == contents[1]
    assert [stream[0] for stream in contents[1][0]] == ["video", "audio", "audio", "attachment"]


def test_a_track_that_the_format_takes_only_by_name_is_dropped_and_reported(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", sounds=("aac", "libopus"))
    report = upscaled(tmp_path / "a.mkv", tmp_path / "b.mov")
    assert report.dropped_streams == (
        "audio stream 2: mov cannot contain opus",
        "attachment stream 3: mov cannot contain it",
    )


@pytest.mark.parametrize(
    ("rotation", "mirrored", "corner"),
    [(0, True, (0, -1)), (90, False, (-1, 0)), (180, False, (-1, -1)), (270, False, (0, -1))],
)
def test_turned_and_mirrored_videos_are_set_upright(
    tmp_path: Path, rotation: int, mirrored: bool, corner: tuple[int, int]
) -> None:
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_video(source, rotation=rotation, mirrored=mirrored, aspect=Fraction(4, 3))
    report = upscaled(source, target)
    turned = rotation in (90, 270)
    assert (report.output_height, report.output_width) == ((64, 32) if turned else (32, 64))
    picture = seen(target)[1]
    lightest = [(y, x) for y in (0, -1) for x in (0, -1) if picture[y, x].mean() > 128]
    assert lightest == [corner]
    with av.open(str(target)) as container:
        expected = Fraction(3, 4) if turned else Fraction(4, 3)
        assert container.streams.video[0].sample_aspect_ratio == expected
        assert next(container.decode(video=0)).rotation == 0


@pytest.mark.parametrize(
    ("codec", "suffix"), [("libx264", ".mkv"), ("libvpx-vp9", ".mp4"), ("libvpx-vp9", ".webm")]
)
def test_pixels_that_are_not_square_stay_so_or_are_said_to_be_lost(
    tmp_path: Path, codec: str, suffix: str
) -> None:
    source, target = tmp_path / "a.mp4", tmp_path / f"b{suffix}"
    write_video(source, times=(0, 100), aspect=Fraction(4, 3))
    notes = upscaled(source, target, codec=codec).notes
    with av.open(str(target)) as container:
        is_kept = container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
    line = f"its pixels are not square (4/3): {codec} cannot say so in {suffix}"
    assert notes == (() if is_kept else (line,))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_texts_in_other_encodings_stay_byte_for_byte(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / "a.mkv", sounds=("aac",))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data.replace(b"Ton", b"T\xf6n").replace(b"One", b"\xdcne"))
    upscaled(tmp_path / "a.mkv", tmp_path / f"b{suffix}")
    result = (tmp_path / f"b{suffix}").read_bytes()
    assert b"T\xf6n" in result
    assert b"\xdcne" in result


def test_a_file_that_ffmpeg_refuses_is_not_called_one_without_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise av.error.PermissionError(1, "Operation not permitted", "a.wmv")

    (tmp_path / "a.wmv").touch()
    monkeypatch.setattr(av, "open", refused)
    with pytest.raises(HspanError, match=r"a\.wmv: not a video that can be read"):
        upscaled(tmp_path / "a.wmv", tmp_path / "b.mkv")


def test_full_range_gray_gets_no_color(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", codec="ffv1", pix_fmt="gray")
    upscaled(tmp_path / "a.mkv", tmp_path / "b.mkv")
    picture = seen(tmp_path / "b.mkv")[1]
    assert np.ptp(picture, axis=2).max() == 0
    assert (picture[2, 2].min(), picture[-2, -2].max()) == (255, 0)


def test_avi_gets_the_rate_of_the_source_and_shows_no_frame_late(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", sounds=("aac",))
    assert upscaled(tmp_path / "a.mkv", tmp_path / "b.avi").notes == ()
    assert seen(tmp_path / "b.avi")[0] == pytest.approx([index / 10 for index in range(10)])
    with av.open(str(tmp_path / "b.avi")) as container:
        assert container.streams.video[0].average_rate == 10


def test_sound_that_begins_before_zero_moves_no_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", sounds=("aac",))
    upscaled(tmp_path / "a.mp4", tmp_path / "b.mkv")
    assert seen(tmp_path / "b.mkv")[0] == pytest.approx(seen(tmp_path / "a.mp4")[0])


def test_what_is_lost_is_reported(tmp_path: Path) -> None:
    write_video(tmp_path / "alpha.mkv", codec="ffv1", pix_fmt="yuva420p")
    assert upscaled(tmp_path / "alpha.mkv", tmp_path / "b.mkv").notes == ("its alpha channel is dropped",)
    write_video(tmp_path / "deep.mkv", pix_fmt="yuv420p10le")
    report = upscaled(tmp_path / "deep.mkv", tmp_path / "c.mkv", codec="mpeg4")
    assert report.notes == ("10 bits a sample became 8: mpeg4 takes no more",)
    write_video(tmp_path / "same.mkv", codec="ffv1")
    data = (tmp_path / "same.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 6 // 10])
    (line,) = upscaled(tmp_path / "cut.mkv", tmp_path / "d.mkv").notes
    assert line.endswith("more than there is: it may be cut off")
    write_video(tmp_path / "whole.mp4", codec="mpeg4")  # its header is in front
    with av.open(str(tmp_path / "whole.mp4")) as container:
        places = [packet.pos for packet in container.demux() if packet.size]
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[: places[7]])
    (line,) = upscaled(tmp_path / "cut.mp4", tmp_path / "e.mkv").notes
    assert line == "its header promises 10 frames, it contains 7: it may be cut off"


def test_frames_of_one_time_are_all_kept(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", times=(0, 100, 200, 200, 400, 500, 500, 700, 800, 900))
    report = upscaled(tmp_path / "a.mkv", tmp_path / "b.mkv")
    times = seen(tmp_path / "b.mkv")[0]
    assert report.frames == len(times) == len(set(times)) == 10
    assert report.notes == ("frames without a time of their own follow one tick after the frame before",)


def test_encoders_get_pixels_that_they_take_and_apples_players_their_tag(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv")
    upscaled(tmp_path / "a.mkv", tmp_path / "b.mov", codec="prores_ks")
    upscaled(tmp_path / "a.mkv", tmp_path / "c.mkv", codec="libx264rgb")
    upscaled(tmp_path / "a.mkv", tmp_path / "d.mp4", codec="libx265")
    assert seen(tmp_path / "b.mov")[1].shape == seen(tmp_path / "c.mkv")[1].shape == (32, 64, 3)
    with av.open(str(tmp_path / "d.mp4")) as container:
        assert container.streams.video[0].codec_context.codec_tag == "hvc1"


def stream(kind: str, index: int = 1, **facts: Any) -> SimpleNamespace:
    return SimpleNamespace(type=kind, index=index, metadata={}, disposition=0, codec_context=None, **facts)


@pytest.mark.parametrize(
    ("of_stream", "of_video", "format_name", "chapters", "is_kept"),
    [
        (True, True, "mp4", False, True),
        (True, True, "mov", False, True),
        (True, True, "matroska", False, False),
        (True, False, "mov", True, False),
        (False, True, "matroska", True, True),
        (False, True, "mov", False, False),
    ],
)
def test_data_that_only_repeats_chapters_or_a_time_code_are_not_called_lost(
    of_stream: bool, of_video: bool, format_name: str, chapters: bool, is_kept: bool
) -> None:
    data, video = stream("data"), stream("video")
    data.metadata = {"timecode": "01:00:00:00"} if of_stream else {}
    video.metadata = {"timecode": "01:00:00:00"} if of_video else {}
    container = SimpleNamespace(chapters=lambda: ["one"] if chapters else [])
    assert video_streams._kept_otherwise(data, container, video, format_name) is is_kept


def test_what_cannot_be_copied_has_a_reason() -> None:
    def reason(kind: str, format_name: str, **facts: Any) -> str | None:
        return video_streams._refusal(av, stream(kind, **facts), format_name)

    assert reason("attachment", "matroska") is None
    assert reason("attachment", "mp4") == "mp4 cannot contain it"
    assert reason("video", "mp4") == "only one video stream is upscaled"
    assert reason("data", "mov") == reason("audio", "mov") == "data is not copied"


def test_what_is_said_of_the_encoding_is_not_said_of_another(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv")
    with av.open(str(tmp_path / "a.mkv")) as container, av.open(str(tmp_path / "c.mkv"), "w") as other:
        copy = other.add_stream_from_template(container.streams.video[0])
        copy.metadata.update({"title": "cat", "BPS": "9", "NUMBER_OF_FRAMES": "7", "alpha_mode": "0"})
        other.metadata["comment"] = "of a cat"
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = copy
                other.mux(packet)
    upscaled(tmp_path / "c.mkv", tmp_path / "b.mkv")
    with av.open(str(tmp_path / "b.mkv")) as container:
        said = {name.lower(): text for name, text in container.streams.video[0].metadata.items()}
        assert said["title"] == "cat"
        assert not {"bps", "number_of_frames", "alpha_mode"} & said.keys()
        assert {name.lower(): text for name, text in container.metadata.items()}["comment"] == "of a cat"


def test_chapters_that_a_format_cannot_contain_are_named(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv")
    assert upscaled(tmp_path / "a.mkv", tmp_path / "b.avi").dropped_streams == (
        "attachment stream 1: avi cannot contain it",
        "1 chapters: avi cannot contain them",
    )
    assert not upscaled(tmp_path / "a.mkv", tmp_path / "b.webm").dropped_streams[1:]


def test_a_matrix_that_is_not_linear_is_reported_once(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", codec="ffv1", matrix=14)
    line = "its color matrix (number 14 of ITU-T H.273) is processed as that of BT.2020"
    assert upscaled(tmp_path / "a.mkv", tmp_path / "b.mkv").notes == (line,)


def test_a_cover_stays_one_in_every_format_and_is_not_taken_for_the_video(tmp_path: Path) -> None:
    cover = encode_image(np.full((8, 6, 3), 90, np.uint8), ".jpg")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        picture, video = container.add_stream("mjpeg", rate=1), container.add_stream("libx264", rate=10)
        picture.height, picture.width, picture.pix_fmt = 8, 6, "yuvj420p"
        picture.disposition = int(av.stream.Disposition.attached_pic)
        video.height, video.width, video.pix_fmt = 16, 32, "yuv420p"
        packet = av.Packet(cover)
        packet.stream, packet.pts, packet.dts, packet.time_base = picture, 0, 0, Fraction(1)
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 32, 3), np.uint8), format="rgb24")
        frame.pts, frame.time_base = 0, _MILLISECOND
        container.mux([*video.encode(frame), *video.encode(None), packet])
    steps = [("a.mp4", "b.mp4", 32), ("a.mp4", "c.mkv", 32), ("c.mkv", "d.mkv", 64), ("d.mkv", "e.mp4", 128)]
    for source, target, height in steps:
        report = upscaled(tmp_path / source, tmp_path / target)
        assert (report.output_height, report.output_width) == (height, 2 * height)
        assert (report.frames, report.copied_streams, report.dropped_streams) == (1, 1, ())
        with av.open(str(tmp_path / target)) as container:
            (copy,) = [s for s in container.streams if s.disposition & av.stream.Disposition.attached_pic]
            assert len(container.streams) == 2
            assert [bytes(packet) for packet in container.demux(copy) if packet.size] == [bytes(cover)]
