"""Everything in a video file besides its pictures: sound, subtitles, fonts, covers, chapters.

Streams keep their order, language, title and default flag. Whether a format can contain a stream is tried before any
work, by writing a header with that stream alone.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

_WITH_CHAPTERS: Final = ("mp4", "mov", "ipod", "matroska", "webm")
_WITH_TIMECODE: Final = ("mp4", "mov")
# Suffix and MIME subtype of pictures, by codec, where they differ from it.
_COVERS: Final = {"mjpeg": ("jpg", "jpeg")}
# Metadata about how a stream was encoded, untrue of the new one.
_OF_THE_ENCODING: Final = ("bps", "duration", "number_of_", "_statistics", "encoder", "alpha_mode", "rotate")


@dataclass(kw_only=True)
class StreamPlan:
    """The streams of a result: the encoded one, source -> copy, and one line for each that the result will lack."""

    video: Any = None
    copies: dict[Any, Any] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    @property
    def with_packets(self) -> list[Any]:
        """Streams of the source that are read; attachments are in the header."""
        return [stream for stream, copy in self.copies.items() if copy.type != "attachment"]


def planned_streams(
    av: Any, container: Any, output: Any, video: Any, add_video: Callable[[], Any]
) -> StreamPlan:
    """Adds streams to `output` in the source's order; `add_video` adds the one that is encoded."""
    plan = StreamPlan()
    output.metadata.update(container.metadata)
    for stream in container.streams:
        if stream is video:
            plan.video = add_video()
            plan.video.metadata.update(
                {
                    name: text
                    for name, text in stream.metadata.items()
                    if not name.lower().startswith(_OF_THE_ENCODING)
                }
            )
            plan.video.disposition = int(stream.disposition)
            continue
        if stream.type == "data" and _kept_otherwise(stream, container, video, output.format.name):
            continue
        reason = _refusal(av, stream, output.format.name)
        if reason is not None:
            plan.dropped.append(f"{stream.type} stream {stream.index}: {reason}")
            continue
        if is_cover(av, stream) and output.format.name == "matroska":
            copy = output.add_attachment(*_attachment(av, container, stream))
        else:
            copy = output.add_stream_from_template(stream, opaque=True)
            copy.disposition = int(stream.disposition)
        copy.metadata.update(stream.metadata)
        plan.copies[stream] = copy
    if chapters := container.chapters():
        if output.format.name in _WITH_CHAPTERS:
            output.set_chapters(chapters)
        else:
            plan.dropped.append(f"{len(chapters)} chapters: {output.format.name} cannot contain them")
    return plan


def is_cover(av: Any, stream: Any) -> bool:
    """Whether a stream is a picture that belongs to the file, and no video."""
    return stream.type == "video" and bool(stream.disposition & av.stream.Disposition.attached_pic)


def _attachment(av: Any, container: Any, cover: Any) -> tuple[str, str, bytes]:
    """Name, type and bytes of a cover; as a stream, Matroska would make a second video of it."""
    suffix, kind = _COVERS.get(cover.codec_context.name, (cover.codec_context.name,) * 2)
    with av.open(container.name) as again:
        data = next(bytes(packet) for packet in again.demux(again.streams[cover.index]) if packet.size)
    return f"cover.{suffix}", f"image/{kind}", data


def _kept_otherwise(stream: Any, container: Any, video: Any, format_name: str) -> bool:
    """Whether a data stream only repeats chapters or the picture's time code, as MP4 and MOV write them."""
    if "timecode" in stream.metadata:
        return "timecode" in video.metadata and format_name in _WITH_TIMECODE
    return bool(container.chapters())


def _refusal(av: Any, stream: Any, format_name: str) -> str | None:
    """Why a stream cannot be copied into a format; None where it can."""
    if stream.type == "attachment":
        return None if format_name == "matroska" else f"{format_name} cannot contain it"
    if stream.type == "video" and not is_cover(av, stream):
        return "only one video stream is upscaled"
    if stream.type not in ("audio", "subtitle", "video") or stream.codec_context is None:
        return "data is not copied"
    trial = av.open(io.BytesIO(), "w", format=format_name)
    try:
        trial.add_stream_from_template(stream, opaque=True)
        trial.start_encoding()
    except (ValueError, av.error.FFmpegError):
        return f"{format_name} cannot contain {stream.codec_context.name}"
    finally:
        with contextlib.suppress(ValueError, av.error.FFmpegError):
            trial.close()
    return None
