"""``diffprivacy anonymize`` and ``hide``: images and videos, one after the other; finished files are kept."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..faces.detectors import MIN_SIZE
from ..faces.keeping import PARTS
from ..faces.regions import read_boxes
from ..media.atomic import Together
from ..media.images import QUALITY
from ..progress import say
from ..video.resume import forget
from . import cluster, workers
from .batch import Batch, Outcome, StopBatch
from .dry_run import dry_run
from .face_finder import warn_of_boxes
from .inputs import Names, Plan, folder_of, is_video, plan
from .manifest import Manifest, no_empty_folders
from .model import device_of, guide_digests
from .options import (
    DEMO_NOTE,
    SEED_WARNING,
    UNGUIDED_WARNING,
    VARIANTS_WARNING,
    add_checkpoint_options,
    add_credentials_options,
    add_crop_options,
    add_detector_option,
    add_guide_options,
    add_json_option,
    add_people_options,
    add_personas_options,
    add_seal_options,
    add_vision_option,
    credentials_request,
    model_request,
    moment,
    parts,
    people_request,
    percent,
    personas_request,
    positive,
    prompts,
    score,
    seal_request,
    share,
)
from .personas import with_personas
from .protect_picture import protect_picture
from .protect_video import protect_video
from .requests import ProtectRequest, digest
from .resources import Resources, load_resources

TASKS = {
    "anonymize": "give every face another identity",
    "hide": "make every face look like somebody else, while recognizers still match the person",
}


def add_parser(commands: Any) -> None:
    """Declare both commands."""
    for task, help_text in TASKS.items():
        parser = commands.add_parser(task, help=help_text)
        _add_options(parser)
        parser.set_defaults(run=lambda options: protect(_request(options)), task=task)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="image, video, or folder of them")
    add(
        "-o",
        "--output",
        required=True,
        type=Path,
        metavar="OUT",
        help="folder for the PNG and MP4 files; for one input also a file",
    )
    add_checkpoint_options(parser)
    add_guide_options(parser)
    add_crop_options(parser)
    _add_face_options(parser)
    add(
        "--preset",
        choices=["default", "paper"],
        default="default",
        help="default: what measured best; paper: its settings",
    )
    add("--strength", type=share, metavar="S", help="how far a face is regenerated, above 0 and up to 1")
    add("--steps", type=positive, metavar="N", help="steps of the full schedule, of which the share --strength runs")
    add("--variants", type=positive, default=1, metavar="N", help="new faces to make of each (default 1; images only)")
    add(
        "--seed",
        type=int,
        metavar="N",
        help="fix the noise, for tests only: anyone who guesses N can undo what the noise hides (default: 256 bits of the "
        "operating system's entropy)",
    )
    add("--overwrite", action="store_true", help="redo finished files, and replace any file in the way")
    add(
        "--msi",
        type=Path,
        metavar="FILE",
        help="condition on MSI pseudo-words until the switch step (default: empty prompt); see train-msi",
    )
    add(
        "--no-sound", action="store_true", help="drop a video's sound; by default it is kept unchanged, voices included"
    )
    add("--start", type=moment, metavar="TIME", help="of videos: leave out what is before, such as 90, 1:30 or 0:01:30")
    add("--end", type=moment, metavar="TIME", help="of videos: leave out this moment and what is after")
    _add_output_options(parser)
    add_vision_option(parser)
    add_seal_options(parser)
    add_credentials_options(parser)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--output-format",
        choices=["png", "jpg", "webp", "same"],
        default="png",
        help="of images: png (default) changes nothing but the faces; jpg and webp are smaller, and their sealed keys lie "
        "beside them; same: the input's where it is one of these, else png",
    )
    add("--quality", type=percent, default=QUALITY, metavar="Q", help=f"of jpg and webp, 1 to 100 (default {QUALITY})")
    add(
        "--no-disclosure",
        action="store_true",
        help="leave out the mark that a model made a part of the image or video (XMP, IPTC digital source type)",
    )
    add(
        "--jobs",
        type=positive,
        metavar="N",
        help="inputs to work on at once, by a process of one thread each, on a processor (default 1, with all threads; on a "
        "cluster as many as it has graphics cards, or else cores)",
    )
    add(
        "--batch",
        type=positive,
        default=1,
        metavar="N",
        help="faces of several images to make new at once, while other images are read and written (default 1); faster, with more "
        "memory; the result is that of one by one up to rounding",
    )
    add(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="local: this machine (default); ray: the Ray cluster at RAY_ADDRESS, whose machines share the folders, or else one "
        "on this machine",
    )
    add(
        "--dry-run",
        action="store_true",
        help="say what would be done, and to which faces, and do nothing; in videos faces are not looked for, and those of --boxes "
        "are listed",
    )
    add_json_option(parser)


def _add_face_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_detector_option(parser)
    add("--min-score", type=score, metavar="S", help="lowest score of a face, 0 to 1 (default: the detector's own)")
    add(
        "--min-size",
        type=positive,
        default=MIN_SIZE,
        metavar="PIXELS",
        help=f"smallest face to look for, by its longer side (default {MIN_SIZE})",
    )
    add("--boxes", type=Path, metavar="FILE", help="JSON with boxes of faces that the detector misses")
    add(
        "--faces",
        default="all",
        metavar="WHICH",
        help="all (default), largest, or numbers from the left, starting at 0, such as 0,2; in a video, people in order of "
        "appearance",
    )
    add_people_options(parser)
    add_personas_options(parser)
    add(
        "--without-face",
        choices=["error", "copy"],
        default="error",
        help="for an image or video without a face: error (default, nothing is written), or copy it without metadata",
    )
    add(
        "--keep",
        type=parts,
        default=(),
        metavar="PARTS",
        help=f"parts of each face to keep, such as eyes,mouth ({', '.join(PARTS)})",
    )
    add(
        "--match-colors",
        action="store_true",
        help="give new faces the colours that the original has at their border (default: the model's own)",
    )
    add(
        "--prompt",
        type=prompts,
        default="",
        metavar="TEXT",
        help="what new faces are to be, for all, or by number as in '0: an old man; 1: a young woman, smiling'; in a video "
        "people count as they appear",
    )
    add(
        "--if-impossible",
        choices=["error", "cover"],
        help="for a face that cannot be regenerated: error (default for images), or cover it with its skin's mean colour "
        "(default for videos)",
    )


def _request(options: argparse.Namespace) -> ProtectRequest:
    return ProtectRequest(
        task=options.task,
        inputs=tuple(options.inputs),
        output=options.output,
        model=model_request(options),
        detector=options.detector,
        min_score=options.min_score,
        min_size=options.min_size,
        boxes=options.boxes,
        faces=options.faces,
        people=people_request(options),
        personas=personas_request(options),
        without_face=options.without_face,
        keep=options.keep,
        match_colors=options.match_colors,
        prompt=options.prompt,
        if_impossible=options.if_impossible,
        preset=options.preset,
        strength=options.strength,
        steps=options.steps,
        msi=options.msi,
        variants=options.variants,
        seed=options.seed,
        sound=not options.no_sound,
        start=options.start,
        end=options.end,
        sealing=seal_request(options),
        output_format=options.output_format,
        quality=options.quality,
        disclosure=not options.no_disclosure,
        credentials=credentials_request(options),
        overwrite=options.overwrite,
        engine=options.engine,
        jobs=options.jobs,
        batch=options.batch,
        dry_run=options.dry_run,
        as_json=options.as_json,
    )


def protect(request: ProtectRequest) -> int:
    """Protect all inputs; returns the exit code."""
    names = Names(lambda video: f"{video.stem}.mp4", request.output_format)
    found = plan(request.inputs, request.output, request.variants, names)
    _check_range(request, found)
    request = with_personas(request)
    if request.dry_run:
        return dry_run(request, found)
    batch = Batch("protected", found, request.as_json)
    manifest = Manifest(folder_of(request.output), digest(request), request.overwrite, guide_digests(request.model))
    is_shared = len(found.targets) > 1 and max(request.jobs or 1, request.batch) > 1
    if is_shared or (found.targets and request.engine == "ray"):
        _by_several(batch, found, request, manifest)
        return batch.finish()
    use = cache(partial(_prepare, request, found))
    for source, files in batch.sources():
        with batch.input(source):
            outcome = protect_input(source, files, request, manifest, use)
            if outcome is None:
                batch.is_done_already(source)
            else:
                batch.finished(source, outcome)
    return batch.finish()


def protect_input(
    source: Path, files: Sequence[Path], request: ProtectRequest, manifest: Manifest, use: Callable[[], Resources]
) -> Outcome | None:
    """The work on one input, with what is loaded when it is first needed; None if it was done already."""
    with manifest.source(source, files) as entry:
        if entry.is_done():
            if is_video(source):
                forget(files[0])
            return None
        with Together() as made:
            if is_video(source):
                outcome = protect_video(source, files[0], request, use(), made)
            else:
                outcome = protect_picture(source, files, request, use(), made)
            entry.finish(made, outcome.decided)
        return outcome


def _check_range(request: ProtectRequest, found: Plan) -> None:
    if request.start is None and request.end is None:
        return
    if request.end is not None and request.end <= (request.start or 0):
        raise UsageError(f"--end: {request.end:g} s is not after {request.start or 0:g} s, where the range starts.")
    if not any(map(is_video, (*found.targets, *found.refused))):
        raise UsageError("--start and --end are for videos, and no input is one; leave them out.")


def _by_several(batch: Batch, found: Plan, request: ProtectRequest, manifest: Manifest) -> None:
    """By several processes, here or on a cluster."""
    if request.engine == "ray":
        cluster.check_ray()
    elif (request.jobs or 1) > 1 and device_of(request.model) != "cpu":
        raise UsageError(
            "--jobs is for processors; a graphics card is one for all, so leave it out, or add --device cpu."
        )
    if request.sealing.ask_passphrase and (request.engine == "ray" or request.jobs):
        raise UsageError(
            "--ask-passphrase goes with one job; use --passphrase-file or --passphrase-env with --jobs or --engine ray."
        )
    _announce(request, found)
    with no_empty_folders(folder_of(request.output)):  # of two processes the second finds the first's
        if request.engine == "ray":
            cluster.work(batch, protect_input, request, manifest)
        elif (request.jobs or 1) > 1:
            workers.work(batch, min(request.jobs or 1, len(found.targets)), protect_input, request, manifest)
        else:
            workers.work_here(batch, protect_input, request, manifest)


def _prepare(request: ProtectRequest, found: Plan) -> Resources:
    """What the first input needs; what is wrong here is wrong for all."""
    try:
        _announce(request, found)
        return load_resources(request)
    except Exception as error:
        raise StopBatch(error) from error


def _announce(request: ProtectRequest, found: Plan) -> None:
    """Say what whoever asks for this should know."""
    notes = {
        SEED_WARNING: request.seed is not None,
        UNGUIDED_WARNING: request.model.unguided,
        VARIANTS_WARNING: request.variants > 1,
        DEMO_NOTE: request.model.checkpoint is None,
    }
    for note, applies in notes.items():
        if applies:
            say(note, sys.stderr)
    if request.boxes is not None:
        warn_of_boxes(read_boxes(request.boxes), found)
