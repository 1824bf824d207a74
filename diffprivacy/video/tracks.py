"""Faces along a video: who is where in which frame, also where the detector missed a face."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import DiffPrivacyError, NoFaceError
from ..faces.geometry import TEMPLATE_SIZE, Face, align_matrix
from ..faces.selection import parse_selection
from ..identity.thresholds import SAME_PERSON

REACH = 0.6
"""How far a face may move from one frame to the next, in sides of its ArcFace crop, and still be the same."""
GAP = 1.0
"""Seconds without a detection after which a face is another appearance; shorter gaps are filled."""
CARRY = 0.5
"""Seconds for which a face is protected before its first detection and after its last, within the shot."""
CONFIRMED = 3
"""Detections from which a face is carried on: a single one is more often a pattern than a face."""
SMOOTH = 0.28
"""Seconds over which the points of a face are smoothed, by a parabola (Savitzky and Golay, 1964)."""
VELOCITY = 5
"""Frames from which the movement is taken with which a face is carried on."""
SUPPORT = 0.2
"""Share of ``REACH`` within which a doubtful detection continues a face."""
SAME_PLACE = 0.15
"""Share of ``REACH`` within which a face beyond a suspected cut is the same, where no embeddings tell."""


@dataclass(frozen=True, eq=False)
class Track:
    """One appearance of a face: its place in each frame from ``start`` on.

    landmarks: (n,5,2) float32, in pixels. seen: (n,) bool, where the detector found it; elsewhere it is filled in.
    embedding: (D,) unit vector, the mean over its detections, or None without a recognizer.
    person: number of the person, from 0 in the order of their first frames.
    """

    start: int
    landmarks: np.ndarray
    seen: np.ndarray
    embedding: np.ndarray | None = None
    person: int = 0

    @property
    def stop(self) -> int:
        return self.start + len(self.landmarks)

    @property
    def area(self) -> float:
        """Square pixels, summed over the frames."""
        return float(sum(_side(points) ** 2 for points in self.landmarks))

    def face(self, frame: int) -> Face:
        """The face in a frame from start to stop - 1."""
        points = self.landmarks[frame - self.start]
        return Face((*points.min(axis=0).tolist(), *points.max(axis=0).tolist()), points, 1.0)


@dataclass(eq=False)
class _Open:
    """A track that may go on; ``points`` by frame, of which ``sure`` ones were no doubtful detections."""

    points: dict[int, np.ndarray] = field(default_factory=dict)
    embeddings: list[np.ndarray] = field(default_factory=list)
    sure: int = 0

    @property
    def first(self) -> int:
        return min(self.points)

    @property
    def last(self) -> int:
        return max(self.points)


def track_faces(
    frames: Sequence[Sequence[Face]],
    size: tuple[int, int],
    times: Sequence[float],
    cuts: Collection[int] = (),
    embeddings: Sequence[Sequence[np.ndarray]] | None = None,
    same_person: float = SAME_PERSON,
    doubtful: Sequence[Sequence[Face]] = (),
) -> list[Track]:
    """The appearances of all faces that were detected in the frames of a video, sorted by start and from the left.

    A face that the detector misses for less than ``GAP`` seconds, or in a single frame, is placed between its
    neighbours; one that was seen ``CONFIRMED`` times is carried on for ``CARRY`` seconds, and at least one frame, at
    both ends, along its movement, unless it leaves the picture. Landmarks are smoothed over time, so that a crop does
    not jitter with the detector.
    size: height and width of the frames. times: when each frame is shown, in seconds, increasing.
    cuts: frames that seem to begin another shot. A face is carried over none, but goes on beyond one where it was, or
    near it and with the embedding that it had: what seemed a cut may have been a flash.
    embeddings: unit vectors (D,) of the same faces, which also tell who is who where people cross.
    same_person: cosine from which two appearances are one person's.
    doubtful: for each frame the detections with a score too low to count alone. One counts where a face that was seen
    ``CONFIRMED`` times has been shortly before, or is shortly after: the second association of ByteTrack (Zhang et al.,
    arXiv 2110.06864), in both directions of time.
    """
    clock = np.asarray(times, dtype=np.float64)
    bounds = sorted({0, len(frames), *cuts})
    done: list[_Open] = []
    active: list[_Open] = []
    unused: list[Sequence[Face]] = []
    for i, faces in enumerate(frames):
        vectors = None if embeddings is None else embeddings[i]
        lost = [track for track in active if clock[i] - clock[track.last] > GAP + 1e-9 and i - track.last > 2]
        done += lost
        active = [track for track in active if track not in lost]
        shot = bounds[bisect_right(bounds, i) - 1]
        active += _continued(active, i, faces, vectors, shot, same_person)
        if doubtful:
            before = [(track, track.last) for track in active if shot <= track.last < i]
            unused.append(_supported(before, i, doubtful[i]))
    opened = done + active
    for i, faces in reversed([*enumerate(unused)]):
        stop = bounds[bisect_right(bounds, i)]
        after = [(track, track.first) for track in opened if i < track.first < stop]
        _supported([(track, at) for track, at in after if clock[at] - clock[i] <= GAP], i, faces)
    closed = [_closed(track, clock, bounds) for track in opened]
    tracks = [_carried(track, clock, bounds, size, closed) for track in closed]
    tracks.sort(key=lambda track: (track.start, track.landmarks[0].mean(axis=0)[0]))
    return _with_people(tracks, same_person)


def select_people(tracks: Sequence[Track], which: str) -> list[Track]:
    """The tracks of the people that ``which`` names: "all", "largest", or numbers such as "0,2".

    Raises NoFaceError when there is no track, DiffPrivacyError for numbers that nobody has.
    """
    if not tracks:
        raise NoFaceError("No face was found in any frame, so nothing would be protected.")
    people = sorted({track.person for track in tracks})
    chosen = parse_selection(which)
    if chosen == "all":
        return list(tracks)
    if chosen == "largest":
        areas = {person: sum(track.area for track in tracks if track.person == person) for person in people}
        chosen = {max(people, key=areas.__getitem__)}
    elif unknown := sorted(chosen - set(people)):
        raise DiffPrivacyError(
            f"There is no person {unknown[0]}; the video has {len(people)}, numbered 0 to {len(people) - 1} in the order "
            "in which they appear.",
            "faces",
        )
    return [track for track in tracks if track.person in chosen]


def _continued(
    active: Sequence[_Open],
    frame: int,
    faces: Sequence[Face],
    vectors: Sequence[np.ndarray] | None,
    shot: int,
    same_person: float,
) -> list[_Open]:
    """Give each face of a frame to the open track that it continues; returns new tracks for the others.

    shot: the frame with which the shot seems to have begun; what was lost before it needs a cosine of ``same_person``.
    """
    from scipy.optimize import linear_sum_assignment

    cost = np.array(
        [[_distance(track.points[track.last], frame - track.last, face) for face in faces] for track in active]
    )
    allowed = cost <= 1
    if cost.size:
        elsewhere = np.array([track.last < shot for track in active])
        if vectors is None:
            allowed[elsewhere] &= cost[elsewhere] <= SAME_PLACE
        else:
            cosines = np.array([[track.embeddings[-1] @ vector for vector in vectors] for track in active])
            allowed[elsewhere] &= cosines[elsewhere] >= same_person
            cost = cost + 1 - cosines
    owners: dict[int, _Open] = {}
    if cost.size:
        pairs = zip(*linear_sum_assignment(np.where(allowed, cost, 1e3)), strict=True)
        owners = {int(column): active[row] for row, column in pairs if allowed[row, column]}
    new = []
    for i, face in enumerate(faces):
        track = owners.get(i)
        if track is None:
            new.append(track := _Open())
        track.points[frame] = face.landmarks
        track.sure += 1
        if vectors is not None:
            track.embeddings.append(vectors[i])
    return new


def _supported(ends: Sequence[tuple[_Open, int]], frame: int, faces: Sequence[Face]) -> list[Face]:
    """Give each doubtful face of a frame to the confirmed track near whose end it lies; returns those of no track.

    ends: tracks, each with the frame in which it ends, before or after this one.
    """
    from scipy.optimize import linear_sum_assignment

    known = [(track, end) for track, end in ends if track.sure >= CONFIRMED]
    if not (known and faces):
        return list(faces)
    cost = np.array([[_distance(track.points[end], abs(frame - end), face) for face in faces] for track, end in known])
    given = set()
    for row, column in zip(*linear_sum_assignment(np.minimum(cost, 1e3)), strict=True):
        if cost[row, column] <= SUPPORT:
            known[row][0].points[frame] = faces[column].landmarks
            given.add(int(column))
    return [face for i, face in enumerate(faces) if i not in given]


def _distance(known: np.ndarray, frames: int, face: Face) -> float:
    """How far a face lies from where a track was so many frames away, in what it may have moved; at most 1 is its."""
    here, there = _side(known), _side(face.landmarks)
    if not 0.5 < here / there < 2:
        return np.inf
    moved = np.linalg.norm(known.mean(axis=0) - face.landmarks.mean(axis=0)) / max(here, there)
    return float(moved / (REACH * min(frames, 3)))


def _side(points: np.ndarray) -> float:
    """Side in pixels of a face's ArcFace crop."""
    return TEMPLATE_SIZE / float(np.hypot(*align_matrix(Face((0, 0, 0, 0), points, 1.0), TEMPLATE_SIZE, 1.0)[:, 0]))


