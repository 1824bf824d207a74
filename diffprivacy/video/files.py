"""Reading videos as they look."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import dropwhile, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DiffPrivacyError
from ..media.limits import check_file
from .frames import Frame, Video, display_matrix, to_rgb, transposes

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer
    from av.stream import Stream

SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".3gp"}
"""Endings of file names that the command line takes for videos."""
FORMATS = ("mov", "matroska", "avi", "mpeg", "mpegts", "asf", "nut")
"""FFmpeg's demuxers that may read a file. None of them opens another file or an address, as playlists do."""
MOST_PIXELS = 8192 * 4320
"""Of a frame: the largest that digital cinema knows."""
NEARLY = 1e-6
"""Of a video's unit of time: a frame that is shown so little before a bound is at the bound."""

_MATRIX_BT709 = 1


def open_video(path: str | Path) -> Video:
    """What the file holds, as far as its head and its first frame tell.

    Of several video tracks it is the one marked as default among the long ones, else the first of them.
    Raises DiffPrivacyError, naming the file, if it is missing, damaged, cut off, too large or no video.
    """
    path = Path(path)
    with open_container(path) as container:
        stream = _main_stream(container, path)
        frame, start = next(_decode(container, stream, path), (None, 0))
        if frame is None:
            raise DiffPrivacyError(f"{path} is damaged: not one frame of it can be decoded.")
        _check_size(path, frame.width, frame.height)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        matrix = display_matrix(frame)
        height, width, aspect = frame.height, frame.width, stream.sample_aspect_ratio or Fraction(1)
        if transposes(matrix):
            height, width, aspect = width, height, 1 / aspect
        return Video(
            path=path,
            stream=stream.index,
            left_out=tuple(_described(other) for other in container.streams if _is_left_out(other, stream)),
            frames=stream.frames or round((container.duration or 0) * rate / 1_000_000),
            rate=rate,
            height=height,
            width=width,
            bit_depth=8 if max(component.bits for component in frame.format.components) <= 8 else 16,
            time_base=stream.time_base,  # pyright: ignore[reportArgumentType]
            start=start,
            sample_aspect_ratio=aspect,
            primaries=frame.color_primaries,
            transfer=frame.color_trc,
            matrix=_MATRIX_BT709 if frame.format.is_rgb or frame.format.has_palette else frame.colorspace,
            display_matrix=matrix,
        )


def clip(video: Video, start: float | None, end: float | None) -> Video:
    """The frames of a video that are shown from ``start`` to before ``end``, in seconds from its first; None: no bound.

    Raises DiffPrivacyError where there is none.
    """
    begin = video.start + math.ceil((start or 0) / video.time_base - NEARLY)
    stop = None if end is None else video.start + math.ceil(end / video.time_base - NEARLY)
    before, time = 0, video.start
    last = time
    with open_container(video.path) as container:
        stream: VideoStream = container.streams[video.stream]  # pyright: ignore[reportAssignmentType]
        for _, time in _decode(container, stream, video.path):
            if time >= begin:
                break
            before, last = before + 1, time
        else:
            at = float((last - video.start) * video.time_base)
            raise DiffPrivacyError(
                f"{video.path} ends before {start:g} s: its last frame is shown at {at:.2f} s.", "start"
            )
    if stop is not None and time >= stop:
        raise DiffPrivacyError(f"{video.path} has no frame from {start or 0:g} to {end:g} s.", "end")
    left = max(1, video.frames - before)
    if end is not None:
        shown = end - float((time - video.start) * video.time_base)
        left = min(left, max(1, round(shown * video.rate)))
    return replace(video, first=before, start=time, stop=stop, frames=left)


