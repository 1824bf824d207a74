"""The sound of a protected video: copied where an MP4 can hold it, else encoded as AAC."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DiffPrivacyError
from .files import load_av, named_errors, open_container
from .frames import Video

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream, Packet
    from av.container import InputContainer, OutputContainer

COPIED_SOUND = {"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"}
"""Sound that an MP4 holds as it is; other sound is encoded as AAC."""
BIT_RATE = 96_000
"""Bits a second for each channel of sound that is encoded."""
MOST_CHANNELS = 6
"""Channels that are encoded; more are mixed down first, as FFmpeg's resampler may crash at seven and eight."""
_ORDER = ("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR")
"""Of FFmpeg's channels, the first ones."""
_HALF = 0.5**0.5
_SURROUND = {
    **{name: {name: 1.0} for name in ("FL", "FR", "FC", "LFE", "BL", "BR")},
    "SL": {"BL": _HALF},
    "SR": {"BR": _HALF},
    "BC": {"BL": _HALF, "BR": _HALF},
    "FLC": {"FL": _HALF, "FC": _HALF},
    "FRC": {"FR": _HALF, "FC": _HALF},
}
"""What each channel gives to those of 5.1, after ITU-R BS.775: two channels in one keep their power."""
_AS_BACK = {"SL": "BL", "SR": "BR"}
_PLACES = ("FL", "FR", "FC", "LFE", "BL", "BR")
_NAME_IN_MP3 = re.compile(rb"LAME(\d\.\d{2,3})?|Lav[cf](\d\d\.\d+\.\d+)?")
_FILL, _DATA = 6, 4


def check_sound(video: Video) -> None:
    """Raises DiffPrivacyError, naming the track, for sound that can be neither copied nor encoded."""
    with open_container(video.path) as container:
        heard(container, video.path)


@dataclass(frozen=True)
class Heard:
    """A sound track that a copy takes over. places: which channel is where, None where FFmpeg may deal with that."""

    stream: AudioStream
    places: tuple[str, ...] | None = None


def heard(container: InputContainer, path: Path) -> list[Heard]:
    """The sound tracks that a copy takes over: all that FFmpeg knows; raises as :func:`check_sound`.

    Once for an open container, and before anything is decoded.
    """
    tracks = []
    for stream in container.streams.audio:
        if not stream.codec_context:
            continue
        if _is_copied(stream):
            tracks.append(Heard(stream))
            continue
        places = _taken_places(stream)
        if len(places) <= MOST_CHANNELS and (_is_in_order(places) or not set(places) <= set(_SURROUND)):
            tracks.append(Heard(stream))
        elif set(places) <= set(_SURROUND):
            # Sides beside no back are the back of 5.1.
            is_surrounded = {"BL", "BR", "BC"} & set(places)
            tracks.append(Heard(stream, places if is_surrounded else tuple(_AS_BACK.get(p, p) for p in places)))
        else:
            raise DiffPrivacyError(
                f"{path}: sound track {stream.index} has {len(places)} channels ({'+'.join(places)}), which cannot "
                "be mixed down to 5.1; leave the sound out with --no-sound, or convert it with another program first."
            )
    return tracks


def _taken_places(stream: AudioStream) -> tuple[str, ...]:
    """Which channel is where; the usual places of their number where the file gives none.

    Where a file lists its channels in an order of its own, PyAV frees the list with each look at it, and FFmpeg frees
    it again. So the list is read once and replaced by the usual one, which needs no memory.
    """
    from av import AudioLayout

    context = stream.codec_context
    found = context.layout
    places = tuple(channel.name for channel in found.channels)
    usual = AudioLayout(f"{found.nb_channels}c")
    if found.name == f"{found.nb_channels} channels":
        places = tuple(channel.name for channel in usual.channels)
    context.layout = AudioLayout("+".join(places)) if _is_in_order(places) else usual
    return places


def _is_in_order(places: tuple[str, ...]) -> bool:
    """Whether channels stand in FFmpeg's own order."""
    known = [_ORDER.index(place) for place in places if place in _ORDER]
    return len(known) == len(places) and known == sorted(set(known))


def sound_track(track: Heard, output: OutputContainer) -> Callable[[Packet], Iterable[Packet]]:
    """Adds a sound track to the output; the function returned turns the stream's packets into the track's."""
    return _copied(track.stream, output) if _is_copied(track.stream) else _encoded(track, output)


def packets_of_sound(
    container: InputContainer, tracks: dict[int, Callable[[Packet], Iterable[Packet]]], video: Video
) -> Iterator[Packet]:
    """The packets of the tracks, by the index of their streams, in the order of the file: of a range those inside."""
    if tracks:
        with named_errors(video.path, "has damaged sound"):
            for packet in container.demux([container.streams[index] for index in tracks]):
                if not packet.size or _is_inside(packet, video):
                    yield from tracks[packet.stream.index](packet)