def _closed(track: _Open, clock: np.ndarray, bounds: Sequence[int]) -> Track:
    """The track with its gaps filled and its points smoothed within each shot."""
    known = sorted(track.points)
    frames = np.arange(known[0], known[-1] + 1)
    times = clock[frames]
    values = np.stack([track.points[i] for i in known]).reshape(len(known), 10)
    filled = np.stack([np.interp(times, clock[known], column) for column in values.T], axis=1)
    inside = [bound for bound in bounds if frames[0] < bound <= frames[-1]]
    shots = zip([frames[0], *inside], [*inside, frames[-1] + 1], strict=True)
    for shot in (slice(first - frames[0], stop - frames[0]) for first, stop in shots):
        filled[shot] = _smoothed(filled[shot], times[shot])
    embedding = None
    if track.embeddings:
        mean = np.mean(track.embeddings, axis=0)
        embedding = mean / np.linalg.norm(mean)
    return Track(known[0], filled.reshape(-1, 5, 2).astype(np.float32), np.isin(frames, known), embedding)


def _smoothed(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Each row of values (n,D) on the parabola, or with three rows the line, through those within ``SMOOTH`` seconds.

    At the ends the window does not shrink: it stays whole, as that of Savitzky and Golay.
    """
    smooth = np.empty_like(values)
    half = SMOOTH / 2 + 1e-9
    for i, time in enumerate(times):
        middle = max(times[0] + half, min(time, times[-1] - half))
        window = slice(bisect_left(times, middle - half), bisect_right(times, middle + half))
        if (count := window.stop - window.start) < 3:
            smooth[i] = values[i]
            continue
        powers = ((times[window] - time) / SMOOTH)[:, None] ** np.arange(2 if count == 3 else 3)
        smooth[i] = np.linalg.lstsq(powers, values[window], rcond=None)[0][0]
    return smooth


def _carried(
    track: Track, clock: np.ndarray, bounds: Sequence[int], size: tuple[int, int], others: Sequence[Track]
) -> Track:
    """The track carried on at both ends, as long as it stays in the picture and its shot and meets no other face."""
    if track.seen.sum() < CONFIRMED:
        return track

    def ahead(known: np.ndarray, since: np.ndarray, frames: range) -> list[np.ndarray]:
        """known: points (n,5,2) at the times ``since``, of which the last goes on to the frames."""
        points = known[-1]
        velocity = (points - known[0]).mean(axis=0) / max(abs(since[-1] - since[0]), 1e-9)
        places = []
        for frame in frames:
            away = abs(clock[frame] - since[-1])
            moved = points + velocity * min(away, CARRY)
            x, y = moved.mean(axis=0)
            is_late = away > CARRY + 1e-9 and places
            if (
                is_late
                or not (-0.5 <= x < size[1] - 0.5 and -0.5 <= y < size[0] - 0.5)
                or _taken(moved, frame, track, others)
            ):
                break
            places.append(moved)
        return places

    low = bounds[bisect_right(bounds, track.start) - 1]
    high = bounds[bisect_left(bounds, track.stop)]
    times = clock[track.start : track.stop]
    first, last = track.landmarks[:VELOCITY][::-1], track.landmarks[-VELOCITY:]
    head = ahead(first, times[:VELOCITY][::-1], range(track.start - 1, low - 1, -1))[::-1]
    tail = ahead(last, times[-VELOCITY:], range(track.stop, high))
    return replace(
        track,
        start=track.start - len(head),
        landmarks=np.stack([*head, *track.landmarks, *tail]).astype(np.float32),
        seen=np.pad(track.seen, (len(head), len(tail))),
    )


def _taken(points: np.ndarray, frame: int, track: Track, others: Sequence[Track]) -> bool:
    """Whether another face is at this place."""
    present = (other for other in others if other is not track and other.start <= frame < other.stop)
    centres = (other.landmarks[frame - other.start].mean(axis=0) for other in present)
    return any(np.linalg.norm(points.mean(axis=0) - centre) < _side(points) / 2 for centre in centres)


def _with_people(tracks: Sequence[Track], same_person: float) -> list[Track]:
    """Number the people: appearances that share no frame and look alike are one person's."""
    people: list[list[Track]] = []
    numbered = []
    for track in tracks:
        similarity = [_similarity(track, person) for person in people]
        best = int(np.argmax(similarity)) if similarity else 0
        if not similarity or similarity[best] < same_person:
            best = len(people)
            people.append([])
        people[best].append(track)
        numbered.append(replace(track, person=best))
    return numbered


def _similarity(track: Track, person: Sequence[Track]) -> float:
    """Greatest cosine to an appearance of a person, -1 where the two are in one frame."""
    if track.embedding is None or any(track.start < other.stop and other.start < track.stop for other in person):
        return -1.0
    return max(float(track.embedding @ other.embedding) for other in person if other.embedding is not None)
