"""Videos at the command line: one new face for a person, in every frame, with the sound."""

from __future__ import annotations

import contextlib
import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyrage
import pytest
import skimage.data
import torch

from diffprivacy import demo
from diffprivacy.cli import main
from diffprivacy.commands import protect_video
from diffprivacy.diffusion.temporal import smoothing_weights
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import crop_face, crop_landmarks, protected_mask
from diffprivacy.media.disclosure import SOURCE_TYPE
from diffprivacy.media.images import Picture, values, write_picture
from diffprivacy.presets import PRESETS
from diffprivacy.regeneration import Regeneration, latent_shape, regenerate_crops
from diffprivacy.video import protect, regeneration
from diffprivacy.video.sound import unsigned_aac
from testing.videos import av, pixels, psnr, seconds, sound_packets, write_source

pytestmark = pytest.mark.usefixtures("models_loaded_once")
QUICK = ["--steps", "3", "--strength", "0.9", "--unguided"]
FRAMES = 12


def astronaut(frames: int = FRAMES, left: int = 100, speed: int = 2) -> list[np.ndarray]:
    """Frames of 240x240 with a face, across which the camera pans."""
    photo = skimage.data.astronaut()
    return [np.ascontiguousarray(photo[0:240, left + speed * i : left + speed * i + 240]) for i in range(frames)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The face, which a grey card hides from the detector in two frames, and sound."""
    frames = astronaut()
    for number in (5, 6):
        frames[number][60:150, :] = 128
    return write_source(tmp_path_factory.mktemp("clips") / "clip.mp4", frames, options={"crf": "8"}, sound=("aac",))


@pytest.fixture(scope="module")
def protected(clip, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("protected")
    assert main(["anonymize", str(clip), "-o", str(out), *QUICK]) == 0
    return out / "clip.mp4"


def face_in(frame: np.ndarray):
    (face,) = load_detector(None).detect(values(frame))
    return face


def change(before: np.ndarray, after: np.ndarray, where: torch.Tensor) -> float:
    """Mean difference in levels of 255."""
    return float(np.abs(before.astype(float) - after)[where.numpy()].mean())


def test_every_frame_has_a_new_face_and_the_rest_stays(clip, protected):
    before, after = pixels(clip), pixels(protected)
    assert len(after) == FRAMES
    for number in (0, 3, 8, 11):
        mask = protected_mask(before[number].shape, [face_in(before[number])], demo.MARGIN)
        assert change(before[number], after[number], mask == 1) > 4
        assert change(before[number], after[number], mask == 0) < 1.5
    assert seconds(protected) == seconds(clip)


def test_a_face_that_the_detector_misses_is_protected_all_the_same(clip, protected):
    """Frames 5 and 6: what the card leaves of the face, above and below it."""
    before, after = pixels(clip), pixels(protected)
    assert load_detector(None).detect(values(before[5])) == []
    place = protected_mask(before[4].shape, [face_in(before[4])], demo.MARGIN) == 1
    for number in (5, 6):
        assert change(before[number], after[number], place) > 4


def test_the_sound_and_the_mark_are_there_or_left_out(clip, protected, tmp_path):
    heard = [unsigned_aac(data) for _, data in sound_packets(clip)]
    assert heard
    assert [data for _, data in sound_packets(protected)] == heard
    assert main(["anonymize", str(clip), "-o", str(tmp_path), *QUICK, "--no-sound", "--no-disclosure"]) == 0
    marked = [SOURCE_TYPE.encode() in path.read_bytes() for path in (protected, tmp_path / "clip.mp4")]
    assert marked == [True, False]
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pieces of four frames, of which the second is interrupted once; how many crops each redrawing was of."""
    monkeypatch.setattr(protect, "PIECE_FRAMES", (4, 4))
    regenerate, calls = regeneration.regenerate_crops, []

    def interrupted(crops, *arguments, **options):
        calls.append(len(crops))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return regenerate(crops, *arguments, **options)

    monkeypatch.setattr(regeneration, "regenerate_crops", interrupted)
    return calls


def test_an_interrupted_video_goes_on_and_ends_the_same(tmp_path, stopped, capsys):
    source = write_source(tmp_path / "secret name.mp4", astronaut(8))
    out, once = tmp_path / "out", tmp_path / "once"
    command = ["anonymize", str(source), *QUICK, "--seed", "7", "-o"]
    assert main([*command, str(out)]) == 130
    (unfinished,) = out.iterdir()
    assert sorted(path.name for path in unfinished.iterdir()) == ["000000.nut", "job.json"]
    assert "secret" not in (unfinished / "job.json").read_text()
    assert (unfinished / "job.json").stat().st_mode & 0o777 == 0o600
    assert main([*command, str(out)]) == 0
    assert stopped == [8, 8, 8]
    assert [path.name for path in out.glob("[!.]*")] == ["secret name.mp4"]
    assert main([*command, str(once)]) == 0
    for one, other in zip(pixels(out / "secret name.mp4"), pixels(once / "secret name.mp4"), strict=True):
        assert np.array_equal(one, other)
    assert main([*command, str(out)]) == 0
    assert "1 already done" in capsys.readouterr().out


def test_an_unfinished_video_whose_record_a_power_cut_has_emptied_begins_anew(tmp_path, stopped):
    source = write_source(tmp_path / "clip.mp4", astronaut(8))
    command = ["anonymize", str(source), "-o", str(tmp_path / "out"), *QUICK]
    assert main(command) == 130
    (record,) = tmp_path.glob("out/.*/job.json")
    record.write_bytes(b"")
    assert main(command) == 0
    assert stopped == [8, 8, 8, 8]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".diffprivacy.json", "clip.mp4"]


