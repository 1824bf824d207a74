"""The sound of a video goes with its pictures, unchanged where MP4 can hold it."""

import re
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.video.files import open_video
from diffprivacy.video.sound import _PLACES, check_sound, unsigned_aac, unsigned_mp3
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
        assert [unsigned_aac(data[head:]) for _, data in before] == [data for _, data in after]
        shifts = [float(one - two) for (one, _), (two, _) in zip(before, after, strict=True)]
        assert np.ptp(shifts) < 1e-3
    assert sound_packets(tmp_path / "copy.mp4", 0) != sound_packets(tmp_path / "copy.mp4", 1)


@pytest.mark.parametrize("codec", ["mp3", "ac3", "libopus", "flac", "alac"])
def test_other_sound_of_mp4_is_copied_too(tmp_path, codec):
    suffix = ".mov" if codec == "alac" else ".mkv"
    source = write_source(tmp_path / f"source{suffix}", [picture(i) for i in range(25)], sound=(codec,))
    protect(source, tmp_path / "copy.mp4")
    before, after = sound_packets(source), sound_packets(tmp_path / "copy.mp4")
    silent = unsigned_mp3 if codec == "mp3" else bytes
    assert [silent(data) for _, data in before] == [data for _, data in after]


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "aac"), (".ts", "aac"), (".mkv", "mp3")])
def test_copied_sound_does_not_name_its_encoder(tmp_path, suffix, codec):
    source = write_source(tmp_path / f"source{suffix}", [picture(i) for i in range(25)], sound=(codec,))
    protect(source, tmp_path / "copy.mp4")
    names = re.compile(rb"LAME|Lav[cf]|x264")
    assert any(names.search(data) for _, data in sound_packets(source))
    assert not names.search((tmp_path / "copy.mp4").read_bytes())
    (_, before), (_, after) = left_channel(source), left_channel(tmp_path / "copy.mp4")
    assert len(before) > 40_000
    # Times in Matroska are rounded, which moves where the decoder begins.
    assert any(np.array_equal(before[2:40_000], after[2 + shift : 40_000 + shift]) for shift in range(-2, 3))


def test_data_elements_of_aac_are_emptied_and_what_describes_sound_stays():
    """Elements of ISO/IEC 14496-3 written by hand: data (aligned), fill, dynamic range, end."""

    def element(*fields: tuple[int, int]) -> str:
        return "".join(f"{value:0{width}b}" for value, width in fields)

    text = [(byte, 8) for byte in b"Nero"]
    data = element((4, 3), (0, 4), (1, 1), (4, 8), *text)
    fill = element((6, 3), (5, 4), (0, 4), *text, (0, 4))
    dynamics = element((6, 3), (2, 4), (11, 4), (0xABC, 12))
    end = element((7, 3))
    zeros = element((4, 3), (0, 4), (1, 1), (4, 8), (0, 32)) + element((6, 3), (5, 4), (0, 40))

    def packed(bits: str) -> bytes:
        bits += "0" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8, "big")

    assert unsigned_aac(packed(data + fill + dynamics + end)) == packed(zeros + dynamics + end)
    assert unsigned_aac(b"") == b""
    assert unsigned_aac(packed(data)[:4]) == packed(data)[:4]


SURROUND = {
    "6.1": ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    "7.1": ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
    "7.1(wide)": ("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC"),
}