def _is_inside(packet: Packet, video: Video) -> bool:
    """Whether a packet of sound lies in the video's range as a whole; where its time is unknown, in the whole video only."""
    if packet.pts is None or packet.time_base is None:
        return not video.first and video.stop is None
    begin, end = (time * packet.time_base for time in (packet.pts, packet.pts + (packet.duration or 0)))
    starts_late = not video.first or begin >= video.start * video.time_base
    return starts_late and (video.stop is None or end <= video.stop * video.time_base)


def _is_copied(stream: AudioStream) -> bool:
    return stream.codec.canonical_name in COPIED_SOUND


def _copied(stream: AudioStream, output: OutputContainer) -> Callable[[Packet], Iterable[Packet]]:
    track = output.add_stream_from_template(stream, opaque=True)
    unsigned = {"aac": unsigned_aac, "mp3": unsigned_mp3}.get(stream.codec.canonical_name)

    def copy(packet: Packet) -> Iterator[Packet]:
        if packet.size:
            if unsigned is not None:
                packet.update(unsigned(bytes(packet)))
            packet.stream = track
            yield packet

    return copy


def _encoded(heard: Heard, output: OutputContainer) -> Callable[[Packet], Iterable[Packet]]:
    """As AAC; where sound is missing or cannot be decoded, silence keeps what follows in time."""
    av = load_av()
    from av.codec.context import Flags

    stream, places = heard.stream, heard.places
    rates = av.Codec("aac", "w").audio_rates or []
    rate = stream.rate if stream.rate in rates else 48_000
    channels = MOST_CHANNELS if places else stream.channels
    track = output.add_stream(
        "aac", rate=rate, layout="5.1" if places else f"{channels}c", bit_rate=BIT_RATE * channels
    )
    track.codec_context.flags |= Flags.bitexact
    resampler = av.AudioResampler(track.format, track.layout, rate, options={"async": "1"})

    def encode(packet: Packet) -> Iterator[Packet]:
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            return
        if places:
            frames = (mixed_down(frame, places) for frame in frames)
        for frame in frames if packet.size else [*frames, None]:
            for resampled in resampler.resample(frame):
                yield from track.encode(resampled)
        if not packet.size:
            yield from track.encode(None)

    return encode


def mixed_down(frame: AudioFrame, places: Sequence[str]) -> AudioFrame:
    """Sound of channels that ``_SURROUND`` names, in these places, as 5.1 in floating point."""
    from av import AudioFrame

    samples = _samples(frame)
    weights = np.array([[_SURROUND[name].get(place, 0.0) for name in places] for place in _PLACES], np.float32)
    mixed = AudioFrame.from_ndarray((weights @ samples).clip(-1, 1), format="fltp", layout="5.1")
    mixed.sample_rate, mixed.pts, mixed.time_base = frame.sample_rate, frame.pts, frame.time_base
    return mixed


def _samples(frame: AudioFrame) -> np.ndarray:
    """(C,N) float32 in [-1,1]. PyAV's own ``to_ndarray`` takes eight planes for nine."""
    from av.audio.frame import format_dtypes

    channels = len(frame.layout.channels)
    dtype = np.dtype(format_dtypes[frame.format.name])
    if frame.format.is_packed:
        raw = np.frombuffer(bytes(frame.planes[0]), dtype, frame.samples * channels).reshape(-1, channels).T
    else:
        raw = np.stack([np.frombuffer(bytes(plane), dtype, frame.samples) for plane in frame.planes[:channels]])
    if dtype == np.uint8:
        return (raw.astype(np.float32) - 128) / 128
    full = float(np.iinfo(dtype).max) + 1 if dtype.kind == "i" else 1.0
    return raw.astype(np.float32) / full


def unsigned_mp3(packet: bytes) -> bytes:
    """The packet with zeros where its encoder named itself, in what fills up a frame."""
    return _NAME_IN_MP3.sub(lambda found: bytes(len(found[0])), packet)


def unsigned_aac(packet: bytes) -> bytes:
    """The packet with zeros in the fill and data elements before its sound, where encoders name themselves.

    Of ISO/IEC 14496-3's raw_data_block, behind an ADTS header if there is one.
    """
    total = 8 * len(packet)
    bits = int.from_bytes(packet, "big")
    at = 0
    if packet[:1] == b"\xff" and packet[1:2] and packet[1] & 0xF6 == 0xF0:
        at = 56 if packet[1] & 1 else 72

    def read(count: int) -> int:
        nonlocal at
        at += count
        return bits >> max(total - at, 0) & (1 << count) - 1

    while at + 3 <= total and (element := read(3)) in (_FILL, _DATA):
        if element == _DATA:
            read(4)
            is_aligned, length = read(1), read(8)
            length += read(8) if length == 255 else 0
            at = -(-at // 8) * 8 if is_aligned else at
        else:
            length = read(4)
            length += read(8) - 1 if length == 15 else 0
        end = at + 8 * length
        if end > total:
            break
        # A fill element whose type is above 2 says something about the sound.
        if element == _DATA or length == 0 or bits >> total - at - 4 & 15 <= 2:
            bits &= ~(((1 << end - at) - 1) << total - end)
        at = end
    return bits.to_bytes(len(packet), "big")
