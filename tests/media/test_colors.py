"""What files say of their colors: each row of the table in docs/tiling.md has a case here."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin
from support.runner_doubles import NearestRunner

from trt_hspan.media.colors import icc_profile, profile_of_png, profile_of_tiff
from trt_hspan.media.metadata import png_chunk, png_chunks
from trt_hspan.media.pictures import read_picture
from trt_hspan.upscaling import pictures
from trt_hspan.upscaling.pictures import upscale_picture_file
from trt_hspan.upscaling.upscaler import Upscaler

DOCUMENT = Path(__file__).parents[2] / "docs" / "tiling.md"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
BT709 = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
P3 = (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
LINEAR = struct.pack(">L", 100_000)
# One picture of all levels.
LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)


def png(*chunks: tuple[bytes, bytes], **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(LEVELS).convert("RGB").save(stream, "PNG", **options)
    data = stream.getvalue()
    return data[:33] + b"".join(png_chunk(*chunk) for chunk in chunks) + data[33:]


def saved(name: str, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(LEVELS).convert(mode).save(stream, name, **options)
    return stream.getvalue()


def with_exif(name: str, tag: int, value: object) -> bytes:
    block = Image.Exif()
    if tag > 0x9000:
        block.get_ifd(0x8769)[tag] = value
        block[0x8769] = 0
    else:
        block[tag] = value
    return saved(name, exif=block)


def chunks_of(path: Path) -> dict[bytes, bytes]:
    with path.open("rb") as stream:
        return {kind: stream.read(length) for kind, length in png_chunks(stream)}


def exif_of(path: Path, tag: int) -> object:
    with Image.open(path) as image:
        return (image.getexif().get_ifd(0x8769) if tag > 0x9000 else image.getexif()).get(tag)


def upscaled(data: bytes, folder: Path, suffix: str) -> tuple[Path, list[str]]:
    """The result in a format, and what was said."""
    (folder / "source").write_bytes(data)
    notes: list[str] = []
    with NearestRunner(scale=1) as runner:
        upscaler = Upscaler(runner, on_shrink=notes.append)
        upscale_picture_file(upscaler, folder / "source", folder / f"result{suffix}")
    return folder / f"result{suffix}", notes


def light_of(path: Path) -> np.ndarray:
    """(H, W, 3) sRGB as a program shows it that heeds profiles."""
    with Image.open(path) as image:
        profile = image.info.get("icc_profile")
        assert profile, "has no profile"
        shown = ImageCms.profileToProfile(
            image.convert("RGB"),
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )
        return np.asarray(shown).astype(int)


def srgb_of_linear(levels: np.ndarray) -> np.ndarray:
    light = levels / 255
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


CHRM = struct.pack(">8L", *(round(100_000 * value) for value in P3))
MDCV, CLLI, CICP = bytes(range(24)), bytes(range(8)), bytes([12, 13, 0, 1])
INKS = saved("JPEG", "CMYK")
TABLE = tuple(range(0, 65536, 257))
RATIONALS = tuple(Fraction(value).limit_denominator(10_000) for value in P3)
# Format, what it says -> a file that says so; what results of the same and of another format say; what the screen says.
CASES: dict[tuple[str, str], tuple[bytes, Callable[[Path], object], Callable[[Path], object], str]] = {
    ("PNG", "cICP"): (
        png((b"cICP", CICP)),
        lambda path: chunks_of(path)[b"cICP"] == CICP,
        lambda path: CICP in read_picture(path).metadata.icc_profile,
        "",
    ),
    ("PNG", "iCCP"): (
        png(icc_profile=SRGB),
        *[lambda path: read_picture(path).metadata.icc_profile == SRGB] * 2,
        "",
    ),
    ("PNG", "sRGB"): (
        png((b"sRGB", b"\1")),
        lambda path: chunks_of(path)[b"sRGB"] == b"\1",
        lambda path: read_picture(path).metadata.icc_profile is None,
        "",
    ),
    ("PNG", "gAMA"): (
        png((b"gAMA", LINEAR)),
        lambda path: chunks_of(path)[b"gAMA"] == LINEAR,
        lambda path: np.abs(light_of(path)[..., 0] - srgb_of_linear(LEVELS)).max() < 1,
        "",
    ),
    ("PNG", "cHRM"): (
        png((b"cHRM", CHRM)),
        lambda path: chunks_of(path)[b"cHRM"] == CHRM,
        lambda path: np.abs(light_of(path)[..., 0] - LEVELS).max() <= 1,
        "",
    ),
    ("PNG", "mDCV"): (
        png((b"mDCV", MDCV)),
        lambda path: chunks_of(path)[b"mDCV"] == MDCV,
        lambda path: read_picture(path).metadata.icc_profile is None,
        "its HDR metadata (mastering display, light level) is lost",
    ),
    ("PNG", "cLLI"): (
        png((b"cLLI", CLLI)),
        lambda path: chunks_of(path)[b"cLLI"] == CLLI,
        lambda path: read_picture(path).metadata.icc_profile is None,
        "its HDR metadata (mastering display, light level) is lost",
    ),
    ("PNG", "sBIT"): (
        png((b"sBIT", b"\5\6\5")),
        lambda path: b"sBIT" not in chunks_of(path),
        lambda path: b"sBIT" not in path.read_bytes(),
        "",
    ),
    ("JPEG", "Adobe marker"): (
        INKS,
        *[lambda path: np.abs(read_picture(path).pixels[..., 0].astype(int) - LEVELS).max() <= 3] * 2,
        "",
    ),
    ("TIFF", "WhitePoint"): (
        saved("TIFF", tiffinfo={318: (Fraction(31, 100), Fraction(316, 1000)), 301: TABLE}),
        *[lambda path: np.abs(light_of(path)[..., 0] - srgb_of_linear(LEVELS)).max() < 1] * 2,
        "",
    ),
    ("TIFF", "PrimaryChromaticities"): (
        saved("TIFF", tiffinfo={319: RATIONALS[2:]}),
        *[lambda path: np.abs(light_of(path)[..., 0] - LEVELS).max() <= 1] * 2,
        "",
    ),
    ("TIFF", "TransferFunction"): (
        saved("TIFF", tiffinfo={301: TABLE * 3}),
        *[lambda path: np.abs(light_of(path)[..., 0] - srgb_of_linear(LEVELS)).max() < 1] * 2,
        "",
    ),
    ("TIFF", "YCbCrCoefficients"): (
        saved("TIFF", "YCbCr", tiffinfo={529: (Fraction(2, 10), Fraction(7, 10), Fraction(1, 10))}),
        *[lambda path: read_picture(path).metadata.icc_profile is None] * 2,
        "its tag YCbCrCoefficients is not heeded",
    ),
    ("TIFF", "ReferenceBlackWhite"): (
        saved("TIFF", tiffinfo={532: tuple(Fraction(value) for value in (16, 235) * 3)}),
        *[lambda path: read_picture(path).metadata.icc_profile is None] * 2,
        "its tag ReferenceBlackWhite is not heeded",
    ),
}
for format_name, tags in (
    (
        "JPEG",
        {
            "EXIF ColorSpace": (0xA001, 0xFFFF),
            "EXIF Gamma": (0xA500, 2.2),
            "EXIF WhitePoint": (318, (0.31, 0.33)),
        },
    ),
    ("WebP", {"EXIF": (0xA001, 0xFFFF)}),
):
    for name, (tag, value) in tags.items():
        kept = lambda path, tag=tag, value=value: exif_of(path, tag) == pytest.approx(value)  # noqa: E731
        CASES[format_name, name] = (with_exif(format_name.upper(), tag, value), kept, kept, "")
for format_name, name in (("JPEG", "ICC profile"), ("TIFF", "ICC profile"), ("WebP", "ICCP")):
    kept = lambda path: read_picture(path).metadata.icc_profile == SRGB  # noqa: E731
    CASES[format_name, name] = (saved(format_name.upper(), icc_profile=SRGB), kept, kept, "")
SUFFIXES = {
    "PNG": (".png", ".tif"),
    "JPEG": (".jpg", ".png"),
    "TIFF": (".tif", ".png"),
    "WebP": (".webp", ".tif"),
}


def test_the_table_of_the_document_has_these_cases() -> None:
    rows = re.findall(
        r"^\| (PNG|JPEG|TIFF|WebP) \| ([^|]+) \| [^|]+ \| [^|]+ \|$", DOCUMENT.read_text("utf-8"), re.M
    )
    assert {(kind, says.strip()) for kind, says in rows} == set(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case).replace(" ", "-"))
def test_colors_stay_or_are_said_to_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[str, str]
) -> None:
    data, of_same, of_other, said = CASES[case]
    for suffix, holds in zip(SUFFIXES[case[0]], (of_same, of_other), strict=True):
        for most in (1 << 20, 1):  # in memory, and streamed where the format can
            if most == 1 and (case[0] == "WebP" or suffix == ".webp" or "YCbCr" in case[1]):
                continue
            monkeypatch.setattr(pictures, "STREAM_PIXELS", most)
            result, notes = upscaled(data, tmp_path, suffix)
            assert holds(result), (suffix, most)
            is_kept = case[0] == "PNG" and suffix == ".png"
            assert len(notes) == (1 if said and not is_kept else 0)
            assert all(f"source: {said}" in note for note in notes)


def test_a_bmp_has_no_profile_and_that_is_said(tmp_path: Path) -> None:
    assert upscaled(png((b"gAMA", LINEAR)), tmp_path, ".bmp")[1] == [
        f"{tmp_path / 'source'}: its color profile is lost: BMP has none"
    ]
    (line,) = upscaled(png((b"cICP", bytes([9, 99, 0, 1]))), tmp_path, ".jpg")[1]
    assert line.endswith("its colors' numbers (cICP 9-99-0-1) are lost: no profile says them")
    (line,) = upscaled(png((b"cHRM", bytes(32))), tmp_path, ".jpg")[1]
    assert line.endswith("its colors' numbers (cHRM) are lost: no profile says them")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize(
    ("profile", "mode", "kind"),
    [(b"no profile" * 20, "RGB", "RGB"), (SRGB[:-1], "RGB", "RGB"), (SRGB, "L", "gray")],
)
def test_a_profile_that_says_nothing_of_the_pixels_is_said_to_be_left_out(
    tmp_path: Path, suffix: str, profile: bytes, mode: str, kind: str
) -> None:
    stream = io.BytesIO()
    Image.new(mode, (8, 6)).save(stream, "PNG", icc_profile=profile)
    result, notes = upscaled(stream.getvalue(), tmp_path, suffix)
    assert read_picture(result).metadata.icc_profile is None
    line = f"its color profile is left out: damaged, or not one of {kind} pixels"
    assert notes == [f"{tmp_path / 'source'}: {line}"]


@pytest.mark.parametrize(("kind", "value"), [(3, 7), (2, "text"), (5, 1.5)])
def test_a_profile_of_a_type_not_its_own_is_left_out(tmp_path: Path, kind: int, value: object) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[34675], stream = kind, io.BytesIO()
    tags[34675] = value
    Image.new("RGB", (8, 6)).save(stream, "TIFF", tiffinfo=tags)
    (line,) = upscaled(stream.getvalue(), tmp_path, ".tif")[1]
    assert "its color profile is left out" in line


def test_a_profile_that_cannot_be_used_does_not_hide_what_else_is_said(tmp_path: Path) -> None:
    broken = (b"iCCP", b"a\0\0is not compressed")
    result, (line,) = upscaled(png(broken, (b"gAMA", LINEAR)), tmp_path, ".jpg")
    assert read_picture(result).metadata.icc_profile == profile_of_png(((b"gAMA", LINEAR),), gray=False)
    assert "its color profile is left out" in line


def test_profiles_say_what_lcms_knows_of_the_same_colors() -> None:
    random = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile(BT709, [curve], gray=False)))
    shown = ImageCms.profileToProfile(
        Image.fromarray(random),
        profile,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    np.testing.assert_array_equal(np.asarray(shown), random)


def tag_of(profile: bytes, name: bytes) -> bytes:
    """A tag's data without its type and what is reserved."""
    for at in range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12):
        start, length = struct.unpack(">LL", profile[at + 4 : at + 12])
        if profile[at : at + 4] == name:
            return profile[start + 8 : start + length]
    raise AssertionError(name)


