"""Bad videos, and what stops on the way: one clear error, and no half file."""

import struct
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.video.files import open_video, read_frames
from diffprivacy.video.writing import join, part_writer
from testing.clear_errors import assert_one_clear_error
from testing.videos import av, picture, pixels, protect, psnr, seconds, tone, write_source


def read(path: Path) -> None:
    list(read_frames(open_video(path)))


def test_bad_files_get_one_clear_error(tmp_path):
    assert_one_clear_error(read, tmp_path / "missing.mp4", "no such file")
    assert_one_clear_error(read, tmp_path, "folder")

    text = tmp_path / "text.mp4"
    text.write_text("not a video\n" * 100)
    assert_one_clear_error(read, text, "not a video")

    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    assert_one_clear_error(read, empty, "not a video")

    for kind in ("PNG", "JPEG"):
        still = tmp_path / f"{kind}.mp4"
        Image.fromarray(picture(0)).save(still, kind)
        assert_one_clear_error(read, still, "not a video")

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
    assert_one_clear_error(read, sound, "no video")


def test_a_file_that_was_cut_off_is_an_error(tmp_path):
    whole = write_source(tmp_path / "whole.mp4", [picture(i) for i in range(25)], sound=("aac",))
    protect(whole, tmp_path / "head first.mp4")
    for path, words in ((whole, "damaged"), (tmp_path / "head first.mp4", "its end is missing")):
        data = path.read_bytes()
        cut = tmp_path / "cut.mp4"
        for length in (1000, len(data) // 2, len(data) * 9 // 10):
            cut.write_bytes(data[:length])
            assert_one_clear_error(read, cut, words)


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
    assert_one_clear_error(read, source, f"damaged at 00:0{seconds_in:.1f}")


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
    assert_one_clear_error(read, source, "damaged at 00:00.")


def test_time_that_starts_anew_is_an_error(tmp_path):
    source = write_source(tmp_path / "source.ts", [picture(i) for i in range(50)])
    source.write_bytes(source.read_bytes() * 2)
    assert_one_clear_error(read, source, "damaged at 00:0")


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
