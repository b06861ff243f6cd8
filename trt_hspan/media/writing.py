"""Picture files written, whole or not at all: from memory, or strip by strip.

Where pyvips is installed, libvips encodes PNG, JPEG and TIFF: a PNG takes it a fourth of Pillow's time, and it keeps
some 750 rows of what it writes. Pillow encodes the rest, and always writes what a file says beside its pixels, so that
files of every size and depth say it in the same way.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import atomic_path, write_bytes
from trt_hspan.media.colors import profile_of_png
from trt_hspan.media.formats import DAMAGE, WRITE_FORMATS, require_writable_suffix
from trt_hspan.media.metadata import (
    JPEG_DESCRIPTIONS,
    PNG_SIGNATURE,
    PROFILE_TAG,
    RESOLUTION_UNIT_TAG,
    X_RESOLUTION_TAG,
    XMP_KEY,
    XMP_TAG,
    Y_RESOLUTION_TAG,
    Metadata,
    descriptive_tags,
    fits_profile,
    jpeg_segments,
    png_chunk,
    png_chunks,
)
from trt_hspan.media.pictures import Picture
from trt_hspan.media.pixels import PixelFormat, eight_bit, on_white
from trt_hspan.media.vips import has_vips, interpretation, vips
from trt_hspan.sizes import ImageSize

_Answer = TypeVar("_Answer")

STREAMED_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
# Of rows that go to the encoder at a time, at least one, and of a strip of a TIFF, at least 16.
_PIECE_BYTES: Final = 1 << 20
# A classic TIFF file ends at 4 GiB; compression may make noise a little larger.
_CLASSIC_BYTES: Final = (4 << 30) - (64 << 20)
# Some 4 % larger than zlib's own level, 6, with the filter chosen row by row, in half of its time.
_PNG_OPTIONS: Final = {"compression": 4, "filter": "paeth"}
_NO_METADATA: Final = Metadata()
_PNG_HEADER_END: Final = len(PNG_SIGNATURE) + 25
_PNG_COLORS: Final = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> color type


@dataclass(frozen=True, kw_only=True)
class _Encoding:
    """Pillow's name of the format, what the file is to say, the quality of JPEG and WebP, what an error is about."""

    name: str
    metadata: Metadata
    quality: int | None
    where: object


def write_picture(
    path: str | os.PathLike[str], picture: Picture | npt.NDArray[Any], *, quality: int | None = None
) -> None:
    """Writes a picture, whole or not at all; the suffix says the format. Raises: as `encode_image`.

    Example:
        >>> import tempfile
        >>> from trt_hspan.media.pictures import read_picture
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_picture(f"{folder}/gray.png", np.full((4, 6, 1), 128, np.uint8))
        ...     read_picture(f"{folder}/gray.png").pixels.shape
        (4, 6, 1)
    """
    target = Path(path)
    require_writable_suffix(target)
    data = encode_image(picture, target.suffix, quality=quality, where=target)
    write_bytes(target, data)


def encode_image(
    picture: Picture | npt.NDArray[Any],
    suffix: str = ".png",
    *,
    quality: int | None = None,
    where: object = "picture",
) -> bytes:
    """The bytes of a picture file.

    What a format cannot hold is brought to what it can: JPEG and BMP have no alpha (laid on white), JPEG, WebP and BMP
    have 8 bits, WebP knows gray as RGB only.

    Args:
        suffix: one of `WRITE_FORMATS`.
        quality: of JPEG, 1 to 100, 95 when None; makes WebP lossy, which is lossless when None.

    Raises:
        UsageError: an unknown suffix, or a quality outside 1 to 100.
        HspanError: not pixels, the format cannot hold a picture this large, or 16-bit color without pyvips.
    """
    whole = picture if isinstance(picture, Picture) else Picture(pixels=picture)
    if suffix.lower() not in WRITE_FORMATS:
        raise UsageError(
            where, f"cannot tell the format from {suffix!r}", f"end it in {', '.join(WRITE_FORMATS)}"
        )
    if quality is not None and not 1 <= quality <= 100:
        raise UsageError("--quality", f"got {quality}, expected 1 to 100")
    PixelFormat.of(whole.pixels, where=where)
    name = WRITE_FORMATS[suffix.lower()][0]
    pixels = np.ascontiguousarray(_for_format(whole.pixels, name))
    encoding = _Encoding(name=name, metadata=whole.metadata, quality=quality, where=where)
    file = io.BytesIO()
    is_deep_color = pixels.dtype == np.uint16 and pixels.shape[2] > 1  # which Pillow does not write
    if name in ("PNG", "JPEG", "TIFF") and (is_deep_color or has_vips()):
        height, width, channels = pixels.shape
        is_deep = pixels.dtype == np.uint16
        image = vips(where).Image.new_from_memory(
            pixels.data, width, height, channels, "ushort" if is_deep else "uchar"
        )
        image = image.copy(interpretation=interpretation(channels, deep=is_deep))
        _encode(file, image, encoding)
    else:
        _encode_with_pillow(file, pixels, encoding)
    return file.getvalue()