def test_names_as_long_as_names_can_be(tmp_path, capsys):
    source = write_source(tmp_path / ("n" * 251 + ".mp4"), astronaut(2))
    assert main(["anonymize", str(source), "-o", str(tmp_path / "out"), *QUICK]) == 0
    assert len(pixels(tmp_path / "out" / source.name)) == 2
    too_long = write_source(tmp_path / ("n" * 252 + ".ts"), astronaut(2))
    assert main(["anonymize", str(too_long), "-o", str(tmp_path / "out"), *QUICK]) == 1
    assert "File name too long" in capsys.readouterr().err


def test_other_settings_begin_anew(tmp_path, stopped):
    source = write_source(tmp_path / "clip.mp4", astronaut(8))
    command = ["anonymize", str(source), "-o", str(tmp_path / "out"), *QUICK]
    assert main([*command, "--strength", "0.6"]) == 130
    assert main([*command, "--strength", "1"]) == 0
    assert stopped == [8, 8, 8, 8]


def test_frames_flicker_less_than_alone(demo_model):
    """Second differences over time in the face, with the same noise in every frame."""
    frames = astronaut(8, speed=1)
    faces = [face_in(frame) for frame in frames]
    crops = torch.stack([crop_face(values(f), a, 128, demo.MARGIN) for f, a in zip(frames, faces, strict=True)])
    landmarks = torch.stack([crop_landmarks(face, 128, demo.MARGIN) for face in faces])
    noise = torch.randn(1, *latent_shape(demo_model, 128), generator=torch.Generator().manual_seed(0))
    preset = dataclasses.replace(PRESETS["anonymize"]["default"], steps=10)
    how = Regeneration(preset)

    def jitter(smoothing: torch.Tensor | None) -> float:
        same, smooth = noise.expand(8, -1, -1, -1), dataclasses.replace(how, smoothing=smoothing)
        new = regenerate_crops(crops.movedim(-1, 1), landmarks, same, demo_model, smooth)
        return float(new.diff(n=2, dim=0).abs()[..., 32:96, 32:96].mean())

    assert jitter(smoothing_weights([i / 25 for i in range(8)], 1 / 25)) < 0.6 * jitter(None)


