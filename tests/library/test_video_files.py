"""Videos come in as they look and go out as nothing but pictures and sound."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffprivacy.video.files import open_video, read_frames
from testing.videos import (
    MATRICES,
    SECRET,
    av,
    picture,
    pixels,
    protect,
    psnr,
    seconds,
    tone,
    video_frame,
    write_source,
)


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
    for word in ("Jane", "JANE", "Elm", "52.5", "2024", "camera", "fry", "Lavf", "Lavc", "x264", "text", "chap"):
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