def read_frames(video: Video, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
    """The frames with these numbers, counted from 0 in the order in which they are shown; their times increase.

    What lies before ``start`` is decoded too: read a long video in one go, not in many.
    Raises DiffPrivacyError, naming the file and the time, at a frame that is damaged.
    """
    with open_container(video.path) as container:
        stream: VideoStream = container.streams[video.stream]  # pyright: ignore[reportAssignmentType]
        frames = islice(_decode(container, stream, video.path), video.first, None)
        within = takewhile(lambda item: video.stop is None or item[1] < video.stop, frames)
        for frame, time in islice(within, start, stop):
            yield Frame(to_rgb(frame, video), time)


def load_av():
    """PyAV, which is needed for videos only; raises DiffPrivacyError where it is missing or too old."""
    needed = "Videos need the package av, 18 or later, and with it Python 3.11: run pip install 'av>=18'."
    try:
        import av
    except ImportError as error:
        raise DiffPrivacyError(needed) from error
    if int(av.__version__.split(".")[0]) < 18:
        raise DiffPrivacyError(needed)
    return av


@contextmanager
def named_errors(path: Path, what: str) -> Iterator[None]:
    """Turn errors of the file system and of FFmpeg into one that names the file."""
    av = load_av()
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise DiffPrivacyError(f"{path} {what}: {error.strerror}.") from error


@contextmanager
def open_container(path: Path) -> Iterator[InputContainer]:
    """A video file and nothing that it may point to; raises DiffPrivacyError where it cannot be read."""
    av = load_av()
    check_file(path, "video")
    only = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    try:
        # The prefix keeps a name such as 12:30.mp4 from being taken for an address.
        container = av.open(f"file:{path}", metadata_errors="replace", options=only)
    except (av.InvalidDataError, av.ArgumentError) as error:
        raise DiffPrivacyError(
            f"{path} is not a video that can be read (MP4, MOV, MKV, WebM, AVI, MPEG, WMV), or it is damaged."
        ) from error
    except av.FFmpegError as error:
        raise DiffPrivacyError(f"{path} cannot be read: {error.strerror}.") from error
    with container:
        yield container


def _main_stream(container: InputContainer, path: Path) -> VideoStream:
    """The track of moving pictures: not a cover, nor a still picture beside a film."""
    from av.stream import Disposition

    streams = [
        stream
        for stream in container.streams.video
        if stream.codec_context and not stream.disposition & Disposition.attached_pic
    ]
    if not streams:
        raise DiffPrivacyError(f"{path} holds no video that can be read.")
    if any(entry.pos + entry.size > container.size for stream in container.streams for entry in stream.index_entries):
        raise DiffPrivacyError(f"{path} is damaged: its end is missing.")
    if len(streams) > 1:
        lengths = _lengths(path, [stream.index for stream in streams])
        long = max(lengths.values()) / 2
        streams = [stream for stream in streams if lengths[stream.index] >= long]
        streams.sort(key=lambda stream: not stream.disposition & Disposition.default)
    _check_size(path, streams[0].codec_context.width, streams[0].codec_context.height)
    return streams[0]


def _lengths(path: Path, tracks: Sequence[int]) -> dict[int, float]:
    """Seconds from the first frame of each track to its last, by a look at all its packets."""
    times: dict[int, list[float]] = {index: [] for index in tracks}
    with open_container(path) as container, named_errors(path, "is damaged"):
        for packet in container.demux([container.streams[index] for index in tracks]):
            if packet.pts is not None:
                known = times[packet.stream.index]
                known[1:] = [max([float(packet.pts * packet.time_base), *known])]
                known[:1] = [min([float(packet.pts * packet.time_base), *known])]
    return {index: known[-1] - known[0] if known else 0.0 for index, known in times.items()}


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise DiffPrivacyError(
            f"{path} is too large: frames of {width}x{height} pixels, and they may have {MOST_PIXELS / 1e6:.0f} "
            "million; scale it down first."
        )


def _is_left_out(stream: Stream, taken: VideoStream) -> bool:
    """Whether somebody might miss a track: data, such as where a camera was, nobody shall miss."""
    is_heard = stream.type == "audio" and getattr(stream, "codec_context", None)
    return stream.type in ("video", "audio", "subtitle") and stream.index != taken.index and not is_heard


def _described(stream: Stream) -> str:
    codec = getattr(stream, "codec_context", None)
    size = f", {codec.width}x{codec.height}" if codec and stream.type == "video" else ""
    return f"{stream.type} track {stream.index} ({codec.codec.canonical_name if codec else 'unknown'}{size})"


def _decode(container: InputContainer, stream: VideoStream, path: Path) -> Iterator[tuple[VideoFrame, int]]:
    """Frames from the first keyframe on, each with the time when it is shown, later than that of the one before.

    Raises DiffPrivacyError at a frame that is damaged.
    """
    av = load_av()
    # A frame in the middle may claim any size.
    stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
    # An AVI holds the times of its frames in their order, but not which frame is shown when.
    is_avi = container.format.name == "avi"
    # The decoder of HEVC leaves out a frame that it cannot decode, without an error.
    is_hevc = stream.name == "hevc"
    second = round(1 / (stream.time_base or 1))
    waiting: list[int] = []
    stamp = last = None
    try:
        for packet in dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream)):
            stamp = packet.dts if is_avi else packet.pts
            if stamp is not None and not packet.is_discard:
                heapq.heappush(waiting, stamp)
            for frame in packet.decode():
                time = waiting[0] if is_avi or frame.pts is None else frame.pts
                due = 0
                while waiting and waiting[0] <= time:
                    heapq.heappop(waiting)
                    due += 1
                if last is None:
                    last = time - 1
                elif (is_hevc and due > 1) or time < last - second:
                    raise _damage(path, container, stream, last)
                if frame.is_corrupt:
                    raise _damage(path, container, stream, time)
                last = max(time, last + 1)
                yield frame, last
        if is_hevc and waiting:
            raise _damage(path, container, stream, waiting[0])
    except av.FFmpegError as error:
        raise _damage(path, container, stream, stamp or last or 0) from error


def _damage(path: Path, container: InputContainer, stream: VideoStream, time: int) -> DiffPrivacyError:
    seconds = time * float(stream.time_base or 0) - (container.start_time or 0) / 1_000_000
    minutes, tenths = divmod(round(10 * seconds), 600)
    return DiffPrivacyError(
        f"{path} is damaged at {minutes:02}:{tenths / 10:04.1f}; repair it or convert it with another program first."
    )
