"""Reading videos as they look and writing them as MP4 that holds nothing but pictures and sound."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import dropwhile, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DiffPrivacyError
from ..media.images import appearing

if TYPE_CHECKING:
    from av import AudioStream, Packet, VideoFrame, VideoStream
    from av.container import InputContainer, OutputContainer
    from av.filter import Graph

SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".3gp"}
"""Endings of file names that the command line takes for videos."""
COPIED_SOUND = {"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"}
"""Sound that an MP4 holds as it is; other sound is encoded as AAC."""
SOUND_BIT_RATE = 96_000
"""Bits a second for each channel of sound that is encoded."""
CRF = "14"
"""Constant rate factor of x264 and x265: at 14 a frame is hard to tell from the one that went in."""

_UPRIGHT = (1, 0, 0, 0, 1, 0, 0, 0, 1)
_MATRIX_BT709 = 1
_RANGE_LIMITED = 1


@dataclass(frozen=True)
class Video:
    """What a video file holds, and what its protected copy takes over.

    frames: how many, as the file says or estimated, 0 where unknown; rate: their mean number a second.
    height, width: of upright frames; bit_depth: 8 or 16 bits a channel of ``Frame.pixels``.
    time_base: seconds in a unit of ``Frame.time``; start: ``Frame.time`` of the first frame.
    sample_aspect_ratio: width of an upright pixel over its height.
    primaries, transfer, matrix: the colour space, as ITU-T H.273 numbers them.
    display_matrix: turns the stored frames upright, as in ISO/IEC 14496-12.
    """

    path: Path
    frames: int
    rate: Fraction
    height: int
    width: int
    bit_depth: int
    time_base: Fraction
    start: int
    sample_aspect_ratio: Fraction
    primaries: int
    transfer: int
    matrix: int
    display_matrix: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Frame:
    """pixels: (H,W,3) RGB, upright, uint8 or full-range uint16; time: when it is shown, in ``Video.time_base``."""

    pixels: np.ndarray
    time: int


def open_video(path: str | Path) -> Video:
    """What the file holds, as far as its head and its first frame tell.

    Raises DiffPrivacyError, naming the file, if it is missing, damaged, cut off or no video.
    """
    path = Path(path)
    with _open(path) as container:
        stream = _pictures(container, path)
        frame, start = next(_decode(container, stream, path), (None, 0))
        if frame is None:
            raise DiffPrivacyError(f"{path} is damaged: not one frame of it can be decoded.")
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        matrix = _display_matrix(frame)
        height, width, aspect = frame.height, frame.width, stream.sample_aspect_ratio or Fraction(1)
        if _transposes(matrix):
            height, width, aspect = width, height, 1 / aspect
        return Video(
            path=path,
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


def read_frames(video: Video, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
    """The frames with these numbers, counted from 0 in the order in which they are shown; their times increase.

    What lies before ``start`` is decoded too: read a long video in one go, not in many.
    Raises DiffPrivacyError, naming the file and the time, at a frame that is damaged.
    """
    with _open(video.path) as container:
        stream = _pictures(container, video.path)
        for frame, time in islice(_decode(container, stream, video.path), start, stop):
            yield Frame(_pixels(frame, video), time)


@contextmanager
def part_writer(path: Path, video: Video) -> Iterator[Callable[[Frame], None]]:
    """A function that appends a frame to a part of the protected video; the part can be decoded on its own.

    The file appears complete at the end of the block, or not at all.
    Raises DiffPrivacyError if it cannot be written.
    """
    av = load_av()
    with appearing(path) as temporary:
        with _named_errors(path, "cannot be written"):
            # NUT keeps the source's time base and the time of the first frame.
            container = av.open(f"file:{temporary}", "w", format="nut")
            stream = _encoder(container, video)
            to_yuv = _to_yuv(video)

        def write(frame: Frame) -> None:
            with _named_errors(path, "cannot be written"):
                to_yuv.vpush(_even(frame, video))
                container.mux(stream.encode(to_yuv.vpull()))

        try:
            yield write
            with _named_errors(path, "cannot be written"):
                container.mux(stream.encode())
        finally:
            with _named_errors(path, "cannot be written"):
                container.close()


def join(parts: Sequence[Path], source: Video, target: Path, sound: bool = True) -> None:
    """Write the parts, one after the other, as an MP4 with the source's sound and nothing else of the source.

    Sound that :data:`COPIED_SOUND` names is copied, other sound encoded; what FFmpeg cannot decode is left out.
    The file appears complete or not at all.
    Raises DiffPrivacyError if it cannot be written, or if the parts were encoded differently.
    """
    av = load_av()
    from av.container import Flags

    options = {"movflags": "faststart", "movie_timescale": "90000"}
    with (
        appearing(target) as temporary,
        _open(parts[0]) as first,
        _open(source.path) as original,
        _named_errors(target, "cannot be written"),
        av.open(f"file:{temporary}", "w", format="mp4", options=options) as output,
    ):
        output.flags |= Flags.bitexact.value  # Without FFmpeg's version.
        (encoded,) = first.streams.video
        pictures = output.add_stream_from_template(encoded, opaque=True)
        if encoded.name == "hevc":
            pictures.codec_context.codec_tag = "hvc1"
        heard = [stream for stream in original.streams.audio if stream.codec_context] if sound else []
        tracks = {stream.index: _track(stream, output) for stream in heard}
        begins = [
            stream.start_time * stream.time_base  # pyright: ignore[reportOperatorIssue]
            for stream in heard
            if stream.start_time is not None
        ]
        start = min([source.start * source.time_base, *begins])
        packets = heapq.merge(
            _packets_of_parts(parts, pictures, encoded.codec_context.extradata),
            _packets_of_sound(original, tracks, source.path),
            key=lambda packet: packet.dts * packet.time_base,  # pyright: ignore[reportOptionalOperand]
        )
        latest: dict[int, int] = {}
        for packet in packets:
            time = packet.dts - round(start / packet.time_base)  # pyright: ignore[reportOptionalOperand]
            before = latest.get(packet.stream.index)
            if before is not None and time <= before:
                # Recordings that were put together may hold sound that goes back in time, which an MP4 cannot.
                time = before + (packet.duration or 1)
            latest[packet.stream.index] = packet.pts = packet.dts = time
            output.mux(packet)


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
def _named_errors(path: Path, what: str) -> Iterator[None]:
    """Turn errors of the file system and of FFmpeg into one that names the file."""
    av = load_av()
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise DiffPrivacyError(f"{path} {what}: {error.strerror}.") from error


@contextmanager
def _open(path: Path) -> Iterator[InputContainer]:
    av = load_av()
    try:
        # The prefix keeps a name such as 12:30.mp4 from being taken for an address.
        container = av.open(f"file:{path}", metadata_errors="replace")
    except av.FileNotFoundError as error:
        raise DiffPrivacyError(f"{path}: there is no such file.") from error
    except av.IsADirectoryError as error:
        raise DiffPrivacyError(f"{path} is a folder; name a video in it.") from error
    except av.InvalidDataError as error:
        raise DiffPrivacyError(f"{path} is not a video that can be read, or it is damaged.") from error
    except av.FFmpegError as error:
        raise DiffPrivacyError(f"{path} cannot be read: {error.strerror}.") from error
    with container:
        yield container


def _pictures(container: InputContainer, path: Path) -> VideoStream:
    """The stream of moving pictures: not a sound file's cover, nor a still picture."""
    from av.stream import Disposition

    streams = [
        stream
        for stream in container.streams.video
        if stream.codec_context and not stream.disposition & Disposition.attached_pic
    ]
    if not streams or container.format.name.endswith(("_pipe", "image2")):
        raise DiffPrivacyError(f"{path} holds no video that can be read.")
    if any(entry.pos + entry.size > container.size for stream in container.streams for entry in stream.index_entries):
        raise DiffPrivacyError(f"{path} is damaged: its end is missing.")
    return streams[0]


