"""Faces along a video: who is who, and that a face which the detector misses is still there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from diffprivacy import demo
from diffprivacy.commands.people import People
from diffprivacy.errors import DiffPrivacyError, NoFaceError
from diffprivacy.faces.geometry import ARCFACE_TEMPLATE, Face
from diffprivacy.video.tracks import Track, select_people, track_faces

RATE = 25
SIZE = (400, 600)
HALF = round(RATE / 2)


def face(x: float, y: float = 200, side: float = 112) -> Face:
    """A face of a given ArcFace crop's side, with the middle of its points at x, y."""
    points = (ARCFACE_TEMPLATE - ARCFACE_TEMPLATE.mean(axis=0)) * side / 112 + (x, y)
    return Face((x - 50, y - 60, x + 50, y + 60), points.astype(np.float32), 0.9)


def times(frames: int) -> list[float]:
    return [i / RATE for i in range(frames)]


def tracked(frames: list[list[Face]], *, at: Sequence[float] | None = None, **options) -> list[Track]:
    return track_faces(frames, SIZE, at or times(len(frames)), **options)


def moving(start: float, speed: float, frames: int, missing: Sequence[int] = ()) -> list[list[Face]]:
    return [[] if i in missing else [face(start + speed * i)] for i in range(frames)]


def both(a: list[list[Face]], b: list[list[Face]]) -> list[list[Face]]:
    return [sorted(x + y, key=lambda f: f.centre) for x, y in zip(a, b, strict=True)]


def places(track: Track) -> np.ndarray:
    """The middle's x in every frame."""
    return track.landmarks.mean(axis=1)[:, 0]


def test_a_face_is_one_track():
    (track,) = tracked(moving(200, 2, 50))
    assert (track.start, track.stop, track.person) == (0, 50, 0)
    assert track.seen.all()
    assert np.allclose(places(track), 200 + 2 * np.arange(50), atol=0.01)


def test_missed_frames_are_filled_between_their_neighbours():
    (track,) = tracked(moving(200, 2, 50, missing=range(20, 27)))
    assert np.flatnonzero(~track.seen).tolist() == list(range(20, 27))
    assert np.allclose(places(track), 200 + 2 * np.arange(50), atol=0.5)


def test_low_scores_count_where_a_track_leads_to_them_and_nowhere_else():
    """For two seconds a face is only doubtfully detected: where it is, or half a crop beside it, or never."""
    missing = range(20, 70)
    frames = moving(200, 0, 90, missing)
    there, beside = ([[face(200 + x)] if i in missing else [] for i in range(90)] for x in (0, 56))
    (whole,) = tracked(frames, doubtful=there)
    assert whole.seen.all() and np.allclose(places(whole), 200, atol=0.5)
    alone, wrong = tracked(frames), tracked(frames, doubtful=beside)
    assert len(alone) == len(wrong) == 2
    assert all(np.allclose(places(a), places(b)) for a, b in zip(alone, wrong, strict=True))
    assert not tracked([[] for _ in range(90)], doubtful=there)


def test_a_face_is_carried_on_before_its_first_and_after_its_last_detection():
    missing = [*range(0, 30), *range(60, 100)]
    (track,) = tracked(moving(200, 1, 100, missing))
    assert (track.start, track.stop) == (30 - HALF, 60 + HALF)
    assert np.allclose(places(track), 200 + np.arange(track.start, track.stop), atol=0.5)


def test_who_leaves_the_picture_is_not_carried_on_outside():
    (track,) = tracked(moving(500, 4, 60, missing=range(23, 60)))
    assert track.stop < 23 + HALF
    assert places(track).max() < SIZE[1]


def test_a_single_detection_is_protected_where_it_was_found_and_not_carried_on():
    frames: list[list[Face]] = [[] for _ in range(40)]
    frames[20] = [face(300)]
    (track,) = tracked(frames)
    assert (track.start, track.stop) == (20, 21)


def test_nothing_is_carried_over_a_cut():
    before, after = moving(200, 0, 30), moving(220, 0, 30)
    tracks = tracked(before + after, cuts=[30])
    assert [(track.start, track.stop) for track in tracks] == [(0, 30), (30, 60)]
    alone = tracked([*before[:20], *[[]] * 40], cuts=[25])
    assert [(track.start, track.stop) for track in alone] == [(0, 25)]


