"""Pictures read by libvips (pyvips): whole or row by row, with 8 or 16 bits.

Decoders are called by name: libvips knows many more formats, some by way of other programs. Two kinds of file cannot
be decoded in order, which takes memory or a temporary file: pictures that have to be turned, and those whose first row
is complete only near the end of the file (interlaced PNG, progressive JPEG).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError
from trt_hspan.machine.install_advice import install_command
from trt_hspan.machine.memory import array_of_own_pages, available_memory_bytes
from trt_hspan.media.formats import DAMAGE, VIPS_LOADERS, damaged, require_accepted
from trt_hspan.media.metadata import (
    Header,
    Metadata,
    PpmHeader,
    inks,
    metadata_of_blocks,
)
from trt_hspan.media.pixels import PixelFormat
from trt_hspan.sizes import ImageSize

# What libvips is to take for an error. In a JPEG a stray byte is a warning, in a TIFF an odd tag is one.
_FAIL_ON: Final = {"PNG": "truncated", "JPEG": "truncated", "TIFF": "error"}
# In a TIFF of tiles, one that is missing or cannot be unpacked is black below this; odd tags don't count.
_FAIL_ON_TILES: Final = "warning"
_MULTISCAN: Final = "jpeg-multiscan"  # a field that libvips gives to progressive JPEGs
_CHUNK_BYTES: Final = 4 << 20
# A turned picture of more bytes than this is unpacked into a temporary file.
_MEMORY_BYTES: Final = 100 << 20

# libvips's number of threads before the first stream began, then a 1 for each stream.
_THREADS_BEFORE: Final[list[int]] = []
_THREADS_LOCK: Final = threading.Lock()


def vips(where: object = "16-bit color") -> Any:
    """The pyvips module. Raises: HspanError when it is not installed or cannot load libvips.

    libvips logs a warning for each row of a damaged file; the error that is raised says it once. Only debugging shows
    the warnings: pyvips's callback for what libvips logs would also take an interrupt that comes meanwhile, and lose
    it.
    """
    is_debugging = logging.getLogger().isEnabledFor(logging.DEBUG)
    if not is_debugging:
        os.environ.setdefault("VIPS_WARNING", "1")  # silences them; libvips reads it when it is loaded
    try:
        import pyvips
    except (ImportError, OSError) as error:
        install = f"install it with {install_command('media')}"
        raise HspanError(where, f"needs pyvips, which cannot be loaded ({error})", install) from error
    if not is_debugging:
        pyvips._remove_log_handler()
    return pyvips


def has_vips() -> bool:
    """Whether pyvips can be used here."""
    try:
        vips()
    except HspanError:
        return False
    return True


def interpretation(channels: int, *, deep: bool) -> str:
    """What libvips calls the colors of pixels, alpha or not."""
    return (("b-w", "grey16") if channels <= 2 else ("srgb", "rgb16"))[deep]


@contextmanager
def one_thread_of_vips(where: object) -> Iterator[None]:
    """libvips holds rows in proportion to its threads, on 32 of them more than 1,000 rows in each buffer; decoders
    and encoders work on one."""
    library = vips(where)
    with _THREADS_LOCK:
        if not _THREADS_BEFORE:
            _THREADS_BEFORE.append(library.concurrency_get())
        _THREADS_BEFORE.append(1)
        library.concurrency_set(1)
    try:
        yield
    finally:
        with _THREADS_LOCK:
            _THREADS_BEFORE.pop()
            if len(_THREADS_BEFORE) == 1:  # no other stream is left
                library.concurrency_set(_THREADS_BEFORE.pop())


class VipsPicture:
    """A PNG, JPEG, TIFF or binary PPM whose header has been read, or one of `VIPS_LOADERS`; an `OpenedPicture`.

    Raises HspanError: damaged, of a color space without a plain way to RGB, or no loader for it is in libvips.
    """

    def __init__(self, source: Path | bytes, kind: str, header: Header, where: object) -> None:
        self.format, self.where, self._source = kind, where, source
        self.streams = kind not in VIPS_LOADERS
        self._library = vips(where)
        self._header, self.metadata = header, header.metadata
        self._image: Any = self._opened()
        if kind in VIPS_LOADERS:
            self.metadata = self._described(self._image)
        stored = ImageSize(height=self._image.height, width=self._image.width)
        self.size = stored.turned if self._header.orientation >= 5 else stored
        dtype: type[np.uint8] | type[np.uint16] = np.uint16 if self._image.format == "ushort" else np.uint8
        self.pixel_format = PixelFormat(channels=self._image.bands, dtype=dtype, where=where)

    def pixels(self) -> npt.NDArray[Any]:
        """The whole picture, (H, W, C). Raises: HspanError when it is damaged or has more than `MAX_PIXELS` pixels."""
        require_accepted(self.size, self.where)
        try:
            data = self._upright().write_to_memory()
        except self._library.Error as error:
            raise _unreadable(self.where, error) from error
        return np.frombuffer(data, self.pixel_format.dtype).reshape(*self.size, self.pixel_format.channels)

    def rows(self) -> VipsRows:
        """The picture's rows, from the first one on. Raises: HspanError when a decoder needs too much memory."""
        try:
            return VipsRows(self, self._upright())
        except self._library.Error as error:
            raise _unreadable(self.where, error) from error

    def _opened(self) -> Any:
        """The picture in the colors that it is given in, not turned; its pixels are decoded when they are needed."""
        try:
            return self._plain(self._stored())
        except self._library.Error as error:
            raise _unreadable(self.where, error) from error

    def _stored(self) -> Any:
        if self._header.ppm is not None:
            return self._stored_ppm(self._header.ppm)
        sources = self._library.Source
        source = (
            sources.new_from_memory(self._source)
            if isinstance(self._source, bytes)
            else sources.new_from_file(os.fsencode(self._source))  # a name is bytes, not always UTF-8
        )
        if self.format in VIPS_LOADERS:
            return self._loaded(f"{VIPS_LOADERS[self.format]}_source", source)
        load = getattr(self._library.Image, f"{self.format.lower()}load_source")
        fail_on = _FAIL_ON_TILES if self._header.is_tiled else _FAIL_ON[self.format]
        return load(source, fail_on=fail_on, access="sequential", unlimited=True)

    def _loaded(self, loader: str, source: Any) -> Any:
        """A picture of `VIPS_LOADERS`, which its loader turns upright."""
        if not self._library.type_find("VipsOperation", loader):
            raise HspanError(
                self.where, f"a {self.format} picture, which libvips cannot read here", "save it again as PNG"
            )
        return getattr(self._library.Image, loader)(source, access="sequential", fail_on="error")

    def _described(self, image: Any) -> Metadata:
        names = ("icc-profile-data", "exif-data", "xmp-data")
        blocks = [image.get(name) if image.get_typeof(name) else None for name in names]
        try:
            described = metadata_of_blocks(*blocks)
        except (OSError, *DAMAGE) as error:
            raise damaged(self.where, error) from error
        colors = () if described.icc_profile else self._header.metadata.png_colors
        return dataclasses.replace(described, png_colors=colors)

    def _stored_ppm(self, header: PpmHeader) -> Any:
        height, width, channels, white, start = header
        is_deep = white > 255
        size = len(self._source) if isinstance(self._source, bytes) else self._source.stat().st_size
        missing = start + height * width * channels * (2 if is_deep else 1) - size
        if missing > 0:
            raise damaged(self.where, ValueError(f"{missing} bytes are missing"))
        stored = "ushort" if is_deep else "uchar"
        images = self._library.Image
        image = (
            images.new_from_memory(memoryview(self._source)[start:], width, height, channels, stored)
            if isinstance(self._source, bytes)
            else images.rawload(
                os.fsencode(self._source),
                width,
                height,
                channels,
                offset=start,
                format=stored,
                revalidate=True,
            )
        )
        image = image.copy(interpretation=interpretation(channels, deep=is_deep))
        image = image.byteswap() if is_deep else image
        most = 65535 if is_deep else 255
        return image if white == most else (image * (most / white)).rint().cast(stored)

    def _plain(self, image: Any) -> Any:
        """Gray or sRGB: the one place that decides what a file's colors become."""
        if image.format not in ("uchar", "ushort") or image.bands > 5:
            raise HspanError(
                self.where,
                f"{image.bands} channels of type {image.format} have no plain way to RGB",
                "convert it to an RGB picture",
            )
        if image.interpretation == "cmyk":
            return self._rgb_from_cmyk(image)
        if self._header.unknown_channels:
            image = image[: image.bands - self._header.unknown_channels]
        if image.bands > 4:
            raise HspanError(self.where, f"{image.bands} channels are no picture", "convert it to RGB")
        if image.bands >= 3 and self._header.has_gray_palette:
            gray = image[0] if image.bands == 3 else image[0].bandjoin(image[3])
            return gray.copy(interpretation="b-w")
        return image

    def _rgb_from_cmyk(self, image: Any) -> Any:
        """Inks as sRGB, as Pillow converts them: through the embedded profile, perceptually; without one, or with one
        that cannot be used, for which libvips would take its own, what each ink leaves of what black leaves."""
        is_deep = image.format == "ushort"
        transform, self.metadata = inks(self._header.metadata)
        if transform is not None:
            depth = 16 if is_deep else 8
            return image.icc_transform("srgb", embedded=True, depth=depth, intent="perceptual")
        white = 65535 if is_deep else 255
        left = image * -1 + white
        left = left[:3] * left[3] / white
        return left.rint().cast(image.format).copy(interpretation="rgb16" if is_deep else "srgb")

    def _upright(self) -> Any:
        # What libvips reads in order can be read once.
        image, self._image = self._image or self._opened(), None
        self._require_memory_of_decoder(image)
        if self._header.orientation == 1:
            return image
        # Its rows are needed in another order than they are stored.
        if image.width * image.height * image.bands * 2 <= _MEMORY_BYTES:
            stored = image.copy_memory()
        else:
            stored = self._library.Image.new_temp_file("%s.v")
            image.write(stored)
        stored = stored.copy()
        stored.set_type(self._library.GValue.gint_type, "orientation", self._header.orientation)
        return stored.autorot()

    def _require_memory_of_decoder(self, image: Any) -> None:
        """Raises: HspanError for an interlaced PNG or progressive JPEG whose pixels do not fit in memory."""
        if not (image.get_typeof("interlaced") and image.get("interlaced")):
            return
        is_jpeg = bool(image.get_typeof(_MULTISCAN))
        # libpng keeps the samples; libjpeg keeps the coefficients, of 2 bytes, all of them unless colors are halved.
        sample_bytes = 2 if is_jpeg or image.format == "ushort" else 1
        needed = image.width * image.height * image.bands * sample_bytes
        available = available_memory_bytes()
        if available is not None and needed > available:
            kind, plain = (
                ("a progressive JPEG", "baseline") if is_jpeg else ("an interlaced PNG", "not interlaced")
            )
            raise HspanError(
                self.where,
                f"{kind} is decoded as a whole, its {image.height}x{image.width} pixels need about "
                f"{needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available",
                f"save it again, {plain}",
            )