def test_sealed_videos_come_back_to_the_last_bit(clip, tmp_path, capsys):
    identity, other = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    (tmp_path / "friend.txt").write_text(str(identity))
    (tmp_path / "stranger.txt").write_text(str(other))
    out = tmp_path / "out"
    assert main(["hide", str(clip), "-o", str(out), *QUICK, "--seal-to", str(identity.to_public())]) == 0
    assert sorted(path.name for path in out.glob("[!.]*")) == ["clip.mp4", "clip.mp4.age"]
    assert psnr(np.stack(pixels(out / "clip.mp4")), np.stack(pixels(clip))) < 30
    back = tmp_path / "back"
    command = ["recover", str(out), "-o", str(back)]
    assert main([*command, "--identity-file", str(tmp_path / "stranger.txt")]) == 1
    assert "encrypted to other recipients" in capsys.readouterr().err
    assert not back.exists()
    assert main([*command, "--identity-file", str(tmp_path / "friend.txt")]) == 0
    assert (back / "clip.mp4").read_bytes() == clip.read_bytes()
    sealed = out / "clip.mp4.age"
    sealed.write_bytes(sealed.read_bytes()[:-100])
    assert main([*command, "--overwrite", "--identity-file", str(tmp_path / "friend.txt")]) == 1
    assert "damaged" in capsys.readouterr().err
    assert (back / "clip.mp4").read_bytes() == clip.read_bytes()
    sealed.unlink()
    assert main([*command, "--overwrite", "--identity-file", str(tmp_path / "friend.txt")]) == 1
    assert "clip.mp4.age, and nothing does; name it with --key-file" in capsys.readouterr().err


def test_a_passphrase_seals_a_video_too(clip, tmp_path):
    (tmp_path / "passphrase").write_text("correct horse")
    phrase = ["--passphrase-file", str(tmp_path / "passphrase")]
    assert main(["anonymize", str(clip), "-o", str(tmp_path / "out"), *QUICK, *phrase]) == 0
    assert main(["recover", str(tmp_path / "out" / "clip.mp4"), "-o", str(tmp_path / "back"), *phrase]) == 0
    assert (tmp_path / "back" / "clip.mp4").read_bytes() == clip.read_bytes()


def test_a_video_without_a_face_is_an_error_unless_asked_for(tmp_path, capsys):
    empty = write_source(tmp_path / "empty.mp4", [np.full((96, 128, 3), 90, np.uint8)] * 5)
    out = tmp_path / "out"
    assert main(["anonymize", str(empty), "-o", str(out), *QUICK]) == 1
    assert "empty.mp4: No face was found in any frame" in capsys.readouterr().err
    assert not out.exists()
    assert main(["anonymize", str(empty), "-o", str(out), *QUICK, "--without-face", "copy"]) == 0
    assert len(pixels(out / "empty.mp4")) == 5


def test_where_no_face_was_found_is_said(tmp_path, capsys):
    frames = astronaut(6) + [np.full((240, 240, 3), 90, np.uint8)] * 5
    source = write_source(tmp_path / "mixed.mp4", frames)
    assert main(["anonymize", str(source), "-o", str(tmp_path / "out"), *QUICK]) == 0
    printed = capsys.readouterr()
    assert "(11 frames, 1 person, 0 faces carried over)" in printed.out
    assert "no face was detected from 0:00.2 to 0:00.4; review these times" in printed.err


def test_chosen_people_only(tmp_path):
    """Two people beside each other, of whom the second is to be protected."""
    pair = [np.concatenate([a, b[:, ::-1]], axis=1) for a, b in zip(astronaut(6), astronaut(6), strict=True)]
    source = write_source(tmp_path / "pair.mp4", pair, options={"crf": "8"})
    assert main(["anonymize", str(source), "-o", str(tmp_path / "out"), *QUICK, "--faces", "1"]) == 0
    after = pixels(tmp_path / "out" / "pair.mp4")
    left, right = load_detector(None).detect(values(pair[3]))
    for face, changed in ((left, False), (right, True)):
        inside = protected_mask(pair[3].shape, [face], demo.MARGIN) == 1
        assert (change(pair[3], after[3], inside) > 4) == changed


def test_a_person_is_spared_in_a_whole_video(tmp_path, capsys):
    frames = astronaut(6)
    source = write_source(tmp_path / "clip.mp4", frames, options={"crf": "8"})
    write_picture(tmp_path / "photo.png", Picture(torch.from_numpy(skimage.data.astronaut()).float() / 255))
    spare = ["--except", str(tmp_path / "photo.png")]
    assert main(["anonymize", str(source), "-o", str(tmp_path / "out"), *QUICK, *spare]) == 1
    assert "Nobody in the video is to be protected" in capsys.readouterr().err
    assert main(["anonymize", str(source), "-o", str(tmp_path / "out"), *QUICK, *spare, "--without-face", "copy"]) == 0
    assert psnr(np.stack(pixels(tmp_path / "out" / "clip.mp4")), np.stack(frames)) > 38
    only = ["--only", str(tmp_path / "photo.png")]
    assert main(["anonymize", str(source), "-o", str(tmp_path / "only"), *QUICK, *only]) == 0
    assert psnr(np.stack(pixels(tmp_path / "only" / "clip.mp4")), np.stack(frames)) < 32


