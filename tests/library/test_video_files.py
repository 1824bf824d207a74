"""Videos come in as they look and go out as nothing but pictures and sound."""

import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.video.files import Video, join, open_video, part_writer, read_frames

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


def protect(source: Path, target: Path, pieces: int = 2, sound: bool = True) -> Video:
    """The source through parts and back into a file, its frames as they are."""
    video = open_video(source)
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


def test_parts_joined_are_the_frames_put_in(tmp_path):
    source = write_source(tmp_path / "source.mp4", [picture(i) for i in range(20)])
    video = open_video(source)
    assert (video.frames, video.rate, video.height, video.width, video.bit_depth) == (20, 25, 64, 96, 8)
    before = list(read_frames(video))
    assert all(frame.pixels.shape == (64, 96, 3) and frame.pixels.dtype == np.uint8 for frame in before)
    copy = protect(source, tmp_path / "copy.mp4", pieces=3)
    assert (copy.frames, copy.rate, copy.height, copy.width, copy.bit_depth) == (20, 25, 64, 96, 8)
    after = pixels(tmp_path / "copy.mp4")
    assert len(after) == 20
    for i, (frame, again) in enumerate(zip(before, after, strict=True)):
        assert psnr(frame.pixels, picture(i)) > 40
        assert psnr(frame.pixels, again) > 40
    assert seconds(tmp_path / "copy.mp4") == seconds(source)


def test_frames_are_numbered_in_the_order_they_are_shown(tmp_path):
    video = open_video(write_source(tmp_path / "source.mp4", [picture(3 * i) for i in range(12)]))
    everything = list(read_frames(video))
    assert all(one.pixels.mean() < two.pixels.mean() and one.time < two.time for one, two in pairwise(everything))
    for start, stop in ((0, 1), (5, 9), (11, 12), (7, None), (10, 40), (12, None)):
        some = list(read_frames(video, start, stop))
        assert [frame.time for frame in some] == [frame.time for frame in everything[start:stop]]
        for frame, same in zip(some, everything[start:stop], strict=True):
            np.testing.assert_array_equal(frame.pixels, same.pixels)


LOSSLESS = {"qp": "0"}


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p"])
def test_colours_stay(tmp_path, pix_fmt, matrix, full):
    if full:
        pix_fmt = pix_fmt.replace("yuv", "yuvj")
    shown = [picture(i, 192, 256) for i in range(3)]
    source = write_source(
        tmp_path / "source.mp4",
        shown,
        pix_fmt=pix_fmt,
        matrix=matrix,
        full=full,
        options=LOSSLESS,
        color_primaries=9,
        color_trc=18,
    )
    copy = protect(source, tmp_path / "copy.mp4")
    assert (copy.primaries, copy.transfer, copy.matrix) == (9, 18, matrix)
    true, before, after = (
        np.stack(frames).astype(float) for frames in (shown, pixels(source), pixels(tmp_path / "copy.mp4"))
    )
    for difference in (before - true, after - before, after - true):
        assert np.abs(difference).mean() < 1
        assert np.abs(difference.mean(axis=(0, 1, 2))).max() < 0.5


def test_colours_neither_drift_nor_move_from_copy_to_copy(tmp_path):
    colourful = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    colourful = np.asarray(Image.fromarray(colourful).resize((256, 192), Image.Resampling.BICUBIC))
    source = write_source(tmp_path / "0.mp4", [colourful] * 2, full=True, pix_fmt="yuvj420p", options=LOSSLESS)
    for i in range(4):
        protect(tmp_path / f"{i}.mp4", tmp_path / f"{i + 1}.mp4", pieces=1)
    before, after = pixels(source)[0], pixels(tmp_path / "4.mp4")[0]
    assert np.abs((after - before.astype(float)).mean(axis=(0, 1))).max() < 0.5
    assert psnr(before, after) > 36


