"""Writing protected videos: parts that can be decoded on their own, and an MP4 of nothing but pictures and sound."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DiffPrivacyError
from ..media.atomic import atomic_path
from .files import load_av, named_errors, open_container
from .frames import Frame, Video, even_size, to_even, yuv_format, yuv_graph
from .sound import heard, packets_of_sound, sound_track

if TYPE_CHECKING:
    from av import Packet, VideoStream
    from av.container import OutputContainer

CRF = "14"
"""Constant rate factor of x264 and x265: at 14 a frame is hard to tell from the one that went in."""

_RANGE_LIMITED = 1
_WITHOUT_SEI = "filter_units=remove_types=6"
"""Takes out what x264 says of itself and of its settings."""


@contextmanager
def part_writer(path: Path, video: Video) -> Iterator[Callable[[Frame], None]]:
    """A function that appends a frame to a part of the protected video; the part can be decoded on its own.

    The file appears complete at the end of the block, or not at all.
    Raises DiffPrivacyError if it cannot be written.
    """
    av = load_av()
    with atomic_path(path) as temporary:
        with named_errors(path, "cannot be written"):
            # NUT keeps the source's time base and the time of the first frame.
            container = av.open(f"file:{temporary}", "w", format="nut")
            stream = _encoder(container, video)
            to_yuv = yuv_graph(video)

        def write(frame: Frame) -> None:
            with named_errors(path, "cannot be written"):
                to_yuv.vpush(to_even(frame, video))
                container.mux(stream.encode(to_yuv.vpull()))

        try:
            yield write
            with named_errors(path, "cannot be written"):
                container.mux(stream.encode())
        finally:
            with named_errors(path, "cannot be written"):
                container.close()


def join(parts: Sequence[Path], source: Video, target: Path, sound: bool = True) -> None:
    """Write the parts, one after the other, as an MP4 with the source's sound and nothing else of the source.

    Of a range of the source the sound has as much, to whole packets. It is copied where MP4 can hold it, see :mod:`.sound`; what FFmpeg cannot decode is left out.
    The file appears complete or not at all.
    Raises DiffPrivacyError if it cannot be written, or if the parts were encoded differently.
    """
    av = load_av()
    from av.container import Flags

    options = {"movflags": "faststart", "movie_timescale": "90000"}
    with (
        atomic_path(target) as temporary,
        open_container(parts[0]) as first,
        open_container(source.path) as original,
        named_errors(target, "cannot be written"),
        av.open(f"file:{temporary}", "w", format="mp4", options=options) as output,
    ):
        output.flags |= Flags.bitexact.value  # Without FFmpeg's version.
        (encoded,) = first.streams.video
        pictures = output.add_stream_from_template(encoded, opaque=True)
        if encoded.name == "hevc":
            pictures.codec_context.codec_tag = "hvc1"
        sounds = heard(original, source.path) if sound else []
        streams = [track.stream for track in sounds]
        tracks = {track.stream.index: sound_track(track, output) for track in sounds}
        begins = [
            stream.start_time * stream.time_base  # pyright: ignore[reportOperatorIssue]
            for stream in streams
            if stream.start_time is not None
        ]
        start = source.start * source.time_base
        if not source.first:
            start = min([start, *begins])
        packets = heapq.merge(
            _packets_of_parts(parts, pictures, encoded.codec_context.extradata),
            packets_of_sound(original, tracks, source),
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


def _encoder(container: OutputContainer, video: Video) -> VideoStream:
    """x264 for 8 bits a channel and x265 for more, without B-frames, so that packets lie in the order of time."""
    height, width = even_size(video)
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
        pix_fmt=yuv_format(video),
        max_b_frames=0,
        sample_aspect_ratio=video.sample_aspect_ratio,
        color_primaries=video.primaries,
        color_trc=video.transfer,
        colorspace=video.matrix,
        color_range=_RANGE_LIMITED,
    )


def _packets_of_parts(parts: Sequence[Path], pictures: VideoStream, head: bytes | None) -> Iterator[Packet]:
    from av.bitstream import BitStreamFilterContext

    for part in parts:
        with open_container(part) as container, named_errors(part, "is damaged"):
            (stream,) = container.streams.video
            if stream.codec_context.extradata != head:
                raise DiffPrivacyError(
                    f"{part} was encoded differently than the parts before it; write all of them anew."
                )
            plain = BitStreamFilterContext(_WITHOUT_SEI, stream) if stream.name == "h264" else None
            for packet in container.demux(stream):
                for kept in plain.filter(packet) if plain else [packet]:
                    if kept.size:
                        # Without B-frames frames are decoded when they are shown, which the container leaves open.
                        kept.dts = kept.pts
                        kept.stream = pictures
                        yield kept
