"""Colors of videos: what networks get of a frame, and what an identity network leaves of it."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import av
import numpy as np
import pytest
from PIL import Image
from support.runner_doubles import NearestRunner

from trt_hspan.data import DEMO_PHOTOGRAPH
from trt_hspan.media.pictures import read_image
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.upscaler import Upscaler
from trt_hspan.upscaling.video import UpscaledVideo, upscale_video
from trt_hspan.upscaling.video_colors import (
    FrameWriter,
    chroma_location,
    has_linear_matrix,
    is_gray,
    matrix_of_frame,
    rgb_from_frame,
)
from trt_hspan.upscaling.video_encoder import VideoOptions

# ITU-T H.273, table 4: shares of red and blue; and primaries and transfer that such videos have.
_WEIGHTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
_TRANSFER = {1: 1, 6: 6, 9: 16}
_TAGS = ("colorspace", "color_range", "color_primaries", "color_trc")
_LIMITED, _FULL = 1, 2


class Kind(NamedTuple):
    """Bits and chroma of a pixel format, range and matrix of its frames."""

    bits: int
    chroma: str
    color_range: int
    matrix: int

    @property
    def name(self) -> str:
        return f"yuv{self.chroma}p{'10le' if self.bits == 10 else ''}"

    @property
    def levels(self) -> tuple[int, int, int]:
        """Of black, from there to white, and of chroma from end to end: ITU-T H.273, equations 26 to 33."""
        unit, top = 1 << (self.bits - 8), (1 << self.bits) - 1
        return (0, top, top) if self.color_range == _FULL else (16 * unit, 219 * unit, 224 * unit)


KINDS = [
    Kind(*row)
    for row in itertools.product((8, 10), ("420", "422", "444"), (_LIMITED, _FULL), sorted(_WEIGHTS))
]
of_every_kind = pytest.mark.parametrize(
    "kind", KINDS, ids=lambda kind: f"{kind.name}-{('limited', 'full')[kind.color_range - 1]}-{kind.matrix}"
)


def rgb_reference(codes: np.ndarray, kind: Kind) -> np.ndarray:
    """(3, ...) codes -> (3, ...) RGB, white 1: ITU-T H.273, equations 38 to 40 solved for R, G and B."""
    (black, luma, chroma), (red_share, blue_share) = kind.levels, _WEIGHTS[kind.matrix]
    y, (cb, cr) = (codes[0] - black) / luma, (codes[1:] - (128 << kind.bits - 8)) / chroma
    red, blue = y + 2 * (1 - red_share) * cr, y + 2 * (1 - blue_share) * cb
    return np.stack([red, (y - red_share * red - blue_share * blue) / (1 - red_share - blue_share), blue])


def codes_reference(rgb: np.ndarray, kind: Kind) -> np.ndarray:
    """`rgb_reference` backwards, not rounded."""
    (black, luma, chroma), (red_share, blue_share) = kind.levels, _WEIGHTS[kind.matrix]
    y = red_share * rgb[0] + (1 - red_share - blue_share) * rgb[1] + blue_share * rgb[2]
    cb, cr = (rgb[2] - y) / (2 - 2 * blue_share), (rgb[0] - y) / (2 - 2 * red_share)
    return np.stack([y * luma + black, *(side * chroma + (128 << kind.bits - 8) for side in (cb, cr))])


def photographed(rgb: np.ndarray, kind: Kind) -> list[np.ndarray]:
    """Codes of (3, H, W) RGB; a sample of halved chroma is the mean of its pixels."""
    codes = codes_reference(rgb, kind)
    rows, columns = {"420": (2, 2), "422": (1, 2), "444": (1, 1)}[kind.chroma]
    height, width = codes.shape[1:]
    whole = np.pad(codes[1:], ((0, 0), (0, -height % rows), (0, -width % columns)), "edge")
    means = whole.reshape(2, whole.shape[1] // rows, rows, -1, columns).mean((2, 4))
    return [np.rint(plane) for plane in (codes[0], *means)]


def planes_of(frame: av.VideoFrame) -> list[np.ndarray]:
    dtype = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
    return [np.frombuffer(p, dtype).reshape(p.height, -1)[:, : p.width] for p in frame.planes]


def frame_of(kind: Kind, planes: list[np.ndarray]) -> av.VideoFrame:
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, kind.name)
    for stored, plane in zip(planes_of(frame), planes, strict=True):
        stored[:] = plane
    tags = (kind.matrix, kind.color_range, kind.matrix, _TRANSFER[kind.matrix])
    for name, tag in zip(_TAGS, tags, strict=True):
        setattr(frame, name, tag)
    return frame


def write_video(path: Path, frame: av.VideoFrame, codec: str = "ffv1", **options: str) -> None:
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=10)
        video.width, video.height, video.pix_fmt = frame.width, frame.height, frame.format.name
        video.options = options
        for name in _TAGS:
            setattr(video.codec_context, name, int(getattr(frame, name)))
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux([*video.encode(frame), *video.encode(None)])


def first_frame(path: Path) -> av.VideoFrame:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


def through_identity(source: Path, target: Path, codec: str = "ffv1") -> UpscaledVideo:
    with NearestRunner(scale=1) as runner:
        return upscale_video(Upscaler(runner), source, target, VideoOptions(codec=codec))


@of_every_kind
def test_networks_get_the_colors_of_the_standard(kind: Kind) -> None:
    random = np.random.default_rng(0)
    shapes = [plane.shape for plane in planes_of(av.VideoFrame(10, 6, kind.name))]
    for codes in random.integers(0, 1 << kind.bits, (8, 3)):
        frame = frame_of(kind, [np.full(shape, code) for shape, code in zip(shapes, codes, strict=True)])
        expected = rgb_reference(codes.astype(float), kind)[:, None, None]
        # Four sums and products of numbers below 4, each rounded to float32, whose step there is 2^-22.
        np.testing.assert_allclose(rgb_from_frame(frame), np.broadcast_to(expected, (3, 6, 10)), atol=1e-6)


@of_every_kind
@pytest.mark.parametrize("size", [(36, 52), (35, 51)], ids=["even", "odd"])
def test_an_identity_network_leaves_levels_and_tags_as_they_are(
    tmp_path: Path, kind: Kind, size: tuple[int, int]
) -> None:
    photo = read_image(DEMO_PHOTOGRAPH)[100 : 100 + size[0], 150 : 150 + size[1]].transpose(2, 0, 1)
    source = photographed(photo / 255, kind)
    source[0][:4, :4] = 0  # blacker than black, in limited range
    write_video(tmp_path / "a.mkv", frame_of(kind, source))
    assert through_identity(tmp_path / "a.mkv", tmp_path / "b.mkv").notes == ()
    before, after = first_frame(tmp_path / "a.mkv"), first_frame(tmp_path / "b.mkv")
    assert [getattr(after, name) for name in _TAGS] == [getattr(before, name) for name in _TAGS]
    is_odd = size[0] % 2 == 1
    assert after.format.name == (kind.name.replace(kind.chroma, "444") if is_odd else kind.name)
    planes = planes_of(after)
    np.testing.assert_array_equal(planes[0], source[0])
    for plane, expected in zip(planes[1:], source[1:], strict=True):
        if is_odd and kind.chroma != "444":
            assert abs(plane.mean() - expected.mean()) < 0.5  # samples at the edges count twice
            continue
        error = plane - expected
        assert abs(error.mean()) < 0.02 * (1 << kind.bits - 8)
        # One filter after the other loses what lies near the limit of their resolution.
        assert np.abs(error).max() <= (0 if kind.chroma == "444" else 2 << kind.bits - 8)


def test_halved_chroma_is_interpolated_where_its_samples_lie() -> None:
    """libswscale gives 42.3 dB without its flags and is 1.5 levels too dark, with all of them 46.2 dB."""
    kind, photo = Kind(8, "420", _LIMITED, 1), read_image(DEMO_PHOTOGRAPH).transpose(2, 0, 1)
    frame = frame_of(kind, photographed(photo / 255, kind))
    error = np.clip(rgb_from_frame(frame), 0, 1) * 255 - photo
    assert np.abs(error.mean((1, 2))).max() < 0.02
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 46.4


@pytest.mark.parametrize(
    ("location", "right", "below"),
    [
        *[("left", 0, 0.5), ("center", 0.5, 0.5), ("topleft", 0, 0)],
        *[("top", 0.5, 0), ("bottomleft", 0, 1), ("bottom", 0.5, 1)],
    ],
)
def test_chroma_stays_where_the_source_says_that_it_lies(
    tmp_path: Path, location: str, right: float, below: float
) -> None:
    kind = Kind(8, "420", _LIMITED, 1)
    y, x = np.mgrid[:16, :24]
    ramps = [np.full((32, 48), 128), 40 + 6 * x, 40 + 6 * y]
    write_video(
        tmp_path / "a.mp4", frame_of(kind, ramps), "libx264", crf="0", chroma_sample_location=location
    )
    before = first_frame(tmp_path / "a.mp4")
    through_identity(tmp_path / "a.mp4", tmp_path / "b.mp4", "libx264")
    after = first_frame(tmp_path / "b.mp4")
    assert chroma_location(before) == chroma_location(after) == location
    for frame, most in ((before, 0.2), (after, 1.5)):  # crf 18 rounds ramps
        cb, cr = codes_reference(rgb_from_frame(frame), kind)[1:, 16, 24]
        assert abs(cb - (40 + 6 * (24 - right) / 2)) < most
        assert abs(cr - (40 + 6 * (16 - below) / 2)) < most


@pytest.mark.parametrize("name", ["yuv444p", "rgb24", "gbrp", "gray"])
def test_chroma_that_is_not_halved_lies_as_most_formats_have_it(name: str) -> None:
    assert chroma_location(av.VideoFrame(24, 16, name)) == "left"


def test_rgb_and_gray_are_exact(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, top in (("bgr0", 255), ("gbrp10le", 1023), ("gray", 255), ("gray10le", 1023)):
        frame = av.VideoFrame(24, 16, name)
        for stored in planes_of(frame):
            stored[:] = random.integers(0, top + 1, stored.shape)
        write_video(tmp_path / "a.mkv", frame)
        seen = rgb_from_frame(first_frame(tmp_path / "a.mkv"))
        through_identity(tmp_path / "a.mkv", tmp_path / "b.mkv")
        after = first_frame(tmp_path / "b.mkv")
        # Gray becomes luma of limited range, which has fewer levels.
        np.testing.assert_allclose(
            rgb_from_frame(after), seen, atol=1e-6 if "gray" not in name else 0.51 / 219
        )
        if "gray" not in name:
            assert after.format.is_rgb
            np.testing.assert_array_equal(np.rint(seen * top) % 1, 0)
        else:
            np.testing.assert_array_equal(np.rint(seen[0] * top), planes_of(frame)[0])
            assert all(
                (plane == 128 << after.format.components[0].bits - 8).all() for plane in planes_of(after)[1:]
            )


def test_full_range_is_read_alike_from_both_names_of_a_format_with_every_matrix() -> None:
    random = np.random.default_rng(0)
    for matrix in (1, 5, 6, 7, 8, 9):  # of YCgCo, 8, libswscale knows nothing
        plain, full = av.VideoFrame(24, 16, "yuv444p"), av.VideoFrame(24, 16, "yuvj444p")
        for stored, copied in zip(planes_of(plain), planes_of(full), strict=True):
            stored[:] = copied[:] = random.integers(0, 256, stored.shape)
        for frame in (plain, full):
            frame.colorspace, frame.color_range = matrix, _FULL
        np.testing.assert_array_equal(rgb_from_frame(full), rgb_from_frame(plain))


@pytest.mark.parametrize(
    ("tag", "height", "matrix"),
    [
        *((tag, 719, 6) for tag in (0, 2, 3, 18, 200)),
        *((tag, 720, 1) for tag in (0, 2, 3, 18)),
        *((tag, 100, tag) for tag in (1, 4, 5, 6, 7, 8, 9, 17)),
    ],
)
def test_a_video_without_a_matrix_is_high_definition_from_720_lines(
    tag: int, height: int, matrix: int
) -> None:
    assert matrix_of_frame(SimpleNamespace(colorspace=tag, height=height)) == matrix


def test_matrices_that_are_not_linear_are_those_of_bt_2020() -> None:
    assert [number for number in range(18) if has_linear_matrix(number)] == [1, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("matrix", "red", "blue"),
    [
        *[(1, 0.2126, 0.0722), (4, 0.30, 0.11), (5, 0.299, 0.114), (6, 0.299, 0.114)],
        *[(7, 0.212, 0.087), (9, 0.2627, 0.0593), (14, 0.2627, 0.0593)],
    ],
)
def test_each_matrix_has_the_shares_of_the_standard(matrix: int, red: float, blue: float) -> None:
    """ITU-T H.273, table 4 and equations 38 to 40, of full range and 8 bits."""
    frame = av.VideoFrame(2, 2, "yuv444p")
    for stored, code in zip(planes_of(frame), (100, 60, 190), strict=True):
        stored[:] = code
    frame.colorspace, frame.color_range = matrix, _FULL
    luma, first, second = 100 / 255, (60 - 128) / 255, (190 - 128) / 255
    r, b = luma + 2 * (1 - red) * second, luma + 2 * (1 - blue) * first
    g = (luma - red * r - blue * b) / (1 - red - blue)
    np.testing.assert_allclose(rgb_from_frame(frame)[:, 0, 0], (r, g, b), atol=1e-6)


def test_ycgco_is_read_by_its_own_equations() -> None:
    """ITU-T H.273, equations 63 to 66: t = Y - Cg, G = Y + Cg, B = t - Co, R = t + Co."""
    frame = av.VideoFrame(2, 2, "yuv444p")
    for stored, code in zip(planes_of(frame), (100, 60, 190), strict=True):
        stored[:] = code
    frame.colorspace, frame.color_range = 8, _FULL
    luma, green, orange = 100, 60 - 128, 190 - 128
    expected = (luma - green + orange, luma + green, luma - green - orange)
    np.testing.assert_allclose(rgb_from_frame(frame)[:, 0, 0] * 255, expected, atol=1e-4)


@pytest.mark.parametrize(("name", "bits"), [("gray", 8), ("gray10le", 10), ("gray16le", 16)])
def test_gray_of_limited_range_is_black_at_16_and_white_at_235(name: str, bits: int) -> None:
    frame = av.VideoFrame(4, 2, name)
    unit = 1 << bits - 8
    (stored,) = planes_of(frame)
    stored[:] = np.array([16, 235, 100, 255]) * unit
    frame.color_range = _LIMITED
    expected = np.array([0, 1, 84 / 219, 239 / 219])
    # libswscale gives 16 bits of gray with a rounding to one of 65535 levels.
    np.testing.assert_allclose(
        rgb_from_frame(frame), np.broadcast_to(expected, (3, 2, 4)), atol=1e-6 if bits == 8 else 2 / 65535
    )
    frame.color_range = _FULL
    np.testing.assert_allclose(
        rgb_from_frame(frame)[0, 0], np.array(stored[0]) / ((1 << bits) - 1), atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "gray"),
    [
        ("gray", True),
        ("gray10le", True),
        ("ya8", True),
        ("pal8", False),
        ("rgb24", False),
        ("yuv420p", False),
    ],
)
def test_gray_is_luma_alone(name: str, gray: bool) -> None:
    assert is_gray(av.VideoFrame(4, 2, name)) is gray


def test_codes_beyond_what_a_frame_can_hold_are_the_nearest_that_it_can() -> None:
    tags = {"colorspace": 1, "color_range": _LIMITED, "color_primaries": 1, "color_trc": 1}
    for name, top in (("yuv444p", 255), ("yuv444p10le", 1023), ("yuv420p", 255)):
        writer = FrameWriter(av, name, ImageSize(2, 4), tags=tags, location="left", gray=False)
        for level, code in ((-9.0, 0), (9.0, top)):
            frame = writer.frame(np.full((3, 2, 4), level, np.float32))
            assert (planes_of(frame)[0] == code).all()
            assert {tag: int(getattr(frame, tag)) for tag in tags} == tags
    for name, top in (("gbrp", 255), ("gbrp10le", 1023)):
        writer = FrameWriter(av, name, ImageSize(1, 3), tags={}, location="left", gray=False)
        rgb = np.array([[[-1, 0.5, 2]], [[0, 0.25, 1]], [[0, 1 / top, 0.75]]], np.float32)
        green, blue, red = planes_of(writer.frame(rgb))
        assert red.ravel().tolist() == [0, np.rint(top / 2), top]
        assert green.ravel().tolist() == [0, np.rint(top / 4), top]
        assert blue.ravel().tolist() == [0, 1, np.rint(top * 3 / 4)]


def test_a_palette_gives_its_colors(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    Image.fromarray(picture).quantize(60).save(tmp_path / "a.png")
    frame = first_frame(tmp_path / "a.png")
    assert frame.format.name == "pal8"
    expected = read_image(tmp_path / "a.png").transpose(2, 0, 1) / 255
    np.testing.assert_allclose(rgb_from_frame(frame), expected, atol=2**-24)