def test_rgb_sources_keep_their_colours(tmp_path):
    path = tmp_path / "source.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=96, height=64, pix_fmt="bgr0")
        frame = av.VideoFrame.from_ndarray(picture(0), format="rgb24").reformat(format="bgr0")
        container.mux([*stream.encode(frame), *stream.encode()])
    np.testing.assert_array_equal(pixels(path)[0], picture(0))
    copy = protect(path, tmp_path / "copy.mp4", pieces=1)
    assert copy.matrix == 1
    assert np.abs(pixels(tmp_path / "copy.mp4")[0] - picture(0).astype(float)).mean() < 1


def test_ten_bits_stay_ten_bits(tmp_path):
    ramp = np.broadcast_to(np.linspace(60, 90, 96)[None, :, None], (64, 96, 3))
    source = write_source(
        tmp_path / "source.mov",
        [ramp + i for i in range(4)],
        codec="libx265",
        pix_fmt="yuv420p10le",
        matrix=9,
        options={"x265-params": "lossless=1:log-level=none"},
        color_primaries=9,
        color_trc=18,
    )
    copy = protect(source, tmp_path / "copy.mp4")
    assert (copy.bit_depth, copy.primaries, copy.transfer, copy.matrix) == (16, 9, 18, 9)
    for i, (before, after) in enumerate(zip(pixels(source), pixels(tmp_path / "copy.mp4"), strict=True)):
        assert before.dtype == after.dtype == np.uint16
        assert np.abs(before / 257 - ramp - i).mean() < 0.5
        assert psnr(before, after) > 48
        # More levels than 8 bits have between 60 and 90.
        assert len(np.unique(after[32].mean(axis=1).round() // 64)) > 60
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p10le"
        assert container.streams.video[0].codec_context.codec_tag == "hvc1"


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_frames_come_out_upright(tmp_path, degrees, mirrored):
    stored = [picture(i) for i in range(3)]
    source = write_source(
        tmp_path / "source.mov", stored, rotation=(degrees, mirrored), sample_aspect_ratio=Fraction(4, 3)
    )
    upright = [np.rot90(rgb, degrees // 90) for rgb in stored]
    upright = [np.fliplr(rgb) if mirrored else rgb for rgb in upright]
    copy = protect(source, tmp_path / "copy.mp4")
    for video in (open_video(source), copy):
        assert (video.height, video.width) == upright[0].shape[:2]
        assert video.sample_aspect_ratio == (Fraction(4, 3) if degrees % 180 == 0 else Fraction(3, 4))
    for true, before, after in zip(upright, pixels(source), pixels(tmp_path / "copy.mp4"), strict=True):
        assert psnr(true, before) > 40
        assert psnr(true, after) > 38
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert "DISPLAYMATRIX" not in next(container.decode(video=0)).side_data


@pytest.mark.parametrize(("height", "width"), [(63, 96), (64, 95), (63, 95)])
def test_odd_sizes_repeat_the_last_row_and_column(tmp_path, height, width):
    shown = [picture(i, height, width) for i in range(3)]
    source = write_source(tmp_path / "source.mkv", shown, codec="libvpx-vp9", options={"crf": "4"})
    assert pixels(source)[0].shape == (height, width, 3)
    protect(source, tmp_path / "copy.mp4")
    for before, after in zip(pixels(source), pixels(tmp_path / "copy.mp4"), strict=True):
        assert after.shape == (64, 96, 3)
        assert psnr(before, after[:height, :width]) > 40


def test_a_size_that_changes_on_the_way_is_scaled_to_the_first(tmp_path):
    one = write_source(tmp_path / "one.ts", [picture(i) for i in range(5)])
    two = write_source(tmp_path / "two.ts", [picture(i, 32, 48) for i in range(5)], times=list(range(5, 10)))
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    frames = pixels(both)
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 10
    assert psnr(frames[7], picture(2)) > 30


@pytest.mark.parametrize(
    ("suffix", "time_base"),
    [(".mkv", Fraction(1, 1000)), (".mp4", Fraction(1, 90000)), (".mp4", Fraction(1001, 30000))],
)
def test_a_varying_frame_rate_keeps_the_time_of_every_frame(tmp_path, suffix, time_base):
    times = np.cumsum([0, 1, 1, 2, 33, 5, 1, 140, 7, 7, 3, 12]).tolist()
    source = write_source(
        tmp_path / f"source{suffix}", [picture(i) for i in range(12)], times=times, time_base=time_base
    )
    assert seconds(source) == [time * time_base for time in times]
    protect(source, tmp_path / "copy.mp4", pieces=4)
    assert seconds(tmp_path / "copy.mp4") == seconds(source)


def test_the_times_of_an_avi_with_b_frames(tmp_path):
    source = write_source(tmp_path / "source.avi", [picture(2 * i) for i in range(12)])
    assert seconds(source) == [Fraction(i, 25) for i in range(12)]
    assert [frame[..., 0].argmin() for frame in pixels(source)]
    assert all(one.mean() < two.mean() for one, two in pairwise(pixels(source)))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts"])
def test_aac_is_copied_packet_by_packet(tmp_path, suffix):
    source = write_source(tmp_path / f"source{suffix}", [picture(i) for i in range(25)], sound=("aac", "aac"))
    protect(source, tmp_path / "copy.mp4")
    for track in (0, 1):
        before, after = sound_packets(source, track), sound_packets(tmp_path / "copy.mp4", track)
        assert len(before) > 40
        # In a transport stream every packet begins with a header of seven bytes, which MP4 states once for all.
        head = 7 if suffix == ".ts" else 0
        assert [data[head:] for _, data in before] == [data for _, data in after]
        shifts = [float(one - two) for (one, _), (two, _) in zip(before, after, strict=True)]
        assert np.ptp(shifts) < 1e-3
    assert sound_packets(tmp_path / "copy.mp4", 0) != sound_packets(tmp_path / "copy.mp4", 1)


@pytest.mark.parametrize("codec", ["mp3", "ac3", "libopus", "flac", "alac"])
def test_other_sound_of_mp4_is_copied_too(tmp_path, codec):
    suffix = ".mov" if codec == "alac" else ".mkv"
    source = write_source(tmp_path / f"source{suffix}", [picture(i) for i in range(25)], sound=(codec,))
    protect(source, tmp_path / "copy.mp4")
    before, after = sound_packets(source), sound_packets(tmp_path / "copy.mp4")
    assert [data for _, data in before] == [data for _, data in after]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".mov", "pcm_s16le"), (".mkv", "pcm_s24le"), (".avi", "pcm_s16le"), (".mpg", "mp2")],
)
def test_other_sound_is_encoded_as_aac(tmp_path, suffix, codec):
    video_codec = "mpeg2video" if suffix == ".mpg" else "libx264"
    options = {"b": "4M"} if suffix == ".mpg" else None
    source = write_source(
        tmp_path / f"source{suffix}",
        [picture(i) for i in range(25)],
        sound=(codec,),
        codec=video_codec,
        options=options,
    )
    protect(source, tmp_path / "copy.mp4")
    with av.open(str(tmp_path / "copy.mp4")) as container:
        (track,) = container.streams.audio
        assert (track.name, track.rate, track.layout.name) == ("aac", 48000, "stereo")
    (_, before), (_, after) = left_channel(source), left_channel(tmp_path / "copy.mp4")
    assert abs(len(before) - len(after)) <= 1024
    middle = slice(9600, 28800)
    assert np.abs(before[middle] - after[middle]).max() < 0.03


@pytest.mark.parametrize(("times", "sound_start"), [((30, 80), "0"), ((0, 50), "0.731"), ((100, 150), "3.3")])
@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".mp4", "aac"), (".mkv", "aac"), (".ts", "aac"), (".mkv", "pcm_s16le"), (".mov", "pcm_s16le")],
)
def test_sound_and_picture_stay_together(tmp_path, suffix, codec, times, sound_start):
    source = write_source(
        tmp_path / f"source{suffix}",
        [picture(i % 20) for i in range(*times)],
        times=list(range(*times)),
        sound=(codec,),
        sound_start=Fraction(sound_start),
    )
    copy = tmp_path / "copy.mp4"
    protect(source, copy)
    assert abs((onset(source) - float(seconds(source)[0])) - (onset(copy) - float(seconds(copy)[0]))) < 1e-3
    assert np.ptp([float(one - two) for one, two in zip(seconds(source), seconds(copy), strict=True)]) < 1e-4
    assert min(float(seconds(copy)[0]), onset(copy)) < 0.03