class VipsRows:
    """The rows of a picture, decoded when they are needed; at most one tile's rows are held."""

    def __init__(self, picture: VipsPicture, image: Any) -> None:
        self._picture, self._library = picture, vips(picture.where)  # whose bytes libvips reads
        self._region = self._library.Region.new(image)
        self._width, row_shape = image.width, (image.width, image.bands)
        dtype = picture.pixel_format.dtype
        self._rows_at_a_time = max(1, _CHUNK_BYTES // (image.width * image.bands * np.dtype(dtype).itemsize))
        self._top = self._count = 0  # the rows that are held, in the first rows of the buffer
        self._buffer = array_of_own_pages((0, *row_shape), dtype)

    def __call__(self, top: int, bottom: int) -> npt.NDArray[Any]:
        """Rows top to bottom; `top` never goes back. (bottom - top, W, C), a view that the next call may end."""
        kept = self._buffer[max(0, top - self._top) : self._count]
        if bottom - top > len(self._buffer):
            larger = array_of_own_pages((bottom - top, *self._buffer.shape[1:]), self._buffer.dtype)
            larger[: len(kept)] = kept
            self._buffer = larger
        else:
            self._buffer[: len(kept)] = kept
        self._top, self._count = top, len(kept)
        while self._count < bottom - top:
            count = min(self._rows_at_a_time, bottom - top - self._count)
            try:
                data = self._region.fetch(0, top + self._count, self._width, count)
            except self._library.Error as error:
                raise _unreadable(self._picture.where, error) from error
            fresh = np.frombuffer(data, self._buffer.dtype).reshape(count, *self._buffer.shape[1:])
            self._buffer[self._count : self._count + count] = fresh
            self._count += count
        return self._buffer[: bottom - top]


def _unreadable(where: object, error: Any) -> HspanError:
    """The one line that a pyvips.Error deserves: a file may be damaged, or of a kind that libvips does not read."""
    lines = [line.strip() for line in error.detail.splitlines() if line.strip()]
    # Without the name of a decoder or loader before it, and a number behind it.
    reason = re.sub(
        r"^\w*(?:vips|heif|load)\w*: | *\(\d+\.\d+\)$", "", lines[-1] if lines else "", flags=re.I
    )
    if re.search(r"not (supported|configured|implemented)|unsupported", reason, re.I):
        return HspanError(where, f"libvips cannot read it ({reason})", "save it again as PNG or a plain TIFF")
    says_nothing = re.match(r"libpng read error|unable to", reason)
    return damaged(where, ValueError("" if says_nothing else reason))
