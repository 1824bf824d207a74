"""``diffprivacy anonymize`` and ``hide``: images and videos, one after the other; finished files are kept."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..faces.detectors import MIN_SIZE
from ..faces.keeping import PARTS
from ..media.atomic import Together
from .batch import Batch, StopBatch
from .inputs import folder_of, is_video, plan
from .manifest import Manifest
from .options import (
    SEED_WARNING,
    UNGUIDED_WARNING,
    VARIANTS_WARNING,
    add_checkpoint_options,
    add_crop_options,
    add_detector_option,
    add_guide_options,
    add_people_options,
    add_seal_options,
    add_vision_option,
    model_request,
    parts,
    people_request,
    positive,
    score,
    seal_request,
    share,
)
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
    add_vision_option(parser)
    add_seal_options(parser)


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
    add("--boxes", type=Path, metavar="FILE", help="JSON with boxes of faces that the detector misses (images only)")
    add(
        "--faces",
        default="all",
        metavar="WHICH",
        help="all (default), largest, or numbers from the left, starting at 0, such as 0,2; in a video, people in order of "
        "appearance",
    )
    add_people_options(parser)
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
        help=f"parts of each face to keep, such as eyes,mouth ({', '.join(PARTS)}; images only)",
    )
    add(
        "--if-impossible",
        choices=["error", "cover"],
        default="error",
        help="for a face that cannot be regenerated: error (default), or cover it with its skin's mean colour (images only)",
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
        without_face=options.without_face,
        keep=options.keep,
        if_impossible=options.if_impossible,
        preset=options.preset,
        strength=options.strength,
        steps=options.steps,
        msi=options.msi,
        variants=options.variants,
        seed=options.seed,
        sound=not options.no_sound,
        sealing=seal_request(options),
        overwrite=options.overwrite,
    )


def protect(request: ProtectRequest) -> int:
    """Protect all inputs; returns the exit code."""
    found = plan(request.inputs, request.output, request.variants, lambda video: f"{video.stem}.mp4")
    batch = Batch("protected", found)
    manifest = Manifest(folder_of(request.output), digest(request), request.overwrite)
    use = None
    for source, files in found.targets.items():
        with batch.input(source), manifest.source(source, files) as entry:
            if entry.is_done():
                batch.already += 1
                continue
            if use is None:
                use = _load(request)
            with Together() as made:
                if is_video(source):
                    said = protect_video(source, files[0], request, use, made)
                else:
                    said = protect_picture(source, files, request, use, made)
                entry.finish(made)
            batch.finished(said)
    return batch.finish()


def _load(request: ProtectRequest) -> Resources:
    """What the first input needs; what is wrong here is wrong for all."""
    if request.seed is not None:
        print(SEED_WARNING, file=sys.stderr)
    if request.model.unguided:
        print(UNGUIDED_WARNING, file=sys.stderr)
    if request.variants > 1:
        print(VARIANTS_WARNING, file=sys.stderr)
    try:
        return load_resources(request)
    except Exception as error:
        raise StopBatch(error) from error