def described(primaries: int, transfer: int) -> bytes:
    profile = profile_of_png(((b"cICP", bytes([primaries, transfer, 0, 1])),), gray=False)
    assert profile is not None
    return profile


@pytest.mark.parametrize(
    ("code", "points"),  # of white, red, green and blue, in thousandths but for D65: H.273, table 2
    [
        (1, (312.7, 329, 640, 330, 300, 600, 150, 60)),
        (4, (310, 316, 670, 330, 210, 710, 140, 80)),
        (5, (312.7, 329, 640, 330, 290, 600, 150, 60)),
        (6, (312.7, 329, 630, 340, 310, 595, 155, 70)),
        (7, (312.7, 329, 630, 340, 310, 595, 155, 70)),
        (9, (312.7, 329, 708, 292, 170, 797, 131, 46)),
        (11, (314, 351, 680, 320, 265, 690, 150, 60)),
        (12, (312.7, 329, 680, 320, 265, 690, 150, 60)),
        (22, (312.7, 329, 630, 340, 295, 605, 155, 77)),
    ],
)
def test_primaries_by_their_number_are_those_of_the_table(code: int, points: tuple[float, ...]) -> None:
    profile = described(code, 8)
    adaptation = np.frombuffer(tag_of(profile, b"chad"), ">i4").reshape(3, 3) / 65536
    colorants = [np.frombuffer(tag_of(profile, name + b"XYZ"), ">i4") / 65536 for name in (b"r", b"g", b"b")]
    lights = np.linalg.solve(adaptation, np.array([sum(colorants), *colorants]).T)
    found = (lights / lights.sum(axis=0))[:2].T.ravel()
    # A colorant has an error of half of 1 / 65536 in each number, and blue's sum is at least a twentieth.
    np.testing.assert_allclose(found, np.array(points) / 1000, atol=1e-3 / 2)


