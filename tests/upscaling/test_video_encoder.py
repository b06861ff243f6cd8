"""Which encoder a video gets, which pixels, and which settings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trt_hspan.errors import UsageError
from trt_hspan.upscaling.video_encoder import VideoEncoder, VideoOptions


def encoder(codec: str | None = None, suffix: str = ".mkv", crf: int | None = None) -> VideoEncoder:
    return VideoEncoder(VideoOptions(codec=codec, crf=crf), suffix)


def settings(
    codec: str | None = None, suffix: str = ".mkv", crf: int | None = None
) -> tuple[dict[str, str], Any]:
    """What a stream is set to, and its codec's tag."""
    stream = SimpleNamespace(codec_context=SimpleNamespace(codec_tag=None), options={})
    encoder(codec, suffix, crf).configure(stream, "topleft")
    return stream.options, stream.codec_context.codec_tag


@pytest.mark.parametrize(("suffix", "name"), [(".mp4", "libx264"), (".webm", "libvpx-vp9"), ("", "libx264")])
def test_a_codec_that_is_not_named_is_the_usual_one_of_the_format(suffix: str, name: str) -> None:
    assert encoder(suffix=suffix).name == name
    assert encoder("mpeg4", suffix).name == "mpeg4"


YUV, DEEP = ("yuv420p", "yuv422p", "yuv444p"), ("yuv420p10le", "yuv422p10le", "yuv444p10le")


@pytest.mark.parametrize(
    ("offered", "least", "deep", "kind"),
    [
        *((YUV, least, False, YUV[least]) for least in range(3)),
        *(((*YUV, *DEEP), least, True, DEEP[least]) for least in range(3)),
        (("yuv420p", "yuv444p"), 1, False, "yuv444p"),  # the next finer one
        (("yuv420p", "yuv422p"), 2, False, "yuv422p"),  # none is finer: the next coarser one
        (YUV, 3, False, "yuv444p"),
        ((*YUV, "gbrp"), 3, False, "gbrp"),
        (("yuv420p", "rgb24", "bgr0"), 3, False, "bgr0"),
        ((*YUV, "yuv420p10le"), 2, True, "yuv420p10le"),
        (YUV, 0, True, "yuv420p"),
        (DEEP, 0, False, "yuv420p10le"),
        ((*DEEP, "gbrp10le"), 3, True, "gbrp10le"),
        ((), 1, False, "yuv422p"),
    ],
)
def test_pixels_are_as_deep_and_as_fine_as_the_encoder_takes_them(
    offered: tuple[str, ...], least: int, deep: bool, kind: str
) -> None:
    made = encoder()
    made._offered = set(offered)
    assert made.pixel_format(least, deep=deep) == (kind, "10" in kind)


def test_chroma_lies_where_the_source_has_it_unless_the_format_says_otherwise() -> None:
    names = ("libx264", "mpeg1video", "mpeg2video", "mpeg4")
    places = {name: encoder(name).chroma_location("topleft") for name in names}
    assert places == {"libx264": "topleft", "mpeg1video": "center", "mpeg2video": "left", "mpeg4": "left"}
    assert settings("libx264")[0]["chroma_sample_location"] == "topleft"
    assert settings("mpeg4")[0] == {}


@pytest.mark.parametrize(
    ("codec", "usual"),
    [
        *[(None, "18"), ("libx264", "18"), ("libx264rgb", "18"), ("libx265", "20")],
        *[("libvpx-vp9", "24"), ("libsvtav1", "24"), ("libvpx", None), ("ffv1", None)],
    ],
)
def test_quality_is_the_usual_one_of_the_codec_unless_it_is_given(
    codec: str | None, usual: str | None
) -> None:
    assert settings(codec)[0].get("crf") == usual
    if codec != "ffv1":
        assert settings(codec, crf=0)[0]["crf"] == "0"


@pytest.mark.parametrize(
    ("codec", "most"),
    [
        ("libx264", 51),
        ("libx264rgb", 51),
        ("libx265", 51),
        ("libvpx", 63),
        ("libvpx-vp9", 63),
        ("libsvtav1", 63),
    ],
)
def test_the_largest_factor_is_the_codecs(codec: str, most: int) -> None:
    assert settings(codec, crf=most)[0]["crf"] == str(most)
    if most < 63:
        with pytest.raises(UsageError, match=f"--crf: got {most + 1}, {codec} takes 0 to {most}"):
            encoder(codec, crf=most + 1)


def test_a_factor_is_a_number_from_0_to_63() -> None:
    for crf in (-1, 64):
        with pytest.raises(UsageError, match=f"--crf: got {crf}, expected 0 to 63"):
            VideoOptions(crf=crf)
    assert (VideoOptions(crf=0).crf, VideoOptions(crf=63).crf) == (0, 63)
    assert VideoOptions() == VideoOptions(codec=None, crf=None)
    with pytest.raises(UsageError, match="ffv1 has no constant rate factor; leave it out"):
        encoder("ffv1", crf=5)


def test_each_codec_gets_what_it_needs_beside() -> None:
    assert settings("libvpx-vp9")[0]["b"] == settings("libvpx")[0]["b"] == "0"
    assert "b" not in settings("libx264")[0]
    assert settings("libx265")[0]["x265-params"] == "log-level=error"
    tags = {suffix: settings("libx265", suffix)[1] for suffix in (".mp4", ".mov", ".m4v", ".mkv")}
    assert tags == {".mp4": "hvc1", ".mov": "hvc1", ".m4v": "hvc1", ".mkv": None}
    assert settings("libx264", ".mp4")[1] is None


def test_frames_of_an_avi_come_in_order() -> None:
    options, _ = settings("libx264", ".avi")
    assert options["bf"] == "0"
    assert "nal-hrd=vbr" in options["x264-params"]
    assert settings("mpeg4", ".avi")[0] == {"bf": "0"}
    assert not {"bf", "x264-params"} & settings("libx264", ".mkv")[0].keys()
