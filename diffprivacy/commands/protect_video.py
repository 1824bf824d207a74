"""One video for ``anonymize`` and ``hide``: one new face for each person, in every frame, with the sound."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..diffusion.noise import NoiseKey
from ..diffusion.sampling import strength_steps
from ..errors import DiffPrivacyError, NoFaceError
from ..faces.geometry import Face
from ..faces.keeping import check_parts
from ..faces.prompts import parse_prompts, prompts_of
from ..faces.regions import faces_in_boxes
from ..media.atomic import Together
from ..media.disclosure import disclose_video
from ..personas.book import Persona
from ..presets import Preset
from ..progress import progress_bar, say
from ..regeneration import Regeneration, task_energy
from ..video.files import clip, open_video
from ..video.frames import Video
from ..video.protect import Followed, Given, Pasting, follow_faces, pieces, protect_pieces, tracks_in
from ..video.regeneration import HowOf, one_face_each, words_of_people
from ..video.report import covered_spans, gaps, is_made_new, spans_in_words, summary, time_span
from ..video.resume import ResumeState
from ..video.sound import check_sound
from ..video.tracks import Track, select_people
from ..video.writing import join
from .batch import Outcome
from .face_finder import warn_of_assumed
from .requests import ProtectRequest, content_digest, digest
from .resources import Resources, preset_of

log = logging.getLogger(__name__)


def protect_video(source: Path, target: Path, request: ProtectRequest, use: Resources, made: Together) -> Outcome:
    """Make a video's files, or resume an interrupted run.

    Raises DiffPrivacyError for a video without a face, and for options that are for images.
    """
    if request.variants > 1 or request.sealing.keyed or request.sealing.per_face:
        raise DiffPrivacyError("--variants, --keyed and --key-per-face are for images; leave them out for videos.")
    if use.encryptor is not None:
        use.encryptor.check_file(source)
    model = use.model
    if request.keep:
        check_parts(request.keep, model.crop.margin, source.name)
    video = open_range(source, request)
    if request.sound:
        check_sound(video)
    if video.left_out:
        print(f"warning: {source}: not taken over: {', '.join(video.left_out)}", file=sys.stderr)
    followed, tracks = _followed(source, video, request, use)
    settings = hashlib.sha256(content_digest(source) + digest(request)).hexdigest()
    state = ResumeState(target, settings, NoiseKey.from_seed(request.seed))
    plan = [(piece, state.piece(number)) for number, piece in enumerate(pieces(video, followed.frames))]
    todo = [(piece, path) for piece, path in plan if not path.exists()]
    for piece, _ in todo:
        state.forget_covered(piece)
    preset = preset_of(request, film=True)
    per_piece = strength_steps(preset.steps, preset.strength)
    steps = per_piece * sum(len(tracks_in(tracks, piece)) for piece, _ in todo)
    guide = None if request.model.unguided else model.recognizer
    personas = {} if use.personas is None else use.personas.in_video(tracks)
    with progress_bar(source.name, steps) as bar:
        words = words_of_people(video, tracks, model.diffusion_model, model.crop, use.msi)
        how = _how_of(request, use, preset, words, _texts(request.prompt, followed, tracks), personas)
        check = guide if request.task == "anonymize" or personas else None
        regenerate = one_face_each(state, model.diffusion_model, model.crop, how, check, lambda _: bar.update(1), check)
        chosen = dataclasses.replace(followed, tracks=tracks)
        cover = None if request.if_impossible == "error" else functools.partial(_say_covered, source, followed, state)
        protect_pieces(video, todo, chosen, regenerate, Pasting(model.crop, request.keep, cover))
    if use.encryptor is not None:
        use.encryptor.encrypt_file(source, made.add(sealed_beside(target, source)))
    joined = made.add(target)
    join([path for _, path in plan], video, joined, sound=request.sound)
    spans = covered_spans(state)
    is_new = is_made_new(tracks, spans)
    if request.disclosure and is_new:
        disclose_video(joined)
    if use.credentials is not None and is_new:
        use.credentials.sign(joined, target.suffix)
    made.afterwards.append(state.remove)
    if unseen := gaps(followed):
        print(f"warning: {source}: {unseen}", file=sys.stderr)
    said = [f"{target} ({summary(followed.frames, tracks)})"]
    if use.encryptor is not None:
        said.append(f"{sealed_beside(target, source)} (the original, sealed)")
    details = {"frames": followed.frames, "people": len({track.person for track in tracks})}
    covered = [
        {"person": person, "first": first, "last": stop - 1} for person in spans for first, stop in spans[person]
    ]
    return Outcome(said, list(spans), spans_in_words(spans, followed), details | {"covered frames": covered})


def _how_of(
    request: ProtectRequest,
    use: Resources,
    preset: Preset,
    words: Mapping[int, Tensor],
    texts: Sequence[str],
    personas: Mapping[int, Persona],
) -> HowOf:
    """How each person's faces are made new."""
    guide = None if request.model.unguided else use.model.recognizer

    def how(person: int, target: Sequence[Tensor] | None) -> Regeneration:
        persona = personas.get(person)
        return Regeneration(
            preset,
            task_energy(request.task, guide, preset.form, target=target, persona=persona and persona.target),
            words.get(person),
            text=texts[person],
            match_colors=request.match_colors,
            noise_key=None if persona is None else persona.noise_key,
            keep=request.keep,
        )

    return how


def open_range(source: Path, request: ProtectRequest) -> Video:
    """A video, or what of it is asked for."""
    video = open_video(source)
    return video if request.start is None and request.end is None else clip(video, request.start, request.end)


def _texts(prompt: str, followed: Followed, tracks: Sequence[Track]) -> list[str]:
    """The words for each person, those who stay as they are as well; none where nobody is to be protected."""
    people = 1 + max((track.person for track in followed.tracks), default=-1)
    return prompts_of(parse_prompts(prompt), people) if tracks else []


def _followed(source: Path, video: Video, request: ProtectRequest, use: Resources) -> tuple[Followed, list[Track]]:
    """All faces of a video, and those that are to be protected."""
    with progress_bar(f"{source.name}: finding faces", video.frames or None, "frame") as bar:
        in_boxes: list[Face] = []
        given = _given(source, video, use, in_boxes)
        followed = follow_faces(video, use.detector, use.model.recognizer, lambda _: bar.update(1), given)
    if use.boxes is not None and video.stop is None:
        use.boxes.check_frames(source, video.first + followed.frames)
    warn_of_assumed(source, in_boxes)
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
    return followed, tracks


def _given(source: Path, video: Video, use: Resources, in_boxes: list[Face]) -> Given | None:
    """The faces that ``--boxes`` names in each frame. in_boxes: takes all of them."""
    boxes = use.boxes
    if boxes is None:
        return None
    boxes.check_size(source, (video.height, video.width))

    def given(number: int, picture: Tensor) -> list[Face]:
        faces = faces_in_boxes(picture, boxes.of(source, video.first + number), use.detector)
        in_boxes.extend(faces)
        return faces

    return given


def _say_covered(
    source: Path, followed: Followed, state: ResumeState, track: Track, piece: range, error: Exception
) -> None:
    first, stop = max(piece.start, track.start), min(piece.stop, track.stop)
    state.keep_covered(track.person, piece, first, stop)
    span = time_span(followed, first, stop)
    say(
        f"warning: {source}: person {track.person} is covered from {span}, as it cannot be made new: {error}",
        sys.stderr,
    )


def sealed_beside(target: Path, source: Path) -> Path:
    """Where the sealed original of a protected video lies."""
    return target.with_name(f"{target.stem}{source.suffix}.age")