def test_sound_that_goes_back_in_time_is_put_in_order(tmp_path):
    one = write_source(tmp_path / "one.ts", [picture(i) for i in range(25)], sound=("aac",))
    times, start = list(range(25, 50)), Fraction(1, 2)
    two = write_source(
        tmp_path / "two.ts", [picture(i) for i in range(25)], times=times, sound=("aac",), sound_start=start
    )
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    protect(both, tmp_path / "copy.mp4")
    heard = [time for time, _ in sound_packets(tmp_path / "copy.mp4")]
    assert len(heard) == len(sound_packets(both))
    assert all(one < two for one, two in pairwise(heard))


def rewritten(source: Path, target: Path, keep: Callable[[av.Packet], bool]) -> Path:
    """The same packets but for those that are not to be kept."""
    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        streams = [output.add_stream_from_template(stream, opaque=True) for stream in container.streams]
        for packet in container.demux():
            if packet.size and keep(packet):
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    return target


def test_a_gap_in_the_sound_stays_a_gap(tmp_path):
    source = write_source(tmp_path / "source.mkv", [picture(i) for i in range(50)], sound=("pcm_s16le",))
    gap = rewritten(
        source, tmp_path / "gap.mkv", lambda packet: packet.stream.type == "video" or not 500 <= packet.pts < 1200
    )
    protect(gap, tmp_path / "copy.mp4")
    start, wave = left_channel(tmp_path / "copy.mp4")
    loud = np.array([np.abs(part).max() > 0.1 for part in np.array_split(wave, 20)])
    assert abs(start + len(wave) / 48000 - 1.96) < 0.05
    assert loud[:4].all() and not loud[6:11].any() and loud[13:].all()