def write_strips(
    path: Path,
    size: ImageSize,
    strips: Iterator[npt.NDArray[Any]],
    *,
    metadata: Metadata = _NO_METADATA,
    quality: int | None = None,
) -> None:
    """Writes a picture that comes in strips of full width, whole or not at all.

    Args:
        path: its suffix is one of `STREAMED_SUFFIXES` and says the format.
        strips: (rows, W, C), together as high as the picture.

    Raises:
        HspanError: the file cannot be written, or its format cannot hold such a picture; and what `strips` raises.
    """
    name = WRITE_FORMATS[path.suffix.lower()][0]
    encoding = _Encoding(name=name, metadata=metadata, quality=quality, where=path)
    with atomic_path(path) as temporary, temporary.open("w+b") as file:
        read_end, write_end = os.pipe()
        failures: list[BaseException] = []
        thread = threading.Thread(
            target=_encode_from_pipe,
            args=(file, read_end, encoding, failures),
            name="picture encoder",
            daemon=True,
        )
        thread.start()
        try:
            with open(write_end, "wb") as pipe:  # noqa: PTH123  # a descriptor, not a path
                _write_stored_png(pipe, name, size, takewhile(lambda _: not failures, strips))
        finally:
            thread.join()
        if failures:
            raise failures[0]


def color_losses(metadata: Metadata, path: str | os.PathLike[str], *, gray: bool) -> list[str]:
    """What a file says of its colors and what a file of this name, with or without colors, will not; one line each."""
    name, lost = WRITE_FORMATS[Path(path).suffix.lower()][0], list(metadata.lost)
    kinds, gray = dict(metadata.png_colors), gray and name != "WEBP"
    if metadata.icc_profile is not None and not fits_profile(metadata.icc_profile, gray=gray):
        lost.append(
            f"its color profile is left out: damaged, or not one of {'gray' if gray else 'RGB'} pixels"
        )
    if name == "PNG":
        return lost
    profile = _profile(metadata, gray=gray)
    if name == "BMP" and profile is not None:
        lost.append("its color profile is lost: BMP has none")
    try:
        profile_of_png(metadata.png_colors if profile is None else (), gray=gray)
    except ValueError:
        numbers = f"cICP {'-'.join(map(str, kinds[b'cICP']))}" if b"cICP" in kinds else "cHRM"
        lost.append(f"its colors' numbers ({numbers}) are lost: no profile says them")
    if kinds.keys() & {b"mDCV", b"cLLI"}:
        lost.append(f"its HDR metadata (mastering display, light level) is lost: {name} has none")
    return lost


def _profile(metadata: Metadata, *, gray: bool) -> bytes | None:
    """The profile of files that are no PNG; PNG's cICP has more right than a profile, and that than other chunks."""
    profile = metadata.icc_profile
    if profile is not None and not fits_profile(profile, gray=gray):
        profile = None
    if profile is None or b"cICP" in dict(metadata.png_colors):
        with suppress(ValueError):
            profile = profile_of_png(metadata.png_colors, gray=gray)
    return profile


def _encode_from_pipe(
    file: BinaryIO, read_end: int, encoding: _Encoding, failures: list[BaseException]
) -> None:
    """The encoder's thread: libvips pulls rows out of the pipe."""
    try:
        library = vips(encoding.where)
        source = library.Source.new_from_descriptor(read_end)
        image = library.Image.pngload_source(source, access="sequential", unlimited=True)
        _encode(file, image, encoding)
    except BaseException as error:  # noqa: BLE001  # raised by the thread that started this one
        failures.append(error)
    finally:
        while os.read(read_end, 1 << 20):  # a writer that waits for room in the pipe must not wait for ever
            pass
        os.close(read_end)


