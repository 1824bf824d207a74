"""One video for ``anonymize`` and ``hide``: one new face for each person, in every frame, with the sound."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from torch import Tensor

from ..diffusion.noise import NoiseKey
from ..diffusion.sampling import strength_steps
from ..errors import DiffPrivacyError, NoFaceError
from ..media.atomic import Together
from ..progress import progress_bar
from ..regeneration import Regeneration, task_energy
from ..video.files import open_video
from ..video.protect import Followed, follow_faces, pieces, protect_pieces, tracks_in
from ..video.regeneration import one_face_each, words_of_people
from ..video.resume import ResumeState
from ..video.sound import check_sound
from ..video.tracks import Track, select_people
from ..video.writing import join
from .batch import Outcome
from .requests import ProtectRequest, content_digest, digest
from .resources import Resources

log = logging.getLogger(__name__)

MOST_GAPS = 10
"""Gaps that are listed one by one."""


def protect_video(source: Path, target: Path, request: ProtectRequest, use: Resources, made: Together) -> Outcome:
    """Make a video's files, or resume an interrupted run.

    Raises DiffPrivacyError for a video without a face, and for options that are for images.
    """
    if request.variants > 1 or request.sealing.keyed or request.sealing.per_face:
        raise DiffPrivacyError("--variants, --keyed and --key-per-face are for images; leave them out for videos.")
    if request.keep or request.if_impossible == "cover" or (use.boxes and source.name in use.boxes.boxes):
        raise DiffPrivacyError("--keep, --if-impossible and --boxes are for images; leave them out for videos.")
    if use.seal is not None:
        use.seal.check_file(source)
    model = use.model
    video = open_video(source)
    if request.sound:
        check_sound(video)
    if video.left_out:
        print(f"warning: {source}: not taken over: {', '.join(video.left_out)}", file=sys.stderr)
    with progress_bar(f"{source.name}: finding faces", video.frames or None, "frame") as bar:
        followed = follow_faces(video, use.detector, model.recognizer, lambda _: bar.update(1))
    try:
        tracks = select_people(followed.tracks, request.faces)
        if use.people is not None:
            tracks = use.people.in_video(tracks)
    except NoFaceError:
        if request.without_face == "error":
            raise
        tracks = []
    for track in followed.tracks:
        what = "made new" if track in tracks else "left as it is"
        log.info("%s: person %d from frame %d to %d: %s", source, track.person, track.start, track.stop - 1, what)
    settings = hashlib.sha256(content_digest(source) + digest(request)).hexdigest()
    state = ResumeState(target, settings, NoiseKey.from_seed(request.seed))
    plan = [(piece, state.piece(number)) for number, piece in enumerate(pieces(video, followed.frames))]
    todo = [(piece, path) for piece, path in plan if not path.exists()]
    steps = sum(len(tracks_in(tracks, piece)) for piece, _ in todo) * strength_steps(
        use.preset.steps, use.preset.strength
    )
    guide = None if request.model.unguided else model.recognizer
    with progress_bar(source.name, steps) as bar:
        words = words_of_people(video, tracks, model.backbone, model.crop, use.msi)

        def how(person: int, target: Sequence[Tensor] | None) -> Regeneration:
            energy = task_energy(request.task, guide, use.preset.form, target=target)
            return Regeneration(use.preset, energy, words.get(person))

        keep = guide if request.task == "anonymize" else None
        regenerate = one_face_each(state, model.backbone, model.crop, how, keep, lambda _: bar.update(1))
        chosen = dataclasses.replace(followed, tracks=tracks)
        protect_pieces(video, todo, chosen, regenerate, model.crop)
    if use.seal is not None:
        use.seal.close_file(source, made.add(sealed_beside(target, source)))
    join([path for _, path in plan], video, made.add(target), sound=request.sound)
    made.afterwards.append(state.remove)
    _warn_of_gaps(source, followed)
    said = [f"{target} ({_summary(followed.frames, tracks)})"]
    if use.seal is not None:
        said.append(f"{sealed_beside(target, source)} (the original, sealed)")
    return Outcome(said, details={"frames": followed.frames, "people": len({track.person for track in tracks})})


def sealed_beside(target: Path, source: Path) -> Path:
    """Where the sealed original of a protected video lies."""
    return target.with_name(f"{target.stem}{source.suffix}.age")


def _summary(frames: int, tracks: Sequence[Track]) -> str:
    people = {track.person for track in tracks}
    carried = sum(int((~track.seen).sum()) for track in tracks)
    return f"{frames} frames, {len(people)} {'person' if len(people) == 1 else 'people'}, {carried} faces carried over"


def _warn_of_gaps(source: Path, followed: Followed) -> None:
    """List the times without a detected face: only a person can tell whether there is none."""
    present = {number for track in followed.tracks for number in range(track.start, track.stop)}
    runs = [list(run) for found, run in groupby(range(followed.frames), key=present.__contains__) if not found]
    if runs:
        # The last frame is shown for as long as the one before it.
        ends = [*followed.times, 2 * followed.times[-1] - followed.times[max(0, followed.frames - 2)]]
        times = [f"{_time(ends[run[0]])} to {_time(ends[run[-1] + 1])}" for run in runs]
        more = f" and {len(times) - MOST_GAPS} more times" if len(times) > MOST_GAPS else ""
        print(
            f"warning: {source}: no face was detected from {', '.join(times[:MOST_GAPS])}{more}; review these times",
            file=sys.stderr,
        )


def _time(seconds: float) -> str:
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes:.0f}:{seconds:04.1f}"