def test_sound_that_cannot_be_decoded_becomes_silence(tmp_path):
    source = write_source(tmp_path / "source.mkv", [picture(i) for i in range(63)], sound=("wavpack",))
    data = bytearray(source.read_bytes())
    for start, packet in sound_packets(source):
        if 1 <= start < 2:
            # Matroska leaves out what it can tell from the rest, at the beginning of each packet.
            at = data.index(packet[100:])
            data[at - 60 : at] = bytes(60)
    source.write_bytes(data)
    protect(source, tmp_path / "copy.mp4")
    start, wave = left_channel(tmp_path / "copy.mp4")
    assert abs(start + len(wave) / 48000 - 2.48) < 0.05
    assert np.abs(wave[:48000]).max() > 0.2
    assert np.abs(wave[50000:94000]).max() < 0.01
    assert np.abs(wave[98000:]).max() > 0.2


def test_rates_that_aac_does_not_know_become_48_khz(tmp_path):
    source = write_source(
        tmp_path / "source.mkv", [picture(i) for i in range(10)], sound=("pcm_s16le",), sound_rate=192_000
    )
    protect(source, tmp_path / "copy.mp4")
    assert len(left_channel(tmp_path / "copy.mp4")[1]) == pytest.approx(0.36 * 48000, abs=2048)


def test_sound_of_an_unknown_kind_is_left_out(tmp_path):
    source = write_source(tmp_path / "source.mkv", [picture(i) for i in range(10)], sound=("pcm_s16le", "aac"))
    source.write_bytes(source.read_bytes().replace(b"A_PCM/INT/LIT", b"A_XYZ/INT/LIT"))
    protect(source, tmp_path / "copy.mp4")
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert [stream.name for stream in container.streams] == ["h264", "aac"]