def _write_stored_png(pipe: BinaryIO, name: str, size: ImageSize, strips: Iterator[npt.NDArray[Any]]) -> None:
    """Writes rows as an uncompressed PNG, which libvips reads from a pipe with every number of channels."""
    packer = zlib.compressobj(0)
    is_begun = False
    for strip in strips:
        rows = _for_format(strip, name)
        if not is_begun:
            color, depth = _PNG_COLORS[rows.shape[2]], 8 * rows.itemsize
            header = struct.pack(">IIBBBBB", size.width, size.height, depth, color, 0, 0, 0)
            pipe.write(PNG_SIGNATURE + png_chunk(b"IHDR", header))
            is_begun = True
        row_bytes = rows.itemsize * rows.shape[1] * rows.shape[2]
        for piece in np.array_split(rows, -(-rows.nbytes // max(_PIECE_BYTES, row_bytes))):
            filtered = np.zeros((len(piece), 1 + row_bytes), np.uint8)  # each row begins with 0: no filter
            ordered = np.ascontiguousarray(piece, piece.dtype.newbyteorder(">"))
            filtered[:, 1:] = ordered.view(np.uint8).reshape(len(piece), -1)
            pipe.write(png_chunk(b"IDAT", packer.compress(filtered.data)))
    pipe.write(png_chunk(b"IDAT", packer.flush()) + png_chunk(b"IEND", b""))


def _encode(file: BinaryIO, image: Any, encoding: _Encoding) -> None:
    """Writes a picture of libvips as PNG, JPEG or TIFF."""
    name, library = encoding.name, vips(encoding.where)
    if name == "TIFF":
        head = b""
    else:
        small = io.BytesIO()
        pixel = np.zeros((1, 1, image.bands), np.uint8)
        _encode_with_pillow(small, pixel, encoding)
        head = _head(small.getvalue(), name)
    output = _Output(file, name, head, library)
    try:
        if name == "PNG":
            image.pngsave_target(output.target, keep="none", **_PNG_OPTIONS)
        elif name == "JPEG":
            image.jpegsave_target(output.target, Q=encoding.quality or 95, subsample_mode="off", keep="none")
        else:
            row_bytes = image.width * image.bands * (2 if image.format == "ushort" else 1)
            image.tiffsave_target(
                output.target,
                compression="deflate",
                predictor="horizontal",
                # libvips garbles odd heights, and takes 32768 at most.
                tile_height=min(max(16, _PIECE_BYTES // row_bytes // 16 * 16), 1 << 15),
                bigtiff=image.height * row_bytes > _CLASSIC_BYTES,
                keep="none",
            )
    except library.Error as error:
        if output.failure is not None:
            raise output.failure from error
        reason = " ".join(error.detail.split())[:200]
        raise HspanError(
            encoding.where,
            f"cannot write {image.height}x{image.width} pixels as {name}: {reason}",
            "choose .png or .tif",
        ) from error
    if name == "TIFF":
        _describe_tiff(file, encoding.metadata, gray=image.bands <= 2)


class _Output:
    """Where libvips writes a file, whose head, which describes the picture, becomes another.

    Attributes:
        failure: what the file raised; libvips gets a number only.
    """

    def __init__(self, file: BinaryIO, name: str, head: bytes, library: Any) -> None:
        self._file, self._name, self._head, self._is_begun = file, name, head, name == "TIFF"
        self.failure: BaseException | None = None
        self.target = library.TargetCustom()
        self.target.on_write(lambda data: self._caught(lambda: self._write(bytes(data)), -1))
        if name == "TIFF":  # which is not written in order
            self.target.on_read(lambda size: self._caught(lambda: file.read(size), None))
            self.target.on_seek(lambda offset, whence: self._caught(lambda: file.seek(offset, whence), -1))

    def _write(self, block: bytes) -> int:
        count = len(block)
        if not self._is_begun:
            self._is_begun = True
            block = _with_head(block, self._head, self._name)
        self._file.write(block)
        return count

    def _caught(self, call: Callable[[], _Answer], failed: _Answer) -> _Answer:
        try:
            return call()
        except BaseException as error:  # noqa: BLE001
            self.failure = error
            return failed


def _head(file: bytes, name: str) -> bytes:
    """What describes the picture in a PNG or JPEG: chunks before the pixels; start, application segments, comments."""
    if name == "JPEG":
        described = takewhile(lambda segment: segment[0] in JPEG_DESCRIPTIONS, jpeg_segments(file))
        return file[: max((at.stop for _, at in described), default=2)]
    stream = io.BytesIO(file)
    return b"".join(
        png_chunk(kind, stream.read(length))
        for kind, length in png_chunks(stream)
        if kind not in (b"IHDR", b"IDAT", b"IEND")
    )


def _with_head(block: bytes, head: bytes, name: str) -> bytes:
    if name == "JPEG":
        return head + block[len(_head(block, name)) :]
    return block[:_PNG_HEADER_END] + head + block[block.index(b"IDAT", _PNG_HEADER_END) - 4 :]


def _for_format(pixels: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Pixels as a format can hold them."""
    if name not in ("PNG", "TIFF"):
        pixels = eight_bit(pixels)
    if name in ("JPEG", "BMP") and pixels.shape[2] in (2, 4):
        return on_white(pixels)
    if pixels.shape[2] == 2 and name == "WEBP":
        return pixels[..., [0, 0, 0, 1]]
    return pixels


def _encode_with_pillow(file: BinaryIO, pixels: npt.NDArray[np.uint8], encoding: _Encoding) -> None:
    from PIL import Image

    name, where = encoding.name, encoding.where
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    gray = pixels.shape[2] <= 2 and name != "WEBP"
    saved = io.BytesIO()
    try:
        image.save(saved, format=name, **_pillow_options(encoding, gray=gray))
    except (OSError, *DAMAGE) as error:
        height, width = pixels.shape[:2]
        if (height, width) == (1, 1):
            raise HspanError(
                where,
                f"{name} cannot store so much color profile, EXIF or XMP ({error})",
                "choose .png or .tif",
            ) from error
        raise HspanError(
            where, f"{name} cannot hold {height}x{width} pixels ({error})", "write .png instead"
        ) from error
    data = saved.getvalue()
    if name == "PNG":
        kept = dict(encoding.metadata.png_colors)
        if b"iCCP" in _head(data, name):
            kept.pop(b"sRGB", None)  # of which a file may have one only
        chunks = b"".join(png_chunk(kind, content) for kind, content in kept.items())
        data = data[:_PNG_HEADER_END] + chunks + data[_PNG_HEADER_END:]
    file.write(data)
    if name == "TIFF":
        _describe_tiff(file, encoding.metadata, gray=gray)


def _pillow_options(encoding: _Encoding, *, gray: bool) -> dict[str, Any]:
    from PIL.PngImagePlugin import PngInfo

    name, metadata = encoding.name, encoding.metadata
    options = dict(next(options for format_name, options in WRITE_FORMATS.values() if format_name == name))
    if encoding.quality is not None and name in ("JPEG", "WEBP"):
        options |= {"quality": encoding.quality, "lossless": False}
    if name not in ("BMP", "TIFF"):
        described = replace(metadata, png_colors=()) if name == "PNG" else metadata
        said = {"icc_profile": _profile(described, gray=gray), "exif": metadata.exif}
        said["xmp"] = metadata.xmp if name != "PNG" else None
        options |= {key: block for key, block in said.items() if block}
    if metadata.dpi and name in ("PNG", "JPEG", "BMP"):
        options["dpi"] = metadata.dpi
    if name == "PNG":
        info = PngInfo()
        if metadata.xmp:
            info.add_itxt(XMP_KEY, metadata.xmp.decode("utf-8", "replace"))
        for key, value in metadata.text:
            info.add_text(key, value)
        options["pnginfo"] = info
    return options


def _describe_tiff(file: BinaryIO, metadata: Metadata, *, gray: bool) -> None:
    """Gives a TIFF or BigTIFF the tags that describe its picture: its directory is written anew, at the end.

    libtiff, through which libvips and Pillow write, refuses directories within the first, which EXIF and GPS are.
    """
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    file.seek(0)
    header = file.read(16)
    is_big = header[2] == 43
    place, count_type, entry_bytes, at = ("<Q", "<Q", 20, 8) if is_big else ("<L", "<H", 12, 4)
    added = ImageFileDirectory_v2(header if is_big else header[:8])
    for tag, value in descriptive_tags(metadata.exif).items():
        added[tag] = value
    if metadata.xmp:
        added[XMP_TAG] = metadata.xmp
    if profile := _profile(metadata, gray=gray):
        added[PROFILE_TAG] = profile
    if metadata.dpi:
        added[X_RESOLUTION_TAG], added[Y_RESOLUTION_TAG] = metadata.dpi
        added[RESOLUTION_UNIT_TAG] = 2  # an inch

    def entries_of(stream: BinaryIO, start: int) -> dict[int, bytes]:
        stream.seek(start)
        (count,) = struct.unpack(count_type, stream.read(struct.calcsize(count_type)))
        entries = (stream.read(entry_bytes) for _ in range(count))
        return {struct.unpack("<H", entry[:2])[0]: entry for entry in entries}

    (first,) = struct.unpack_from(place, header, at)
    entries = entries_of(file, first)
    for tag in (X_RESOLUTION_TAG, Y_RESOLUTION_TAG, RESOLUTION_UNIT_TAG):
        entries.pop(tag, None)
    end = file.seek(0, os.SEEK_END)
    end += file.write(b"\0" * (end % 2))
    values = added.tobytes(end) if len(added) else b""  # of this directory the values stay in use
    values += b"\0" * (len(values) % 2)
    if values:
        entries |= entries_of(io.BytesIO(values), 0)
    file.seek(end)
    file.write(values + struct.pack(count_type, len(entries)))
    file.write(b"".join(entries[tag] for tag in sorted(entries)) + struct.pack(place, 0))
    file.seek(at)
    file.write(struct.pack(place, end + len(values)))
