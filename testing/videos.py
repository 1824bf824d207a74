"""Videos that tests write and read, and what tells two of them apart."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from diffprivacy.video.files import clip, open_video, read_frames
from diffprivacy.video.frames import Video
from diffprivacy.video.writing import join, part_writer

av = pytest.importorskip("av", "18", reason="videos need PyAV 18, which needs Python 3.11")

SECRET = "Jane Doe, 12 Elm Street"
MATRICES = {1: (0.2126, 0.0722), 2: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""Weights of red and blue in luma, by their number in ITU-T H.273; 2 says nothing and means BT.601."""


def picture(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Smooth, different under every rotation and reflection, and a little brighter from frame to frame."""
    y, x = np.mgrid[:height, :width]
    planes = (40 + x * 160 // (width - 1) + number, 40 + y * 160 // (height - 1), 60 + (2 * x + y) * 120 // (3 * width))
    return np.stack(planes, axis=-1).astype(np.uint8)


def yuv(rgb: np.ndarray, matrix: int, full: bool, bits: int = 8) -> np.ndarray:
    """(3,H,W) by the definition in ITU-T H.273, not by the library under test."""
    red, blue = MATRICES[matrix]
    r, g, b = np.moveaxis(rgb / 255, -1, 0)
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = np.stack(((b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)))
    scale = 2 ** (bits - 8)
    if full:
        planes = np.concatenate((luma[None] * (256 * scale - 1), chroma * (256 * scale - 1) + 128 * scale))
    else:
        planes = np.concatenate(((luma[None] * 219 + 16) * scale, (chroma * 224 + 128) * scale))
    return planes.round().astype(np.uint8 if bits == 8 else np.uint16)


def video_frame(rgb: np.ndarray, pix_fmt: str, matrix: int, full: bool) -> av.VideoFrame:
    bits = 10 if "10" in pix_fmt else 8
    planes = yuv(rgb, matrix, full, bits)
    frame = av.VideoFrame(rgb.shape[1], rgb.shape[0], pix_fmt)
    for i, (plane, values) in enumerate(zip(frame.planes, planes, strict=True)):
        if i and "420" in pix_fmt:
            # Colour as H.264 and HEVC place it: at the left column, between two rows.
            values = np.pad(values.astype(float), ((0, values.shape[0] % 2), (1, 1)), mode="edge")
            rows = (values[::2] + values[1::2]) / 2
            values = ((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4)[:, ::2].round().astype(planes.dtype)
        room = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
        room[:, : plane.width] = values
        plane.update(room.tobytes())
    return frame


def write_source(
    path: Path,
    pictures: list[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    matrix: int = 1,
    full: bool = False,
    times: list[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    rotation: tuple[float, bool] | None = None,
    sound: tuple[str, ...] = (),
    sound_start: Fraction = Fraction(0),
    sound_rate: int = 48000,
    metadata: dict[str, str] | None = None,
    **properties,
) -> Path:
    """A video whose pictures and sound are interleaved; times count in ``time_base``."""
    times = times or list(range(len(pictures)))
    height, width, _ = pictures[0].shape
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(
            codec,
            rate=25,
            width=width,
            height=height,
            pix_fmt=pix_fmt,
            time_base=time_base,
            options={"crf": "4", "bf": "2"} if options is None else options,
            colorspace=matrix,
            color_range=2 if full else 1,
            **properties,
        )
        stream.metadata.update(metadata or {})
        if rotation:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        tracks = [container.add_stream(name, rate=sound_rate, layout="stereo") for name in sound]
        for track in tracks:
            track.metadata.update(metadata or {})
        packets = []
        for rgb, time in zip(pictures, times, strict=True):
            frame = video_frame(rgb, pix_fmt, matrix, full)
            frame.pts, frame.time_base = time, time_base
            packets += stream.encode(frame)
        packets += stream.encode()
        for number, track in enumerate(tracks):
            packets += tone(track, sound_start, float(times[-1] * time_base), 440 * (number + 1))
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def tone(track, start: Fraction, end: float, pitch: float) -> list[av.Packet]:
    rate = track.rate
    wave = np.sin(np.arange(round(float(end - start) * rate)) * 2 * np.pi * pitch / rate) * 8000
    packets = []
    for at in range(0, len(wave), 1024):
        stereo = np.repeat(wave[at : at + 1024].astype(np.int16), 2)[None]
        frame = av.AudioFrame.from_ndarray(stereo, format="s16", layout="stereo")
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = at + round(start * rate)
        packets += track.encode(frame)
    return packets + track.encode()


def protect(
    source: Path,
    target: Path,
    pieces: int = 2,
    sound: bool = True,
    span: tuple[float | None, float | None] = (None, None),
) -> Video:
    """The source, or a span of its seconds, through parts and back into a file, its frames as they are."""
    video = clip(open_video(source), *span)
    frames = list(read_frames(video))
    parts = []
    for i, some in enumerate(np.array_split(np.arange(len(frames)), pieces)):
        parts.append(target.with_name(f"{target.stem}-{i}.part"))
        with part_writer(parts[-1], video) as write:
            for number in some:
                write(frames[number])
    join(parts, video, target, sound)
    return open_video(target)


def pixels(path: Path) -> list[np.ndarray]:
    return [frame.pixels for frame in read_frames(open_video(path))]


def seconds(path: Path) -> list[Fraction]:
    video = open_video(path)
    return [frame.time * video.time_base for frame in read_frames(video)]


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    top = np.iinfo(one.dtype).max
    return 10 * np.log10(top**2 / ((one.astype(float) - other) ** 2).mean())


def sound_packets(path: Path, track: int = 0) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[track]
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in container.demux(stream) if packet.size]


def left_channel(path: Path) -> tuple[float, np.ndarray]:
    """When the sound begins, in seconds, and its left channel (n,) in [-1,1], at 48 kHz."""
    resampler = av.AudioResampler("fltp", "stereo", 48000)
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    start = float(frames[0].pts * frames[0].time_base)
    return start, np.concatenate([part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)])


def onset(path: Path) -> float:
    """When the tone begins, in seconds: encoders put some silence before it."""
    start, wave = left_channel(path)
    return start + np.argmax(np.abs(wave) > 0.05) / 48000


def rewritten(source: Path, target: Path, keep: Callable[[av.Packet], bool]) -> Path:
    """The same packets but for those that are not to be kept."""
    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        streams = [output.add_stream_from_template(stream, opaque=True) for stream in container.streams]
        for packet in container.demux():
            if packet.size and keep(packet):
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    return target