def test_a_long_absence_is_another_appearance():
    tracks = tracked(moving(200, 0, 120, missing=range(30, 90)))
    assert [(track.start, track.stop) for track in tracks] == [(0, 30 + HALF), (90 - HALF, 120)]


def test_detections_that_tremble_give_a_crop_that_does_not():
    generator = np.random.default_rng(0)
    steady = np.array([200 + 20 * np.sin(i / 8) for i in range(80)])
    (track,) = tracked([[face(x + generator.normal(0, 1.5))] for x in steady])

    def trembling(x):
        return np.abs(np.diff(x - steady, 2)).mean()

    detected = steady + np.random.default_rng(0).normal(0, 1.5, 80)
    assert trembling(places(track)) < 0.35 * trembling(detected)
    assert np.abs(places(track) - steady).max() < 3


def test_two_people_side_by_side_are_two_tracks_from_the_left():
    tracks = tracked(both(moving(400, 1, 40), moving(150, 1, 40)))
    assert [(round(places(track)[0]), track.person) for track in tracks] == [(150, 0), (400, 1)]


def test_people_who_cross_keep_their_numbers_by_their_embeddings():
    one, other = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    frames, embeddings = [], []
    for i in range(60):
        pair = sorted([(100 + 6 * i, one), (460 - 6 * i, other)], key=lambda p: p[0])
        frames.append([face(x) for x, _ in pair])
        embeddings.append([vector for _, vector in pair])
    tracks = tracked(frames, embeddings=embeddings)
    assert len(tracks) == 2
    for track in tracks:
        x = places(track)
        assert (np.diff(x) > 0).all() or (np.diff(x) < 0).all()


def test_a_person_who_comes_back_has_the_same_number():
    one, other = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    frames = moving(200, 0, 30) + moving(400, 0, 30) + moving(300, 0, 30)
    embeddings = [[one]] * 30 + [[other]] * 30 + [[one]] * 30
    tracks = tracked(frames, cuts=[30, 60], embeddings=embeddings)
    assert [track.person for track in tracks] == [0, 1, 0]
    assert [track.person for track in tracked(frames, cuts=[30, 60])] == [0, 1, 2]


def test_twins_in_one_frame_are_two_people():
    twin = np.array([1.0, 0.0])
    tracks = tracked(both(moving(150, 0, 20), moving(400, 0, 20)), embeddings=[[twin, twin]] * 20)
    assert [track.person for track in tracks] == [0, 1]


@pytest.mark.parametrize("frames", [0, 1, 2, 5])
def test_short_videos(frames):
    tracks = tracked(moving(200, 1, frames))
    assert sum(len(track.landmarks) for track in tracks) == frames


def test_choosing_people():
    big = [[face(400, side=150)] for _ in range(20)]
    tracks = tracked(both(moving(150, 0, 20), big))
    assert select_people(tracks, "all") == tracks
    assert [track.person for track in select_people(tracks, "largest")] == [1]
    assert [track.person for track in select_people(tracks, "0")] == [0]
    with pytest.raises(DiffPrivacyError, match=r"no person 2; the video has 2, numbered 0 to 1"):
        select_people(tracks, "2")
    with pytest.raises(DiffPrivacyError, match="'left' is none of all, largest, or numbers"):
        select_people(tracks, "left")
    with pytest.raises(NoFaceError, match="No face was found in any frame"):
        select_people([], "all")


def test_people_told_by_photos_are_protected_too_often_rather_than_too_rarely():
    """Two appearances are linked as one person's, and only the first is like the photo."""
    photo, other = np.array([1.0, 0.0]), np.array([0.3, 0.954])
    frames = moving(200, 0, 20) + moving(400, 0, 20)
    embeddings = [[np.array([0.8, 0.6])]] * 20 + [[other]] * 20
    tracks = tracked(frames, cuts=[20], embeddings=embeddings)
    assert [track.person for track in tracks] == [0, 0]

    def people(keep):
        return People(demo.load_recognizer("guide"), photo[None], 0.5, keep)

    assert people("only").in_video(tracks) == tracks
    assert people("all but").in_video(tracks) == tracks[1:]


SLOW_THEN_FAST = [0.0, 5.0, 10.0, *[10 + i / 30 for i in range(1, 40)]]
"""Two slow frames, then 30 a second: 4 a second in the mean."""


