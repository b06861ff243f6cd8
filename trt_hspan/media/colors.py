"""Colors that a file describes without an ICC profile, and the profile that says the same in files of other formats.

PNG: https://www.w3.org/TR/png-3/#11addnlcolinfo; numbers of primaries and transfer: ITU-T H.273, tables 2 and 3;
TIFF 6.0, section 20; profiles: ICC.1:2022.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

#: PNG's chunks about colors, and their lengths. sBIT is not among them: a network's samples use all bits.
PNG_COLOR_LENGTHS: Final = {b"cICP": 4, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32, b"mDCV": 24, b"cLLI": 8}
#: What a PNG says of its colors: chunks and their data, in the file's order.
PngColors = tuple[tuple[bytes, bytes], ...]

_D65, _C = (0.3127, 0.3290), (0.310, 0.316)
# White, red, green and blue, x and y of each.
_BT709: Final = (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060)
_PRIMARIES: Final = {
    1: _BT709,
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
# Parameters of ICC's curves: light = value ** g, or (a * value + b) ** g from d on and c * value below.
_BT709_CURVE: Final = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_SRGB_CURVE: Final = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_CURVES: Final[dict[int, tuple[float, ...]]] = {
    **dict.fromkeys((1, 6, 14, 15), _BT709_CURVE),
    4: (2.2,),
    5: (2.8,),
    7: (1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4, 0.0913),
    8: (1.0,),
    13: _SRGB_CURVE,
}
_PQ, _HLG = 16, 18
_TABLE_LENGTH: Final = 4096
_SRGB_GAMMA, _NEAR_SRGB = 45455, 500  # of gAMA, in steps of 1 / 100000
_TIFF_GRAY, _TIFF_RGB, _TIFF_YCBCR = 1, 2, 6  # of its tag PhotometricInterpretation
_D50: Final = (0.9642, 1.0, 0.8249)
# https://www.color.org/sRGB.pdf and ICC.1:2022, annex E.
_BRADFORD: Final = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
#: Levels of light for the codes from black to white, or the parameters of a curve.
Curve = tuple[float, ...] | npt.NDArray[np.float64]


def profile_of_png(colors: PngColors, *, gray: bool) -> bytes | None:
    """The profile that says what a PNG's chunks say, the one with most right first; None where that is sRGB.

    Raises ValueError: numbers without a profile, in cICP.
    """
    said = dict(colors)
    if code := said.get(b"cICP"):
        return _profile_of_cicp(code, gray=gray)
    if b"sRGB" in said or not said.keys() & {b"gAMA", b"cHRM"}:
        return None
    (gamma,) = struct.unpack(">L", said.get(b"gAMA", struct.pack(">L", _SRGB_GAMMA)))
    points = tuple(value / 100_000 for value in struct.unpack(">8L", said.get(b"cHRM", bytes(32))))
    is_srgb = abs(gamma - _SRGB_GAMMA) < _NEAR_SRGB
    primaries = points if b"cHRM" in said else _BT709
    if is_srgb and np.allclose(primaries, _BT709, atol=0.001):
        return None
    return icc_profile(primaries, [_SRGB_CURVE if is_srgb else (100_000 / gamma,)], gray=gray)


def _profile_of_cicp(code: bytes, *, gray: bool) -> bytes | None:
    primaries, transfer, matrix, is_full = code
    if (primaries, transfer, matrix, is_full) == (1, 13, 0, 1):
        return None
    if primaries not in _PRIMARIES or matrix != 0 or is_full != 1:
        raise ValueError
    curve: Curve | None = _CURVES.get(transfer)
    codes = np.linspace(0, 1, _TABLE_LENGTH)
    if transfer == _PQ:  # ITU-R BT.2100, table 4
        root = codes ** (32 / 2523)
        curve = (np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)) ** (16384 / 2610)
    elif transfer == _HLG:  # table 5
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        curve = np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - c) / a) + b) / 12)
    if curve is None:
        raise ValueError
    return icc_profile(_PRIMARIES[primaries], [curve], gray=gray, cicp=code)


def profile_of_tiff(
    tags: Mapping[int, Any], *, bits: int, colors: int | None
) -> tuple[bytes | None, tuple[str, ...]]:
    """The profile that says what a TIFF's tags say of its colors, None where that is sRGB; and what is not heeded."""
    lost, top = [], (1 << bits) - 1
    if colors not in (_TIFF_GRAY, _TIFF_RGB, _TIFF_YCBCR):
        return None, ()
    for tag, name, near, usual in (
        (529, "YCbCrCoefficients", 0.001, (0.299, 0.587, 0.114)),
        (532, "ReferenceBlackWhite", 1, (0, top) + (0 if colors == _TIFF_RGB else (top + 1) / 2, top) * 2),
    ):
        values = _numbers(tags, tag)
        if values and (len(values) != len(usual) or not np.allclose(values, usual, atol=near)):
            lost.append(f"its tag {name} is not heeded: colors are those of the usual values")
    functions, white, primaries = (_numbers(tags, tag) for tag in (301, 318, 319))
    points = (*(white or _BT709[:2]), *(primaries or _BT709[2:]))
    curves: list[Curve] = [_SRGB_CURVE]
    if len(functions) in (top + 1, 3 * (top + 1)):
        curves = list(np.reshape(functions, (-1, top + 1)) / 65535)
    elif len(points) == len(_BT709) and np.allclose(points, _BT709, atol=0.001):
        return None, tuple(lost)
    try:
        return icc_profile(points, curves, gray=colors == _TIFF_GRAY), tuple(lost)
    except ValueError:
        return None, (*lost, "its tags WhitePoint and PrimaryChromaticities are not those of colors")