@pytest.mark.parametrize("options", [["--variants", "2"], ["--keyed", "--passphrase-env", "PHRASE"]])
def test_options_for_pictures_are_refused(clip, tmp_path, capsys, monkeypatch, options):
    monkeypatch.setenv("PHRASE", "correct horse")
    assert main(["anonymize", str(clip), "-o", str(tmp_path), *QUICK, *options]) == 1
    assert "clip.mp4: --variants, --keyed and --key-per-face are for images" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_range_of_a_video_leaves_out_what_is_outside(clip, tmp_path, capsys):
    """Frames 2 to 7 of 12, and the sound packets that lie in their time, moved to the beginning."""
    out = tmp_path / "out"
    assert main(["anonymize", str(clip), "-o", str(out), "--start", "0:00.08", "--end", "0.32", *QUICK]) == 0
    assert "(6 frames, 1 person" in capsys.readouterr().out
    made = pixels(out / clip.name)
    assert seconds(out / clip.name) == [Fraction(i, 25) for i in range(6)]
    for frame, original in zip(made, pixels(clip)[2:8], strict=True):
        outside = protected_mask(frame.shape, [face_in(pixels(clip)[2])], 1.6).numpy() == 0
        assert psnr(frame[outside], original[outside]) > 35
    inside = [
        (time - Fraction(2, 25), data)
        for time, data in sound_packets(clip)
        if Fraction(2, 25) <= time and time + Fraction(1024, 48000) <= Fraction(8, 25)
    ]
    kept = sound_packets(out / clip.name)
    assert [data for _, data in kept] == [unsigned_aac(data) for _, data in inside]
    assert all(abs(time - expected) < 1e-3 for (time, _), (expected, _) in zip(kept, inside, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--start", "5"], "--start: {} ends before 5 s: its last frame is shown at 0.44 s."),
        (["--start", "0.42", "--end", "0.43"], "--end: {} has no frame from 0.42 to 0.43 s."),
        (["--start", "0.2", "--end", "0.2"], "--end: 0.2 s is not after 0.2 s"),
        (["--start", "1:2:3:4"], "1:2:3:4 is no time; write 90, 1:30 or 0:01:30"),
    ],
)
def test_a_range_that_holds_nothing_is_an_error(clip, tmp_path, capsys, options, message):
    with contextlib.suppress(SystemExit):
        assert main(["anonymize", str(clip), "-o", str(tmp_path), "--dry-run", *options]) in (1, 2)
    assert message.format(clip) in capsys.readouterr().err