def test_a_miss_is_as_long_as_its_frames_are_shown():
    """0.4 seconds in the fast part are 12 frames."""
    frames = moving(200, 0, 42, missing=range(10, 22))
    (track,) = tracked(frames, at=SLOW_THEN_FAST)
    assert (track.start, track.stop) == (0, 42)
    assert np.flatnonzero(~track.seen).tolist() == list(range(10, 22))


def test_a_face_is_carried_on_for_half_a_second_of_its_own_frames():
    (track,) = tracked(moving(200, 0, 42, missing=[*range(2), *range(15, 42)]), at=SLOW_THEN_FAST)
    assert track.start == 1, "the frame beside it, though that was 5 seconds before"
    assert SLOW_THEN_FAST[track.stop - 1] == pytest.approx(SLOW_THEN_FAST[14] + 0.5)


def test_a_single_missed_frame_is_filled_however_long_it_is_shown():
    (track,) = tracked(moving(200, 0, 5, missing=[2]), at=[0.0, 4.0, 8.0, 12.0, 16.0])
    assert (track.start, track.stop, track.seen.sum()) == (0, 5, 4)


def test_movement_is_measured_in_seconds():
    """A face that moves evenly, missed in frames of different lengths, and carried on at the end."""
    at = np.cumsum([0, 1, 1, 4, 1, 2, 1, 1, 3, 1, 1, 1, 2, 1]) / 30
    frames = [[face(200 + 90 * time)] for time in at]
    frames[3] = frames[8] = frames[9] = frames[12] = frames[13] = []
    (track,) = tracked(frames, at=at.tolist())
    assert (track.start, track.stop) == (0, 14)
    assert np.allclose(places(track), 200 + 90 * at, atol=0.5)


def test_points_are_smoothed_as_savitzky_and_golay_did():
    from scipy.signal import savgol_filter

    generator = np.random.default_rng(0)
    x = 200 + np.cumsum(generator.normal(0, 2, 40))
    for rate, window, power in ((25, 7, 2), (30, 9, 2), (60, 17, 2), (12, 3, 1)):
        (track,) = tracked([[face(value)] for value in x], at=[i / rate for i in range(40)])
        filtered, inside = savgol_filter(x, window, power), slice(window // 2 + 1, -(window // 2) - 1)
        assert np.allclose(places(track)[inside], filtered[inside], atol=0.01)
        assert np.allclose(places(track), filtered, atol=2)


def test_points_before_a_pause_do_not_draw_those_after_it():
    """Half a second without a frame in which the face moved."""
    at = [*[i / 30 for i in range(10)], *[0.8 + i / 30 for i in range(10)]]
    (track,) = tracked([[face(200)]] * 10 + [[face(230)]] * 10, at=at)
    assert np.allclose(places(track), [200] * 10 + [230] * 10, atol=0.01)


def test_a_track_goes_on_beyond_a_flash_that_seemed_a_cut():
    """Frame 20 is a shot of its own, and the face was missed in it."""
    (track,) = tracked(moving(200, 1, 40, missing=[20]), cuts=[20, 21])
    assert (track.start, track.stop) == (0, 40)
    assert np.allclose(places(track), 200 + np.arange(40), atol=0.5)


def test_a_strobe_that_hides_every_other_frame():
    missing = range(10, 30, 2)
    (track,) = tracked(moving(200, 1, 40, missing=missing), cuts=range(10, 31))
    assert (track.start, track.stop) == (0, 40)
    assert np.flatnonzero(~track.seen).tolist() == list(missing)


def test_an_embedding_joins_what_moved_during_the_flash():
    one, other = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    frames = moving(200, 0, 20) + [[]] * 3 + moving(260, 0, 20)
    alike = [[one]] * 20 + [[]] * 3 + [[one]] * 20
    (track,) = tracked(frames, cuts=[20, 23], embeddings=alike)
    assert (track.start, track.stop) == (0, 43)
    assert np.allclose(places(track)[[19, 23]], [200, 260]), "smoothed on each side for itself"
    another = [[one]] * 20 + [[]] * 3 + [[other]] * 20
    assert [track.person for track in tracked(frames, cuts=[20, 23], embeddings=another)] == [0, 1]
    assert len(tracked(frames, cuts=[20, 23])) == 2


def test_somebody_else_at_the_same_place_after_a_cut_is_somebody_else():
    one, other = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    tracks = tracked(moving(200, 0, 40), cuts=[20], embeddings=[[one]] * 20 + [[other]] * 20)
    assert [(track.start, track.stop, track.person) for track in tracks] == [(0, 20, 0), (20, 40, 1)]