def with_channels(path, layout: str, count: int, codec: str = "pcm_s16le", sample: str = "s16"):
    """A film whose sound has a tone of its own in each channel, at 300 Hz and its multiples."""
    source = write_source(path.with_name("pictures.mkv"), [picture(i) for i in range(13)])
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        pictures = output.add_stream_from_template(container.streams.video[0], opaque=True)
        track = output.add_stream(codec, rate=48000, layout=layout)
        packets = [packet for packet in container.demux(video=0) if packet.size]
        time = np.arange(24000) / 48000
        wave = np.stack([np.sin(2 * np.pi * 300 * (n + 1) * time) for n in range(count)]) * 0.25
        packed = np.ascontiguousarray(wave.T.reshape(1, -1))
        kinds = {"s16": packed * 32768, "s32": packed * 2**31, "flt": packed, "u8": packed * 128 + 128}
        types = {"s16": np.int16, "s32": np.int32, "flt": np.float32, "u8": np.uint8}
        frame = av.AudioFrame.from_ndarray(kinds[sample].astype(types[sample]), format=sample, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        sounds = [*track.encode(frame), *track.encode(None)]
        for packet in packets:
            packet.stream = pictures
        for packet in [*packets, *sounds]:
            output.mux(packet)
    return path


def loudness(path, count: int) -> np.ndarray:
    """(6,count): how loud each tone is in each channel."""
    with av.open(str(path)) as container:
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    sound = sound[:, 4800:19200]
    time = np.arange(sound.shape[1]) / 48000
    tones = np.stack([np.exp(-2j * np.pi * 300 * (n + 1) * time) for n in range(count)])
    return 2 * np.abs(sound @ tones.T) / sound.shape[1] / 0.25


@pytest.mark.parametrize(
    ("layout", "codec", "sample"),
    [
        *[(layout, "pcm_s16le", "s16") for layout in SURROUND],
        ("7.1", "pcm_s24le", "s32"),
        ("7.1", "pcm_f32le", "flt"),
        ("7.1", "pcm_u8", "u8"),
        ("6.1", "wavpack", "s16"),
        ("7.1", "wavpack", "flt"),
    ],
)
def test_more_channels_than_six_are_mixed_down(tmp_path, layout, codec, sample):
    """The wrong way aborts the process: swresample cannot take seven or eight channels of 16 bits."""
    channels = SURROUND[layout]
    # Matroska does not say which channel is where: seven and eight are 6.1 and 7.1.
    suffix = ".mov" if codec == "pcm_s16le" else ".mkv"
    source = with_channels(tmp_path / f"source{suffix}", layout, len(channels), codec, sample)
    protect(source, tmp_path / "copy.mp4")
    with av.open(str(tmp_path / "copy.mp4")) as container:
        (track,) = container.streams.audio
        assert (track.name, track.channels, track.layout.name) == ("aac", 6, "5.1")
    heard = loudness(tmp_path / "copy.mp4", len(channels))
    side = 0.5**0.5
    shares = {"SL": {"BL": side}, "SR": {"BR": side}, "BC": {"BL": side, "BR": side}}
    shares |= {"FLC": {"FL": side, "FC": side}, "FRC": {"FR": side, "FC": side}}
    for n, name in enumerate(channels):
        for place, loud in zip(("FL", "FR", "FC", "LFE", "BL", "BR"), heard[:, n], strict=True):
            # AAC leaves out of the low-frequency channel what is above its range.
            if place != "LFE":
                assert loud == pytest.approx(shares.get(name, {name: 1}).get(place, 0), abs=0.08), (name, place)


ORDERS = {
    (128 << 16) | 8: ("FL", "FR", "FC", "LFE", "SL", "SR", "BL", "BR"),
    (126 << 16) | 8: ("FL", "FR", "FC", "LFE", "SL", "SR", "FLC", "FRC"),
    (124 << 16) | 6: ("FC", "FL", "FR", "SL", "SR", "LFE"),
    (116 << 16) | 4: ("FC", "FL", "FR", "BC"),
}
"""Channel layout tags of QuickTime, from CoreAudio's list, and the order of channels that they stand for."""


@pytest.mark.parametrize("tag", ORDERS)
def test_a_files_own_order_of_channels(tmp_path, tag):
    """The wrong way frees the list of channels twice, which aborts the process."""
    channels = ORDERS[tag]
    usual = {4: "4.0", 6: "5.1", 8: "7.1"}[len(channels)]
    source = with_channels(tmp_path / "source.mov", usual, len(channels), "pcm_s16le")
    data = bytearray(source.read_bytes())
    place = data.index(b"chan") + 8
    data[place : place + 4] = tag.to_bytes(4, "big")
    source.write_bytes(data)
    protect(source, tmp_path / "copy.mp4")
    heard = loudness(tmp_path / "copy.mp4", len(channels))
    half = 0.5**0.5
    side = half if "BL" in channels else 1
    shares = {"BC": ("BL", half), "SL": ("BL", side), "SR": ("BR", side), "FLC": ("FL", half), "FRC": ("FR", half)}
    for n, name in enumerate(channels):
        place, share = shares.get(name, (name, 1))
        if place != "LFE":
            assert heard[_PLACES.index(place), n] == pytest.approx(share, abs=0.08), name


def test_eight_channels_that_mp4_can_hold_are_copied(tmp_path):
    source = with_channels(tmp_path / "source.mkv", "7.1", 8, "flac")
    protect(source, tmp_path / "copy.mp4")
    assert [data for _, data in sound_packets(source)] == [data for _, data in sound_packets(tmp_path / "copy.mp4")]


def test_channels_of_no_known_place_are_refused_by_name(tmp_path):
    source = with_channels(tmp_path / "source.mkv", "hexadecagonal", 16)
    with pytest.raises(DiffPrivacyError, match=r"source\.mkv: sound track 1 has 16 channels .*--no-sound"):
        check_sound(open_video(source))
    protect(source, tmp_path / "copy.mp4", sound=False)
    assert len(seconds(tmp_path / "copy.mp4")) == 13


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


def test_of_a_range_the_sound_is_encoded_for_as_long(tmp_path):
    pictures = [picture(i) for i in range(25)]
    source = write_source(tmp_path / "source.mkv", pictures, sound=("pcm_s16le",), sound_start=Fraction(2, 5))
    copy = tmp_path / "copy.mp4"
    video = protect(source, copy, span=(0.2, 0.6))
    assert video.frames == 10
    assert seconds(copy)[0] == 0
    start, wave = left_channel(copy)
    assert abs(onset(copy) - 0.2) < 0.03
    assert abs(start + len(wave) / 48000 - 0.4) < 0.05


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
