"""One video for ``anonymize`` and ``hide``: one new face for each person, in every frame, with the sound."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from .. import __version__
from ..diffusion.noise import NoiseKey
from ..diffusion.sampling import strength_steps
from ..errors import DiffPrivacyError, NoFaceError
from ..video.files import Video, join, open_video
from ..video.protect import Followed, follow_faces, pieces, protect_pieces, tracks_in
from ..video.regeneration import one_face_each
from ..video.resume import Job
from ..video.tracks import Track, select_people
from .tools import Tools

SETTINGS = (
    *("task", "checkpoint", "recognizer", "size", "detector", "faces", "without_face", "preset", "strength", "steps"),
    *("seed", "msi", "clip_vision", "only", "spared", "person_threshold"),
)
"""The options that a video's new faces depend on."""
MOST_GAPS = 10
"""Gaps that are named one by one."""


def protect_video(source: Path, target: Path, options: argparse.Namespace, tools: Tools) -> None:
    """Protect a video as ``options.task`` says; an earlier run that was interrupted goes on.

    Raises DiffPrivacyError, and writes nothing, for a video without a face and options that are for pictures.
    """
    from tqdm import tqdm

    if options.variants > 1 or options.keyed or options.key_per_face:
        raise DiffPrivacyError("--variants, --keyed and --key-per-face are for pictures; leave them out for videos.")
    if tools.seal is not None:
        tools.seal.check_file(source)
    model = tools.model
    video = open_video(source)
    with tqdm(
        desc=f"{source.name}: finding faces", total=video.frames or None, unit="frame", disable=None, leave=False
    ) as bar:
        followed = follow_faces(video, tools.detector, model.recognizer, lambda _: bar.update(1))
    try:
        tracks = select_people(followed.tracks, options.faces)
        if tools.people is not None:
            tracks = tools.people.in_video(tracks)
    except NoFaceError:
        if options.without_face == "error":
            raise
        tracks = []
    job = Job(target, _settings(source, options), NoiseKey.from_seed(options.seed))
    plan = [(piece, job.piece(number)) for number, piece in enumerate(pieces(video, followed.frames))]
    todo = [(piece, path) for piece, path in plan if not path.exists()]
    steps = sum(len(tracks_in(tracks, piece)) for piece, _ in todo) * strength_steps(
        tools.preset.steps, tools.preset.strength
    )
    with tqdm(desc=source.name, total=steps, unit="step", disable=None, leave=False) as bar:
        redraw = one_face_each(
            video,
            tracks,
            job,
            options.task,
            model.backbone,
            model.size,
            model.margin,
            tools.preset,
            model.recognizer,
            tools.msi,
            callback=lambda _: bar.update(1),
        )
        protect_pieces(video, todo, tracks, redraw, model.size, model.margin)
    if tools.seal is not None:
        tools.seal.close_file(source, sealed_beside(target, source))
    join([path for _, path in plan], video, target, sound=not options.no_sound)
    job.remove()
    print(f"{target} ({_summary(followed.frames, tracks)})")
    _warn_of_gaps(source, video, followed)
    if tools.seal is not None:
        print(f"{sealed_beside(target, source)} (the original, sealed)")


def sealed_beside(target: Path, source: Path) -> Path:
    """Where the sealed original of a protected video lies."""
    return target.with_name(f"{target.stem}{source.suffix}.age")


def _settings(source: Path, options: argparse.Namespace) -> str:
    """A digest of the original and of what its protected form depends on."""
    digest = hashlib.sha256()
    with source.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    chosen = {name: str(getattr(options, name)) for name in SETTINGS}
    digest.update(json.dumps([__version__, chosen]).encode())
    return digest.hexdigest()


def _summary(frames: int, tracks: Sequence[Track]) -> str:
    people = {track.person for track in tracks}
    carried = sum(int((~track.seen).sum()) for track in tracks)
    return f"{frames} frames, {len(people)} {'person' if len(people) == 1 else 'people'}, {carried} faces carried over"


def _warn_of_gaps(source: Path, video: Video, followed: Followed) -> None:
    """Say where no face was found, as only a look can tell whether there is none."""
    present = {number for track in followed.tracks for number in range(track.start, track.stop)}
    runs = [list(run) for found, run in groupby(range(followed.frames), key=present.__contains__) if not found]
    if runs:
        times = [f"{_time(run[0], video)} to {_time(run[-1] + 1, video)}" for run in runs]
        more = f" and {len(times) - MOST_GAPS} times more" if len(times) > MOST_GAPS else ""
        print(
            f"warning: {source}: no face was found from {', '.join(times[:MOST_GAPS])}{more}; look there",
            file=sys.stderr,
        )


def _time(frame: int, video: Video) -> str:
    minutes, seconds = divmod(float(frame / video.rate), 60)
    return f"{minutes:.0f}:{seconds:04.1f}"