def test_sound_can_be_left_out(tmp_path):
    source = write_source(
        tmp_path / "source.mp4", [picture(i) for i in range(10)], times=list(range(50, 60)), sound=("aac",)
    )
    protect(source, tmp_path / "copy.mp4", sound=False)
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    assert seconds(tmp_path / "copy.mp4")[0] == 0


def write_source_full_of_secrets(path: Path) -> None:
    """Title, place and time on the file and its streams, a subtitle, a chapter and an attached picture."""
    tags = {
        "title": SECRET,
        "comment": SECRET,
        "location": "+52.5186+013.4081/",
        "creation_time": "2024-05-06T07:08:09Z",
    }
    tags |= {"handler_name": SECRET, "vendor_id": "JANE", "language": "fry", "encoder": "Jane Doe's camera"}
    with av.open(str(path), "w") as container:
        container.metadata.update(tags)
        stream = container.add_stream("libx264", rate=25, width=96, height=64, pix_fmt="yuv420p")
        track = container.add_stream("aac", rate=48000, layout="stereo")
        text = container.add_mux_stream("subrip" if path.suffix == ".mkv" else "mov_text", time_base=Fraction(1, 1000))
        for one in (stream, track, text):
            one.metadata.update(tags)
        container.set_chapters(
            [{"id": 0, "start": 0, "end": 500, "time_base": Fraction(1, 1000), "metadata": {"title": SECRET}}]
        )
        if path.suffix == ".mkv":
            container.add_attachment(f"{SECRET}.txt", "text/plain", SECRET.encode())
        packets = []
        for i in range(25):
            frame = video_frame(picture(i), "yuv420p", 1, False)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            packets += stream.encode(frame)
        packets += stream.encode()
        packets += tone(track, Fraction(0), 1, 440)
        words = SECRET.encode()
        said = av.Packet(words if path.suffix == ".mkv" else len(words).to_bytes(2, "big") + words)
        said.stream, said.pts, said.dts, said.duration, said.time_base = text, 100, 100, 500, Fraction(1, 1000)
        for packet in sorted([*packets, said], key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".mp4"])
def test_the_copy_holds_pictures_and_sound_and_nothing_else(tmp_path, suffix):
    source = tmp_path / f"source{suffix}"
    write_source_full_of_secrets(source)
    assert SECRET.encode() in source.read_bytes()
    protect(source, tmp_path / "copy.mp4")
    data = (tmp_path / "copy.mp4").read_bytes()
    for word in ("Jane", "JANE", "Elm", "52.5", "2024", "camera", "fry", "Lavf", "text", "chap"):
        assert word.encode() not in data
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert not container.chapters()
        # These an MP4 has always.
        tags = [container.metadata, *(stream.metadata for stream in container.streams)]
        assert set().union(*tags) <= {
            "major_brand",
            "minor_version",
            "compatible_brands",
            "language",
            "handler_name",
            "vendor_id",
        }
        assert [stream.metadata["handler_name"] for stream in container.streams] == ["VideoHandler", "SoundHandler"]
        assert {stream.metadata["language"] for stream in container.streams} == {"und"}
    assert len(pixels(tmp_path / "copy.mp4")) == 25


def assert_one_clear_error(path: Path, *words: str) -> None:
    with pytest.raises(DiffPrivacyError) as caught:
        list(read_frames(open_video(path)))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_bad_files_get_one_clear_error(tmp_path):
    assert_one_clear_error(tmp_path / "missing.mp4", "no such file")
    assert_one_clear_error(tmp_path, "folder")

    text = tmp_path / "text.mp4"
    text.write_text("not a video\n" * 100)
    assert_one_clear_error(text, "not a video")

    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    assert_one_clear_error(empty, "not a video")

    for kind in ("PNG", "JPEG"):
        still = tmp_path / f"{kind}.mp4"
        Image.fromarray(picture(0)).save(still, kind)
        assert_one_clear_error(still, "no video")

    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        track = container.add_stream("aac", rate=48000, layout="stereo")
        cover = container.add_stream(
            "png", width=96, height=64, pix_fmt="rgb24", disposition=av.stream.Disposition.attached_pic
        )
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(0))))
        container.mux(tone(track, Fraction(0), 1, 440))
    with av.open(str(sound)) as container:
        assert container.streams.video
    assert_one_clear_error(sound, "no video")


