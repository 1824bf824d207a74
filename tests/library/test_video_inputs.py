"""What is taken for a video: one file of a known kind and size, and of its tracks the film."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from diffprivacy.video import files
from diffprivacy.video.files import open_video, read_frames
from testing.clear_errors import assert_one_clear_error
from testing.videos import av, picture, pixels, protect, video_frame, write_source


def read(path: Path) -> None:
    list(read_frames(open_video(path)))


PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile clip.mp4\n",
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>clip.mp4</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "RTSP text": "[reference]\nRef1=clip.mp4\n",
    "lavfi": "testsrc=size=64x64:rate=5:duration=1",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".mkv"])
def test_what_points_to_other_files_is_no_video(tmp_path, monkeypatch, kind, suffix):
    monkeypatch.chdir(tmp_path)
    write_source(tmp_path / "clip.mp4", [picture(i) for i in range(3)])
    playlist = tmp_path / f"list{suffix}"
    playlist.write_text(PLAYLISTS[kind])
    assert_one_clear_error(read, playlist, "not a video")


def test_a_name_with_a_pattern_is_a_name(tmp_path):
    """FFmpeg takes such names for a numbered series of pictures."""
    source = write_source(tmp_path / "clip%02d.mp4", [picture(i) for i in range(3)])
    for i in range(3):
        (tmp_path / f"clip0{i}.mp4").write_bytes(b"none")
    assert len(pixels(source)) == 3


def test_a_track_that_lies_in_another_file_is_not_followed(tmp_path, monkeypatch):
    """QuickTime may name a file for a track's samples."""
    monkeypatch.chdir(tmp_path)
    source = write_source(tmp_path / "clip.mov", [picture(i) for i in range(3)])
    data = source.read_bytes()
    reference = data.index(b"dref")
    entry = data[reference + 12 : reference + 24]
    assert entry[4:8] in (b"url ", b"alis")
    outside = bytearray(data)
    outside[reference + 16 : reference + 20] = b"url "
    outside[reference + 20 : reference + 24] = bytes(4)
    (tmp_path / "outside.mov").write_bytes(outside)
    frames = pixels(tmp_path / "outside.mov")
    assert all(np.array_equal(one, other) for one, other in zip(frames, pixels(source), strict=True))


def test_pipes_and_devices_are_refused_unopened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    assert_one_clear_error(read, tmp_path / "pipe.mp4", "a pipe or a device")
    assert_one_clear_error(read, tmp_path / "device.mp4", "a pipe or a device")
    assert_one_clear_error(read, tmp_path / "loop.mp4", "cannot be read")


def test_frames_that_are_too_large_are_refused_before_any_is_decoded(tmp_path):
    """Eight blank frames of 8192x8192 are 0.2 MB."""
    path = tmp_path / "large.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25, width=8192, height=8192, pix_fmt="yuvj420p")
        frame = av.VideoFrame(8192, 8192, "yuvj420p")
        for plane in frame.planes:
            plane.update(np.full(plane.buffer_size, 128, np.uint8))
        container.mux([*stream.encode(frame), *stream.encode()])
    assert_one_clear_error(read, path, "too large: frames of 8192x8192", "scale it down")


def test_frames_that_grow_on_the_way_are_refused(tmp_path, monkeypatch):
    one = write_source(tmp_path / "one.ts", [picture(i) for i in range(5)])
    two = write_source(tmp_path / "two.ts", [picture(i, 256, 512) for i in range(5)], times=list(range(5, 10)))
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    assert len(pixels(both)) == 10
    monkeypatch.setattr(files, "MOST_PIXELS", 128 * 128)
    assert_one_clear_error(read, both, "damaged at 00:00")


def with_tracks(path: Path, *tracks: tuple[str, int, int], default: int | None = None) -> Path:
    """A file of several video tracks, each of a codec, a number of frames and a height."""
    from av.stream import Disposition

    with av.open(str(path), "w") as container:
        streams, packets = [], []
        for number, (codec, _, height) in enumerate(tracks):
            pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream = container.add_stream(codec, rate=25, width=96, height=height, pix_fmt=pix_fmt)
            stream.disposition = Disposition.default if number == default else Disposition(0)
            streams.append(stream)
        for stream, (codec, frames, height) in zip(streams, tracks, strict=True):
            pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for i in range(frames):
                frame = video_frame(picture(i, height), pix_fmt, 1, codec == "mjpeg")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                packets += stream.encode(frame)
            packets += stream.encode()
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


@pytest.mark.parametrize("suffix", [".mkv", ".mov"])
@pytest.mark.parametrize("default", [0, 1])
def test_a_still_picture_before_the_film_is_not_the_film(tmp_path, suffix, default):
    source = with_tracks(tmp_path / f"source{suffix}", ("mjpeg", 1, 32), ("libx264", 12, 64), default=default)
    video = open_video(source)
    assert (video.stream, video.height) == (1, 64)
    assert video.left_out == ("video track 0 (mjpeg, 96x32)",)
    copy = protect(source, tmp_path / "copy.mp4")
    assert (copy.height, len(pixels(tmp_path / "copy.mp4")), copy.left_out) == (64, 12, ())


@pytest.mark.parametrize(("default", "taken"), [(None, 0), (1, 1)])
def test_of_two_films_the_default_one_is_taken(tmp_path, default, taken):
    source = with_tracks(tmp_path / "source.mkv", ("libx264", 20, 32), ("libx264", 18, 64), default=default)
    video = open_video(source)
    assert video.stream == taken
    assert len(video.left_out) == 1


def test_a_default_trailer_does_not_take_the_place_of_the_film(tmp_path):
    source = with_tracks(tmp_path / "source.mkv", ("libx264", 4, 32), ("libx264", 40, 64), default=0)
    assert open_video(source).height == 64
