"""The rows of pictures that need not lie in memory whole. Owns the reading end of a stream; `streaming` is the other.

libvips reads PNG, JPEG and TIFF row by row; the rows of a binary PPM lie in the file as they are. WebP, GIF and BMP
are decoded whole by Pillow, and a picture in memory has rows too. (Two kinds of file cannot be read in order: pictures
that lie on their side, which libvips unpacks into a temporary file, and progressive JPEGs, whose decoder holds all of
them in memory, which is checked before. The passes of an interlaced PNG are unpacked into temporary files.)
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError
from trt_hspan.machine.memory import array_of_own_pages, available_memory_bytes
from trt_hspan.media import png_chunks
from trt_hspan.media.deep_pictures import (
    TIFF_STARTS,
    load_strictly,
    rgb_from_cmyk,
    unreadable,
    vips,
    with_orientation_of_png,
)
from trt_hspan.media.images import damaged
from trt_hspan.media.interlaced_png import files_of_passes
from trt_hspan.media.metadata import Metadata, metadata_of_file
from trt_hspan.media.pictures import Picture
from trt_hspan.media.pixels import PixelFormat
from trt_hspan.media.pnm import PnmHeader, PnmRows, pnm_header_of_file

_CHUNK_BYTES: Final = 4 << 20
_FORMATS: Final = (
    (png_chunks.SIGNATURE, "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    *((start, "TIFF") for start in TIFF_STARTS),
)


_PALETTE: Final = 3  # color type of a PNG
_MULTISCAN: Final = "jpeg-multiscan"  # a field that libvips gives to progressive JPEGs


class PictureRows(Protocol):
    """The rows of a picture, upright, gray or sRGB, with alpha where it has it, 8 or 16 bits.

    Attributes:
        height, width: in pixels.
        pixels: their format.
        metadata: what the file says beside them.
    """

    height: int
    width: int
    pixels: PixelFormat
    metadata: Metadata

    def __call__(self, top: int, bottom: int) -> npt.NDArray[Any]:
        """Rows top to bottom; `top` never goes back. (bottom - top, W, C), a view that the next call may end.

        Raises:
            HspanError: the file is damaged or truncated there.
        """


def size_for_streaming(path: Path) -> tuple[int, int] | None:
    """(height, width) of a picture whose rows can be read one after the other; None where they cannot.

    They cannot when it is no PNG, JPEG, TIFF or binary PPM, when it is damaged, or when pyvips is not installed.
    """
    try:
        header = pnm_header_of_file(path)
        if header is not None:
            return header.height, header.width
        image = _opened(path)
        turned = _orientation(image) >= 5
    except HspanError:
        return None
    return (image.width, image.height) if turned else (image.height, image.width)


def rows_of_file(path: Path) -> PictureRows:
    """The rows of a file that `size_for_streaming` knows.

    Raises:
        HspanError: damaged, truncated, of another format or of a color space without a plain way to RGB.
    """
    header = pnm_header_of_file(path)
    if header is not None:
        return _PnmPictureRows(path, header)
    image = _opened(path)
    is_interlaced_png = _is_interlaced(image) and not _says(image, _MULTISCAN)
    if (
        is_interlaced_png and _orientation(image) == 1
    ):  # one that has to be turned is unpacked as a whole in any case
        return _InterlacedRows(path, image.height, image.width)
    return _VipsRows(path)


class RowsOfPicture:
    """The rows of a picture that is in memory."""

    def __init__(self, picture: Picture, where: object) -> None:
        self.height, self.width = picture.pixels.shape[:2]
        self.pixels = PixelFormat.of(picture.pixels, where=where)
        self.metadata = picture.metadata
        self._picture = picture.pixels

    def __call__(self, top: int, bottom: int) -> npt.NDArray[Any]:
        return self._picture[top:bottom]


class _PnmPictureRows(PnmRows):
    def __init__(self, path: Path, header: PnmHeader) -> None:
        super().__init__(path, header)
        self.height, self.width = header.height, header.width
        self.pixels = PixelFormat(channels=header.channels, dtype=header.dtype, where=path)
        self.metadata = Metadata()


def _opened(path: Path, access: str = "sequential") -> Any:
    library = vips(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            name = next((name for magic, name in _FORMATS if start.startswith(magic)), None)
            if name is None:
                raise HspanError(path, "not a picture that can be streamed", "give PNG, JPEG, TIFF or PPM")
            load = getattr(library.Image, f"{name.lower()}load")
            # A name is bytes, not always UTF-8; what libvips remembers of a file may be that of an older one of its
            # name.
            image = load_strictly(
                load, os.fsencode(path), name, access=access, unlimited=True, revalidate=True
            )
            return with_orientation_of_png(image, stream, path) if name == "PNG" else image
    except OSError as error:
        raise damaged(path, error) from error
    except library.Error as error:
        raise unreadable(path, error) from error


def _says(image: Any, name: str) -> bool:
    """Whether libvips found such a field; a list of all of them fails where one has a name that is not UTF-8."""
    return bool(image.get_typeof(name))


def _orientation(image: Any) -> int:
    return int(image.get("orientation")) if _says(image, "orientation") else 1


def _is_interlaced(image: Any) -> bool:
    return _says(image, "interlaced") and bool(image.get("interlaced"))


def _has_gray_palette(png: Path) -> bool:
    with png.open("rb") as stream:
        for kind, length in png_chunks.chunks(stream):
            if kind == b"PLTE":
                colors = stream.read(length)
                return colors[::3] == colors[1::3] == colors[2::3]
            if kind == b"IDAT" or (kind == b"IHDR" and stream.read(length)[9] != _PALETTE):
                break
    return False


def _require_memory_of_decoder(image: Any, path: Path) -> None:
    """Raises: HspanError for an interlaced PNG or progressive JPEG that its decoder has no room to unpack."""
    if not _is_interlaced(image):
        return
    is_jpeg = _says(image, _MULTISCAN)
    # libpng keeps the samples; libjpeg keeps the coefficients, of 2 bytes, all of them unless colors are halved.
    sample_bytes = 2 if is_jpeg or image.format == "ushort" else 1
    needed = image.width * image.height * image.bands * sample_bytes
    available = available_memory_bytes()
    if available is not None and needed > available:
        kind, plain = (
            ("a progressive JPEG", "baseline") if is_jpeg else ("an interlaced PNG", "not interlaced")
        )
        raise HspanError(
            path,
            f"{kind} is unpacked as a whole, its {image.width}x{image.height} pixels need about "
            f"{needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available",
            f"save it again, {plain}",
        )


class _InterlacedRows:
    """The rows of an upright interlaced PNG: those of its passes, in a temporary folder, put together."""

    def __init__(self, path: Path, height: int, width: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="trt-hspan-", ignore_cleanup_errors=True)
        try:
            files = files_of_passes(path, Path(self._folder.name))
        except OSError as error:
            raise HspanError(
                path,
                f"an interlaced PNG is unpacked into {tempfile.gettempdir()}, which cannot be written: "
                f"{error.strerror or error}",
                "set TMPDIR to a folder with room, or save it again, not interlaced",
            ) from error
        self._passes = [(file, _VipsRows(file.path, where=path)) for file in files]
        self.height, self.width = height, width
        self.pixels = dataclasses.replace(self._passes[0][1].pixels, where=path)
        self.metadata = metadata_of_file(path)
        self._buffer = array_of_own_pages((0, self.width, self.pixels.channels), self.pixels.dtype)

    def __call__(self, top: int, bottom: int) -> npt.NDArray[Any]:
        if bottom - top > len(self._buffer):
            self._buffer = array_of_own_pages((bottom - top, *self._buffer.shape[1:]), self.pixels.dtype)
        rows = self._buffer[: bottom - top]
        for file, read in self._passes:
            first, end = (max(0, -(-(row - file.top) // file.row_step)) for row in (top, bottom))
            if first < end:
                at = file.top + first * file.row_step - top
                rows[at :: file.row_step, file.left :: file.column_step] = read(first, end)
        return rows


class _VipsRows:
    """The rows of a PNG, JPEG or TIFF."""

    def __init__(self, path: Path, *, where: Path | None = None) -> None:
        library = vips(path)
        self._path, self._library = where or path, library
        image = _opened(path)
        _require_memory_of_decoder(image, path)
        self.metadata = metadata_of_file(path)
        try:
            if _orientation(image) > 1:
                image = _opened(path, "random").autorot()
            image = self._plain(image)
            self._region = library.Region.new(image)
        except library.Error as error:
            raise unreadable(path, error) from error
        self.height, self.width = int(image.height), int(image.width)
        dtype: type[np.uint8] | type[np.uint16] = np.uint16 if image.format == "ushort" else np.uint8
        self.pixels = PixelFormat(channels=image.bands, dtype=dtype, where=path)
        self._rows_at_a_time = max(1, _CHUNK_BYTES // (self.width * image.bands * np.dtype(dtype).itemsize))
        self._top = self._count = 0  # the rows that are held, in the first rows of the buffer
        self._buffer = array_of_own_pages((0, self.width, image.bands), dtype)

    def _plain(self, image: Any) -> Any:
        if image.format not in ("uchar", "ushort") or image.bands > 5:
            raise HspanError(
                self._path,
                f"{image.bands} channels of type {image.format} have no plain way to RGB",
                "convert it to an RGB picture",
            )
        deep = image.format == "ushort"
        is_of_png = image.get("vips-loader").startswith("png")
        if image.interpretation == "cmyk":
            self.metadata = dataclasses.replace(self.metadata, icc_profile=None)
            return rgb_from_cmyk(image)
        if image.interpretation not in ("b-w", "srgb", "rgb", "grey16", "rgb16", "multiband"):
            return image.colourspace("rgb16" if deep else "srgb")
        if image.bands > 4:
            raise HspanError(self._path, f"{image.bands} channels are no picture", "convert it to RGB")
        if image.bands >= 3 and is_of_png and _has_gray_palette(self._path):
            gray = image[0] if image.bands == 3 else image[0].bandjoin(image[3])
            return gray.copy(interpretation="b-w")
        return image

    def __call__(self, top: int, bottom: int) -> npt.NDArray[Any]:
        kept = self._buffer[max(0, top - self._top) : self._count]
        if bottom - top > len(self._buffer):
            larger = array_of_own_pages((bottom - top, *self._buffer.shape[1:]), self.pixels.dtype)
            larger[: len(kept)] = kept
            self._buffer = larger
        else:
            self._buffer[: len(kept)] = kept
        self._top, self._count = top, len(kept)
        while self._count < bottom - top:
            count = min(self._rows_at_a_time, bottom - top - self._count)
            try:
                data = self._region.fetch(0, top + self._count, self.width, count)
            except self._library.Error as error:
                raise unreadable(self._path, error) from error
            fresh = np.frombuffer(data, self.pixels.dtype).reshape(count, *self._buffer.shape[1:])
            self._buffer[self._count : self._count + count] = fresh
            self._count += count
        return self._buffer[: bottom - top]