def _decode(container: InputContainer, stream: VideoStream, path: Path) -> Iterator[tuple[VideoFrame, int]]:
    """Frames from the first keyframe on, each with the time when it is shown, later than that of the one before.

    Raises DiffPrivacyError at a frame that is damaged.
    """
    av = load_av()
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


def _pixels(frame: VideoFrame, video: Video) -> np.ndarray:
    """(H,W,3) RGB, upright."""
    transposed = _transposes(video.display_matrix)
    height, width = (video.width, video.height) if transposed else (video.height, video.width)
    rgb = frame.reformat(width=width, height=height, format=_rgb_format(video), interpolation=_resampling())
    return np.ascontiguousarray(_upright(rgb.to_ndarray(), video.display_matrix))


def _even(frame: Frame, video: Video) -> VideoFrame:
    """Of even size, as the colour of 2 x 2 pixels is stored once: the last row and column are repeated for that."""
    av = load_av()
    height, width, _ = frame.pixels.shape
    pixels = np.pad(frame.pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    even = av.VideoFrame.from_ndarray(pixels, format=_rgb_format(video))
    even.pts = frame.time
    even.time_base = video.time_base
    return even


def _to_yuv(video: Video) -> Graph:
    """Turns RGB to what is encoded, colour placed at the left of two pixels as usual; ``reformat`` would centre it."""
    av = load_av()
    from av.filter import Graph

    graph = Graph()
    height, width = _even_size(video)
    rgb = av.VideoFormat(_rgb_format(video))
    scale = f"flags={int(_resampling())}:out_color_matrix={video.matrix}:out_range=limited:out_chroma_loc=left"
    graph.link_nodes(
        graph.add_buffer(width=width, height=height, format=rgb, time_base=video.time_base),
        graph.add("scale", scale),
        graph.add("format", _yuv_format(video)),
        graph.add("buffersink"),
    ).configure()
    return graph


def _even_size(video: Video) -> tuple[int, int]:
    return video.height + video.height % 2, video.width + video.width % 2


def _rgb_format(video: Video) -> str:
    return "rgb24" if video.bit_depth == 8 else "rgb48le"


def _yuv_format(video: Video) -> str:
    return "yuv420p" if video.bit_depth == 8 else "yuv420p10le"


def _resampling() -> int:
    """How swscale turns YUV to RGB and back; with its defaults every pass makes a picture a level darker."""
    from av.video.reformatter import Interpolation

    return (
        Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    )


def _encoder(container: OutputContainer, video: Video) -> VideoStream:
    """x264 for 8 bits a channel and x265 for more, without B-frames, so that packets lie in the order of time."""
    height, width = _even_size(video)
    options = {"crf": CRF, "preset": "medium"}
    if video.bit_depth > 8:
        options["x265-params"] = "log-level=none:info=0"
    return container.add_stream(
        "libx264" if video.bit_depth == 8 else "libx265",
        rate=video.rate,
        options=options,
        width=width,
        height=height,
        time_base=video.time_base,
        pix_fmt=_yuv_format(video),
        max_b_frames=0,
        sample_aspect_ratio=video.sample_aspect_ratio,
        color_primaries=video.primaries,
        color_trc=video.transfer,
        colorspace=video.matrix,
        color_range=_RANGE_LIMITED,
    )


def _packets_of_parts(parts: Sequence[Path], pictures: VideoStream, head: bytes | None) -> Iterator[Packet]:
    for part in parts:
        with _open(part) as container, _named_errors(part, "is damaged"):
            (stream,) = container.streams.video
            if stream.codec_context.extradata != head:
                raise DiffPrivacyError(
                    f"{part} was encoded differently than the parts before it; write all of them anew."
                )
            for packet in container.demux(stream):
                if packet.size:
                    # Without B-frames frames are decoded when they are shown, which the container leaves open.
                    packet.dts = packet.pts
                    packet.stream = pictures
                    yield packet


def _packets_of_sound(
    container: InputContainer, tracks: dict[int, Callable[[Packet], Iterable[Packet]]], path: Path
) -> Iterator[Packet]:
    if tracks:
        with _named_errors(path, "has damaged sound"):
            for packet in container.demux([container.streams[index] for index in tracks]):
                yield from tracks[packet.stream.index](packet)


def _track(stream: AudioStream, output: OutputContainer) -> Callable[[Packet], Iterable[Packet]]:
    """Adds a sound track to the output; the function returned turns the stream's packets into the track's."""
    return (_copied if stream.codec.canonical_name in COPIED_SOUND else _encoded)(stream, output)


def _copied(stream: AudioStream, output: OutputContainer) -> Callable[[Packet], Iterable[Packet]]:
    track = output.add_stream_from_template(stream, opaque=True)

    def copy(packet: Packet) -> Iterator[Packet]:
        if packet.size:
            packet.stream = track
            yield packet

    return copy


def _encoded(stream: AudioStream, output: OutputContainer) -> Callable[[Packet], Iterable[Packet]]:
    """As AAC; where sound is missing or cannot be decoded, silence keeps what follows in time."""
    av = load_av()
    from av.codec.context import Flags

    rates = av.Codec("aac", "w").audio_rates or []
    rate = stream.rate if stream.rate in rates else 48_000
    track = output.add_stream("aac", rate=rate, layout=f"{stream.channels}c", bit_rate=SOUND_BIT_RATE * stream.channels)
    track.codec_context.flags |= Flags.bitexact
    resampler = av.AudioResampler(track.format, track.layout, rate, options={"async": "1"})

    def encode(packet: Packet) -> Iterator[Packet]:
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            return
        for frame in frames if packet.size else [*frames, None]:
            for resampled in resampler.resample(frame):
                yield from track.encode(resampled)
        if not packet.size:
            yield from track.encode(None)

    return encode


def _display_matrix(frame: VideoFrame) -> tuple[int, ...]:
    data = frame.side_data.get("DISPLAYMATRIX")
    return _UPRIGHT if data is None else tuple(np.frombuffer(data, np.int32).tolist())


def _transposes(matrix: tuple[int, ...]) -> bool:
    """Whether rows become columns."""
    return abs(matrix[0]) < abs(matrix[1])


def _upright(pixels: np.ndarray, matrix: tuple[int, ...]) -> np.ndarray:
    """Turned and mirrored, by quarter turns, as a display matrix says."""
    a, b, _, c, d = matrix[:5]
    right, down = (c, b) if _transposes(matrix) else (a, d)
    if _transposes(matrix):
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]