def pq(code: float) -> float:
    """BT.2100, table 4, with the numbers as it gives them."""
    root = code ** (1 / 78.84375)
    return (max(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)


def hlg(code: float) -> float:
    """BT.2100, table 5."""
    a = 0.17883277
    b = 1 - 4 * a
    return code**2 / 3 if code <= 0.5 else (np.exp((code - (0.5 - a * np.log(4 * a))) / a) + b) / 12


def segmented(gamma: float, offset: float, slope: float, start: float) -> Callable[[float], float]:
    """H.273, table 3: code = (1 + offset) * light ** gamma - offset from start on, slope * light below."""
    return lambda code: (
        code / slope if code < slope * start else ((code + offset) / (1 + offset)) ** (1 / gamma)
    )


@pytest.mark.parametrize(
    ("transfer", "light"),
    [
        *((code, segmented(0.45, 0.099, 4.5, 0.018)) for code in (1, 6, 14, 15)),
        (4, lambda code: code**2.2),
        (5, lambda code: code**2.8),
        (7, segmented(0.45, 0.1115, 4, 0.0228)),
        (8, lambda code: code),
        (13, segmented(1 / 2.4, 0.055, 12.92, 0.0031308)),
        (16, pq),
        (18, hlg),
    ],
)
def test_transfer_by_its_number_is_that_of_the_table(transfer: int, light: Callable[[float], float]) -> None:
    profile = described(9, transfer)
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        data = tag_of(profile, name)
        if transfer in (16, 18):
            table = np.frombuffer(data[4:], ">u2")
            assert len(table) == int.from_bytes(data[:4], "big") == 4096
            expected = [light(code) for code in np.linspace(0, 1, 4096)]
            np.testing.assert_allclose(table / 65535, expected, atol=0.5001 / 65535)
            continue
        g, *others = np.frombuffer(data[4:], ">i4") / 65536
        a, b, c, d = others or (1, 0, 0, 0)
        for code in (0, 0.02, 0.04, 0.05, 0.08, 0.1, 0.5, 1):
            # Each parameter is rounded to 1 / 65536, and enters with at most a slope of 3.
            assert (c * code if code < d else (a * code + b) ** g) == pytest.approx(light(code), abs=1e-4)


@pytest.mark.parametrize("code", [(3, 13, 0, 1), (9, 3, 0, 1), (9, 13, 1, 1), (9, 13, 0, 0)])
def test_numbers_that_no_profile_says_are_refused(code: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        profile_of_png(((b"cICP", bytes(code)),), gray=False)


@pytest.mark.parametrize(
    "points",
    [
        (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.47, 0.465),  # all colors on one line
        (0.3127, 0.0, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06),
        (0.7, 0.4, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06),  # a white beyond all colors
    ],
)
def test_points_that_are_those_of_no_colors_are_refused(points: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        icc_profile(points, [(2.2,)], gray=False)


def test_what_describes_srgb_needs_no_profile() -> None:
    srgb = struct.pack(">8L", *(round(100_000 * value) for value in BT709))
    gamma = struct.pack(">L", 45455)
    for chunks in (
        {},
        {b"cICP": bytes([1, 13, 0, 1])},
        {b"gAMA": gamma},
        {b"gAMA": struct.pack(">L", 45_954), b"cHRM": srgb},
        {b"sRGB": b"\0", b"gAMA": LINEAR, b"cHRM": CHRM},
    ):
        assert profile_of_png(tuple(chunks.items()), gray=False) is None
    for chunks in ({b"gAMA": struct.pack(">L", 45_955)}, {b"gAMA": gamma, b"cHRM": CHRM}, {b"cHRM": CHRM}):
        assert profile_of_png(tuple(chunks.items()), gray=False) is not None


@pytest.mark.parametrize(
    "chunk", [(b"gAMA", bytes(4)), (b"gAMA", b"\1"), (b"cHRM", bytes(32)), (b"sRGB", b"")]
)
def test_numbers_without_a_meaning_are_left_out(tmp_path: Path, chunk: tuple[bytes, bytes]) -> None:
    result, _ = upscaled(png(chunk), tmp_path, ".tif")
    assert read_picture(result).metadata.icc_profile is None


@pytest.mark.parametrize("tags", [{318: (1.0,)}, {319: "red"}, {529: 3, 532: "x"}, {301: (1, 2)}])
def test_tags_of_another_length_or_type_are_left_out(tags: dict[int, object]) -> None:
    assert profile_of_tiff(tags, bits=8, colors=2)[0] is None


@pytest.mark.filterwarnings("error")
def test_a_gamma_beyond_what_profiles_can_say_is_the_largest_of_theirs() -> None:
    profile = profile_of_png(((b"gAMA", struct.pack(">L", 1)),), gray=True)
    assert b"para" + bytes(8) + struct.pack(">l", (1 << 31) - 1) in profile


@pytest.mark.parametrize("gray", [True, False])
def test_a_profile_is_one_of_a_display_by_the_current_standard(gray: bool) -> None:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile(P3, [(2.2,)], gray=gray))).profile
    assert (profile.version, profile.device_class, profile.connection_space) == (4.4, "mntr", "XYZ ")
    assert profile.xcolor_space == ("GRAY" if gray else "RGB ")
    assert str(profile.creation_date) == "2024-01-01 00:00:00"
    assert (profile.profile_description, profile.copyright) == (
        "described by the picture's file",
        "public domain",
    )
    (light, _) = profile.media_white_point
    np.testing.assert_allclose(light, (0.9642, 1, 0.8249), atol=1 / 65536)  # D50


def test_a_profile_has_its_tags_at_multiples_of_four_and_its_length_in_front() -> None:
    profile = icc_profile(P3, [np.linspace(0, 1, 3)], gray=True, cicp=b"\1\2\3\4")
    assert int.from_bytes(profile[:4], "big") == len(profile)
    places = [int.from_bytes(profile[at + 4 : at + 8], "big") for at in range(132, 132 + 6 * 12, 12)]
    assert places[0] == 132 + 6 * 12
    assert places == sorted(places)
    assert all(place % 4 == 0 for place in places)
    assert tag_of(profile, b"cicp") == b"\1\2\3\4"
    assert np.frombuffer(tag_of(profile, b"kTRC")[4:], ">u2").tolist() == [0, 32768, 65535]


@pytest.mark.parametrize(
    ("bits", "colors", "levels"),
    [
        (8, 2, (0, 255) * 3),
        (16, 2, (0, 65535) * 3),
        (8, 6, (0, 255, 128, 255, 128, 255)),
        (8, 1, (0, 255, 128, 255, 128, 255)),
    ],
)
def test_black_and_white_within_a_level_of_the_usual_ones_are_those(
    bits: int, colors: int, levels: tuple[int, ...]
) -> None:
    for change, is_lost in ((1, False), (2, True)):
        tags = {532: (levels[0] + change, *levels[1:])}
        _, lost = profile_of_tiff(tags, bits=bits, colors=colors)
        assert len(lost) == is_lost
    assert profile_of_tiff({532: levels[:2]}, bits=bits, colors=colors)[1] != ()


@pytest.mark.parametrize("colors", [0, 3, 4, 5, 8, None])
def test_tags_of_pixels_that_are_neither_gray_nor_rgb_say_nothing(colors: int | None) -> None:
    assert profile_of_tiff({301: TABLE, 532: (1,)}, bits=8, colors=colors) == (None, ())


@pytest.mark.parametrize("count", [1, 3])
def test_a_table_of_a_tiff_is_the_curve_of_its_profile(count: int) -> None:
    tables = [tuple(65535 - level for level in TABLE), TABLE, (9,) * 256][:count]
    profile, lost = profile_of_tiff({301: tuple(np.ravel(tables))}, bits=8, colors=2)
    assert profile is not None
    assert lost == ()
    for name, table in zip((b"rTRC", b"gTRC", b"bTRC"), tables * (3 // count), strict=True):
        assert np.frombuffer(tag_of(profile, name)[4:], ">u2").tolist() == list(table)


def test_points_of_a_tiff_that_are_those_of_no_colors_are_said() -> None:
    said = profile_of_tiff({319: (0.64, 0.33, 0.64, 0.33, 0.15, 0.06)}, bits=8, colors=2)
    assert said == (None, ("its tags WhitePoint and PrimaryChromaticities are not those of colors",))
    assert profile_of_tiff({319: BT709[2:]}, bits=8, colors=2) == (None, ())


def test_a_gamma_near_that_of_srgb_has_its_curve() -> None:
    near, far = (
        profile_of_png(((b"gAMA", struct.pack(">L", gamma)), (b"cHRM", CHRM)), gray=False)
        for gamma in (45_954, 45_956)
    )
    assert near is not None
    assert far is not None
    assert len(tag_of(near, b"rTRC")) == 4 + 4 * 5
    (exponent,) = struct.unpack(">l", tag_of(far, b"rTRC")[4:])
    assert exponent / 65536 == pytest.approx(100_000 / 45_956, abs=1 / 65536)
    assert tag_of(far, b"rTRC")[:4] == bytes(4)