def test_a_file_that_was_cut_off_is_an_error(tmp_path):
    whole = write_source(tmp_path / "whole.mp4", [picture(i) for i in range(25)], sound=("aac",))
    protect(whole, tmp_path / "head first.mp4")
    for path, words in ((whole, "damaged"), (tmp_path / "head first.mp4", "its end is missing")):
        data = path.read_bytes()
        cut = tmp_path / "cut.mp4"
        for length in (1000, len(data) // 2, len(data) * 9 // 10):
            cut.write_bytes(data[:length])
            assert_one_clear_error(cut, words)


@pytest.mark.parametrize("seconds_in", [1, 2.24])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_a_damaged_frame_is_an_error_that_says_where(tmp_path, codec, seconds_in):
    options = {"x265-params": "log-level=none:bframes=0"} if codec == "libx265" else {"bf": "0", "crf": "4"}
    source = write_source(tmp_path / "source.mp4", [picture(i) for i in range(57)], codec=codec, options=options)
    with av.open(str(source)) as container:
        packets = {float(packet.pts * packet.time_base): packet for packet in container.demux(video=0) if packet.size}
        place, size = packets[seconds_in].pos, packets[seconds_in].size
    data = bytearray(source.read_bytes())
    data[place + 5 : place + size] = b"\xff" * (size - 5)
    source.write_bytes(data)
    assert len(list(read_frames(open_video(source), 0, 20))) == 20
    assert_one_clear_error(source, f"damaged at 00:0{seconds_in:.1f}")


def test_a_frame_that_the_decoder_of_hevc_leaves_out_is_an_error(tmp_path):
    options = {"x265-params": "log-level=none:bframes=3:b-pyramid=0:b-adapt=0"}
    source = write_source(tmp_path / "source.mp4", [picture(i) for i in range(50)], codec="libx265", options=options)
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        one, two, three = (float(packet.pts * packet.time_base) for packet in packets[21:24])
        assert two < three < one, "not a frame on which no other depends"
    data = bytearray(source.read_bytes())
    data[packets[22].pos + 5 : packets[22].pos + packets[22].size] = b"\xff" * (packets[22].size - 5)
    source.write_bytes(data)
    assert_one_clear_error(source, "damaged at 00:00.")


def test_time_that_starts_anew_is_an_error(tmp_path):
    source = write_source(tmp_path / "source.ts", [picture(i) for i in range(50)])
    source.write_bytes(source.read_bytes() * 2)
    assert_one_clear_error(source, "damaged at 00:0")


def test_two_frames_at_one_time_are_put_in_order(tmp_path):
    shown = [picture(i) for i in range(6)]
    source = write_source(tmp_path / "source.mkv", shown, codec="ffv1", options={}, times=[0, 1, 1, 1, 2, 3])
    times = seconds(source)
    assert len(times) == 6
    assert all(one < two for one, two in pairwise(times))
    protect(source, tmp_path / "copy.mp4")
    assert seconds(tmp_path / "copy.mp4") == times


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_frames_that_an_edit_list_cuts_away_stay_away(tmp_path, codec):
    options = {"x265-params": "log-level=none:bframes=0"} if codec == "libx265" else {"bf": "0"}
    source = write_source(tmp_path / "source.mp4", [picture(i) for i in range(25)], codec=codec, options=options)
    frames = pixels(source)
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        unit = int(1 / container.streams.video[0].time_base) // 25
    edit = data.index(b"elst") + 12
    data[edit : edit + 8] = struct.pack(">II", 600, 7 * unit)
    source.write_bytes(data)
    for frame, same in zip(pixels(source), frames[7:22], strict=True):
        np.testing.assert_array_equal(frame, same)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mpeg2video"])
def test_a_recording_that_begins_between_keyframes_is_read_from_the_first(tmp_path, codec):
    source = write_source(
        tmp_path / "source.ts", [picture(2 * i) for i in range(40)], codec=codec, options={"g": "10", "bf": "0"}
    )
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts]
    tables, cut = 3 * 188, tmp_path / "cut.ts"
    cut.write_bytes(source.read_bytes()[:tables] + source.read_bytes()[packets[4].pos :])
    first = next(packet for packet in packets[4:] if packet.is_keyframe)
    assert seconds(cut) == [time for time in seconds(source) if time >= first.pts * first.time_base]