def test_a_range_is_for_videos(tmp_path, capsys):
    write_picture(tmp_path / "a.png", Picture(values(astronaut(1)[0])))
    assert main(["anonymize", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--end", "9"]) == 2
    assert "--start and --end are for videos" in capsys.readouterr().err


def test_a_bad_video_does_not_stop_the_others(clip, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "bad.mp4").write_bytes(clip.read_bytes()[:3000])
    (folder / "good.mp4").write_bytes(clip.read_bytes())
    assert main(["anonymize", str(folder), "-o", str(tmp_path / "out"), *QUICK]) == 1
    assert "bad.mp4" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["good.mp4"]


def test_people_on_one_face_in_two_shots(data_dir, tmp_path):
    """A person in two shots gets one new face; two people get two. The judge, whose threshold at FAR 1e-3 is 0.33, did not
    guide."""
    from diffprivacy.identity.recognizers import load_recognizer
    from diffprivacy.media.images import read_picture

    detector = load_detector(data_dir / "detectors" / "yunet_n.onnx")
    judge = load_recognizer(data_dir / "recognizers" / "mobilefacenet_ms1m.onnx")
    one, other = sorted((data_dir / "photos" / "lfw250").iterdir())[:2]
    photos = [*sorted(one.iterdir())[:2], *sorted(other.iterdir())[:1]]
    frames = [np.ascontiguousarray((read_picture(p).rgb.numpy() * 255).astype(np.uint8)) for p in photos]
    source = write_source(tmp_path / "shots.mp4", [frame for frame in frames for _ in range(2)], options={"crf": "8"})
    detect = ["--detector", str(data_dir / "detectors" / "yunet_n.onnx"), "--faces", "all"]
    assert main(["anonymize", str(source), "-o", str(tmp_path / "out"), *detect, "--seed", "1", "--steps", "10"]) == 0

    def embedding(pictures, number):
        faces = detector.detect(values(pictures[number]))
        face = max(faces, key=lambda face: face.area)
        return judge.embed(values(pictures[number]).movedim(-1, 0)[None], torch.from_numpy(face.landmarks)[None])[0][0]

    before, after = ([embedding(pixels(path), n) for n in (0, 2, 4)] for path in (source, tmp_path / "out/shots.mp4"))
    assert after[0] @ after[1] > 0.33
    assert after[0] @ after[2] < 0.3
    assert max(float(a @ b) for a, b in zip(before, after, strict=True)) < 0.3


def test_tracks_that_are_not_taken_over_are_named(tmp_path, capsys):
    source = tmp_path / "film.mkv"
    with av.open(str(source), "w") as container:
        cover = container.add_stream("mjpeg", rate=25, width=64, height=64, pix_fmt="yuvj420p")
        film = container.add_stream("libx264", rate=25, width=240, height=240, pix_fmt="yuv420p")
        text = container.add_mux_stream("subrip", time_base=Fraction(1, 1000))
        grey = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
        container.mux([*cover.encode(grey), *cover.encode()])
        for frame in astronaut(6):
            container.mux(film.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(film.encode())
        said = av.Packet(b"Hello")
        said.stream, said.pts, said.dts, said.duration, said.time_base = text, 0, 0, 100, Fraction(1, 1000)
        container.mux(said)
    assert main(["anonymize", str(source), "-o", str(tmp_path / "out"), *QUICK]) == 0
    printed = capsys.readouterr()
    assert "6 frames, 1 person" in printed.out
    left_out = "not taken over: video track 0 (mjpeg, 64x64), subtitle track 2 (subrip)"
    assert f"warning: {source}: {left_out}" in printed.err


def test_sound_that_cannot_be_kept_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    source = write_source(tmp_path / "clip.mkv", astronaut(2), sound=("aac",))

    def refused(video):
        raise DiffPrivacyError("sound track 1 has 16 channels")

    monkeypatch.setattr(protect_video, "check_sound", refused)
    monkeypatch.setattr(protect_video, "follow_faces", None)
    assert main(["anonymize", str(source), "-o", str(tmp_path / "out"), *QUICK]) == 1
    assert "clip.mkv: sound track 1 has 16 channels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_face_that_a_flash_hides_is_protected_and_times_are_those_of_the_frames(tmp_path, capsys):
    """Two slow frames, then 30 a second; in frame 5 a flash hides all but the edge of the face."""
    frames = astronaut(11)
    frames[5] = (255 - (255 - frames[5].astype(int)) // 3).astype(np.uint8)
    frames[5][60:150, :] = 255
    times = [0, 150, 300, *[300 + i for i in range(1, 9)]]
    empty = [np.full((240, 240, 3), 90, np.uint8)] * 30
    source = write_source(
        tmp_path / "flash.mkv",
        frames + empty,
        times=[*times, *range(309, 339)],
        time_base=Fraction(1, 30),
        options={"crf": "8"},
    )
    assert load_detector(None).detect(values(frames[5])) == []
    assert main(["anonymize", str(source), "-o", str(tmp_path / "out"), *QUICK]) == 0
    printed = capsys.readouterr()
    assert "(41 frames, 1 person, " in printed.out
    assert "no face was detected from 0:10.3 to 0:11.3; review these times" in printed.err
    before, after = pixels(source), pixels(tmp_path / "out" / "flash.mp4")
    place = protected_mask(before[4].shape, [face_in(before[4])], demo.MARGIN) == 1
    for number in range(11):
        assert change(before[number], after[number], place) > 3, number
