"""The sound of a video goes with its pictures, unchanged where MP4 can hold it."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from testing.videos import av, left_channel, onset, picture, protect, rewritten, seconds, sound_packets, write_source


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