def test_names_and_titles_in_any_letters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = write_source(Path("source.mkv"), [picture(0)] * 3, metadata={"title": "Sommer 24 x"})
    Path("12:30.mkv").write_bytes(plain.read_bytes().replace(b"Sommer 24 x", b"\xe9t\xe9 \xff\xfe 2024"))
    protect(Path("12:30.mkv"), Path("12:31.mp4"))
    assert len(pixels(Path("12:31.mp4"))) == 3


@pytest.mark.parametrize("reason", [KeyboardInterrupt, DiffPrivacyError])
def test_an_interrupted_part_leaves_nothing(tmp_path, reason):
    video = open_video(write_source(tmp_path / "source.mp4", [picture(i) for i in range(10)]))
    (tmp_path / "parts").mkdir()
    with pytest.raises(reason), part_writer(tmp_path / "parts" / "0", video) as write:
        for i, frame in enumerate(read_frames(video)):
            write(frame)
            if i == 5:
                raise reason("stop")
    assert not list((tmp_path / "parts").iterdir())


def test_a_part_appears_when_it_is_complete(tmp_path):
    video = open_video(write_source(tmp_path / "source.mp4", [picture(i) for i in range(10)]))
    with part_writer(tmp_path / "0", video) as write:
        for frame in read_frames(video, 4, 8):
            write(frame)
            assert not (tmp_path / "0").exists()
    again = list(read_frames(open_video(tmp_path / "0")))
    assert len(again) == 4
    assert all(psnr(frame.pixels, same.pixels) > 40 for frame, same in zip(read_frames(video, 4), again, strict=False))


def test_a_file_that_cannot_be_written_is_a_clear_error(tmp_path):
    video = open_video(write_source(tmp_path / "source.mp4", [picture(i) for i in range(3)]))
    part = tmp_path / "missing" / "0"
    with pytest.raises(DiffPrivacyError, match="cannot be written") as caught, part_writer(part, video) as write:
        for frame in read_frames(video):
            write(frame)
    assert str(part) in str(caught.value)

    with part_writer(tmp_path / "0", video) as write:
        for frame in read_frames(video):
            write(frame)
    target = tmp_path / "missing" / "copy.mp4"
    with pytest.raises(DiffPrivacyError, match="cannot be written") as caught:
        join([tmp_path / "0"], video, target)
    assert str(target) in str(caught.value)


def test_parts_that_do_not_belong_together_leave_what_was_there(tmp_path):
    parts = [tmp_path / "0", tmp_path / "1"]
    for part, height in zip(parts, (64, 48), strict=True):
        video = open_video(write_source(tmp_path / "source.mp4", [picture(i, height) for i in range(3)]))
        with part_writer(part, video) as write:
            for frame in read_frames(video):
                write(frame)
    target = tmp_path / "copy.mp4"
    target.write_bytes(b"before")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DiffPrivacyError, match="differently") as caught:
        join(parts, video, target)
    assert str(parts[1]) in str(caught.value)
    assert target.read_bytes() == b"before"
    assert sorted(tmp_path.iterdir()) == before


def test_without_pyav_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DiffPrivacyError, match="pip install 'av>=18'"):
        open_video(tmp_path / "source.mp4")


def test_an_old_pyav_is_told_from_a_missing_one(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "__version__", "16.0.1")
    with pytest.raises(DiffPrivacyError, match="av, 18 or later"):
        open_video(tmp_path / "source.mp4")
