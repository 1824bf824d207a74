"""What became of a video, in words: who was protected, who could only be covered, and where nobody was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from .protect import Followed
from .resume import ResumeState
from .tracks import Track

MOST_GAPS = 10
"""Gaps that are listed one by one."""


def summary(frames: int, tracks: Sequence[Track]) -> str:
    """How many frames and people, and in how many frames a face was not seen but is protected."""
    people = {track.person for track in tracks}
    carried = sum(int((~track.seen).sum()) for track in tracks)
    return f"{frames} frames, {len(people)} {'person' if len(people) == 1 else 'people'}, {carried} faces carried over"


def covered_spans(state: ResumeState) -> dict[int, list[list[int]]]:
    """Who is covered, from which frame to the one before which; spans that meet are one."""
    spans: dict[int, list[list[int]]] = {}
    for person, first, stop in sorted(span for of_piece in state.covered.values() for span in of_piece):
        of_person = spans.setdefault(person, [])
        if of_person and of_person[-1][1] >= first:
            of_person[-1][1] = max(stop, of_person[-1][1])
        else:
            of_person.append([first, stop])
    return spans


def is_made_new(tracks: Sequence[Track], covered: Mapping[int, Sequence[Sequence[int]]]) -> bool:
    """Whether a model made any face of the tracks; covered: see :func:`covered_spans`."""
    return any(
        not any(first <= track.start and track.stop <= stop for first, stop in covered.get(track.person, []))
        for track in tracks
    )


def spans_in_words(spans: dict[int, list[list[int]]], followed: Followed) -> str:
    """Of :func:`covered_spans`, with times; empty for none."""
    return "; ".join(
        f"person {person} from " + ", ".join(time_span(followed, first, stop) for first, stop in of_person)
        for person, of_person in spans.items()
    )


def gaps(followed: Followed) -> str:
    """The times without a detected face, empty for none: only a person can tell whether there is none."""
    present = {number for track in followed.tracks for number in range(track.start, track.stop)}
    runs = [list(run) for found, run in groupby(range(followed.frames), key=present.__contains__) if not found]
    times = [time_span(followed, run[0], run[-1] + 1) for run in runs]
    more = f" and {len(times) - MOST_GAPS} more times" if len(times) > MOST_GAPS else ""
    return f"no face was detected from {', '.join(times[:MOST_GAPS])}{more}; review these times" if times else ""


def time_span(followed: Followed, first: int, stop: int) -> str:
    """From when frame ``first`` is shown until the one before ``stop`` is not any more."""
    return f"{_clock(followed.times[first])} to {_clock(followed.ends[stop - 1])}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes:.0f}:{seconds:04.1f}"