def _numbers(tags: Mapping[int, Any], tag: int) -> tuple[float, ...]:
    """A tag's values; none of one that is missing, or has another type than its own."""
    try:
        return tuple(np.array(tags.get(tag, ()), np.float64).ravel().tolist())
    except (TypeError, ValueError):
        return ()


def icc_profile(
    chromaticities: Sequence[float], curves: Sequence[Curve], *, gray: bool, cicp: bytes | None = None
) -> bytes:
    """A display's profile.

    Args:
        chromaticities: x and y of white, red, green and blue.
        curves: one for all channels, or one for each.
        gray: for pictures without colors, of which only the white counts.
        cicp: four numbers of ITU-T H.273, for programs that know them.

    Raises ValueError: chromaticities of no colors.
    """
    with np.errstate(all="ignore"):
        points = np.array(chromaticities, np.float64).reshape(4, 2)
        columns = np.stack([points[:, 0], points[:, 1], 1 - points.sum(axis=1)]) / points[:, 1]
    white, primaries = columns[:, 0], columns[:, 1:]
    if not np.isfinite(columns).all() or abs(np.linalg.det(primaries)) < 1e-6 or white.min() <= 0:
        raise ValueError
    cones = _BRADFORD @ _D50 / (_BRADFORD @ white)
    adaptation = np.linalg.inv(_BRADFORD) @ np.diag(cones) @ _BRADFORD
    colorants = adaptation @ primaries * np.linalg.solve(primaries, white)
    tags = {
        b"desc": _text("described by the picture's file"),
        b"cprt": _text("public domain"),
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(_D50),
        b"chad": b"sf32\0\0\0\0" + _fixed(adaptation.ravel()),
    }
    if gray:
        tags[b"kTRC"] = _curve(curves[0])
    else:
        for index, name in enumerate((b"r", b"g", b"b")):
            tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + _fixed(colorants[:, index])
            tags[name + b"TRC"] = _curve(curves[index % len(curves)])
    if cicp is not None:
        tags[b"cicp"] = b"cicp\0\0\0\0" + cicp
    at, table, data = 128 + 4 + 12 * len(tags), struct.pack(">L", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">LL", at + len(data), len(content))
        data += content + b"\0" * (-len(content) % 4)
    header = struct.pack(">L4xL", at + len(data), 0x04400000)
    header += b"mntr" + (b"GRAY" if gray else b"RGB ") + b"XYZ " + struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
    header += b"acsp" + bytes(28) + _fixed(_D50)
    return header.ljust(128, b"\0") + table + data


def _fixed(values: Sequence[float] | npt.NDArray[np.float64]) -> bytes:
    limits = np.iinfo(np.int32)
    return np.clip(np.round(np.asarray(values) * 65536), limits.min, limits.max).astype(">i4").tobytes()


def _text(words: str) -> bytes:
    encoded = words.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">LL4sLL", 1, 12, b"enUS", len(encoded), 28) + encoded


def _curve(curve: Curve) -> bytes:
    if isinstance(curve, tuple):
        return b"para\0\0\0\0" + struct.pack(">HH", 0 if len(curve) == 1 else 3, 0) + _fixed(curve)
    levels = np.round(np.clip(curve, 0, 1) * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">L", len(levels)) + levels.tobytes()
