"""``diffprivacy anonymize`` and ``hide``: pictures and videos, one after the other; what is finished stays finished."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import pipeline
from ..diffusion.noise import NoiseKey
from ..errors import DiffPrivacyError, NoFaceError
from ..faces.geometry import crop_face
from ..faces.selection import select_faces
from ..media.images import Picture, read_picture, write_picture
from ..recovery import png
from ..recovery.encryption import Seal
from ..recovery.key import RecoveryKey
from ..recovery.keyed import Public, anonymize_keyed
from ..recovery.replay import record
from .inputs import all_exist, is_video, plan
from .model import add_model_options, add_vision_option
from .options import SEED_WARNING, option_at_fault, positive
from .people import add_people_options
from .protect_video import protect_video
from .sealing import add_seal_options, write_sealed
from .tools import Tools, load_tools

if TYPE_CHECKING:
    from tqdm import tqdm

TASKS = {
    "anonymize": (pipeline.anonymize, "make every face somebody else"),
    "hide": (pipeline.hide, "make every face look like somebody else whom machines still take for the same person"),
}


def add_parser(commands: Any) -> None:
    """Declare both commands."""
    for task, (_, help_text) in TASKS.items():
        parser = commands.add_parser(task, help=help_text)
        _add_options(parser)
        parser.set_defaults(run=protect, task=task)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="picture, video, or folder of them")
    add("-o", "--output", required=True, type=Path, metavar="OUT", help="folder for the PNG and MP4 files")
    add_model_options(parser)
    add("--detector", default="builtin", metavar="FILE", help="detector as ONNX, or builtin (default)")
    add(
        "--faces",
        default="all",
        metavar="WHICH",
        help="all (default), largest, or numbers from the left such as 0,2; in a video people count as they appear",
    )
    add_people_options(parser)
    add(
        "--without-face",
        choices=["error", "copy"],
        default="error",
        help="for a picture or video in which no face is found (default: error, nothing is written)",
    )
    add("--preset", choices=["default", "paper"], default="default", help="what measured best, or the paper's settings")
    add("--strength", type=float, metavar="S", help="how far a face is redrawn, above 0 and up to 1")
    add("--steps", type=positive, metavar="N", help="steps of the whole schedule, of which the strength's share runs")
    add("--variants", type=positive, default=1, metavar="N", help="different faces to make of each (default 1)")
    add(
        "--seed",
        type=int,
        metavar="N",
        help="fix the noise, for tests only: whoever guesses N can undo what the noise hides (default: 256 bits of the "
        "operating system)",
    )
    add("--overwrite", action="store_true", help="do finished pictures again")
    add(
        "--msi",
        type=Path,
        metavar="FILE",
        help="say each face in pseudo-words until the switch, not nothing; see train-msi",
    )
    add(
        "--no-sound",
        action="store_true",
        help="leave out a video's sound, which is not changed: voices tell who speaks",
    )
    add_vision_option(parser)
    add_seal_options(parser)


def protect(options: argparse.Namespace) -> int:
    """Protect all inputs as ``options.task`` says; returns the exit code."""
    targets = plan(options.inputs, options.output, options.variants, lambda video: f"{video.stem}.mp4")
    todo = {source: files for source, files in targets.items() if options.overwrite or not all_exist(files)}
    if len(todo) < len(targets):
        print(f"{len(targets) - len(todo)} already done (--overwrite does them again)")
    if not todo:
        return 0
    if options.seed is not None:
        print(SEED_WARNING, file=sys.stderr)
    tools = load_tools(options)
    failed = 0
    for source, files in todo.items():
        try:
            if is_video(source):
                protect_video(source, files[0], options, tools)
            else:
                _protect_picture(source, files, options, tools)
        except DiffPrivacyError as error:
            print(f"error: {source}: {option_at_fault(error)}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


def _protect_picture(source: Path, files: Sequence[Path], options: argparse.Namespace, tools: Tools) -> None:
    from tqdm import tqdm

    with tqdm(desc=source.name, unit="step", disable=None, leave=False) as bar:
        pictures, key = _protected(source, options, tools, bar)
    files[0].parent.mkdir(parents=True, exist_ok=True)
    for file in files:
        _write(file, next(pictures), key, tools.seal, options)


def _write(
    file: Path, picture: Picture, key: RecoveryKey | Public | None, seal: Seal | None, options: argparse.Namespace
) -> None:
    if isinstance(key, Public):
        png.save(file, picture, [key.to_bytes()], kind=png.KEYED)
        print(f"{file} (keyed)")
    elif seal is None or key is None:
        write_picture(file, picture)
        print(file)
    else:
        write_sealed(file, picture, key, seal, options)


def _protected(
    source: Path, options: argparse.Namespace, tools: Tools, bar: tqdm
) -> tuple[Iterator[Picture], RecoveryKey | Public | None]:
    """The protected variants, each made when it is asked for, and what brings the faces back where that is wanted."""
    model, seal = tools.model, tools.seal
    picture = read_picture(source)
    try:
        faces = select_faces(tools.detector.detect(picture.rgb), options.faces)
        if tools.people is not None:
            faces = tools.people.in_picture(picture.rgb, faces)
    except NoFaceError:
        if options.without_face == "error":
            raise
        return repeat(picture), None

    redraw, _ = TASKS[options.task]

    def progress(step: dict) -> None:
        bar.total = step["steps"]
        bar.update(1)

    if options.keyed and seal is not None:
        secret = seal.passphrase or ""
        rgb, public = anonymize_keyed(
            picture.rgb, faces, model.backbone, model.size, secret, model.margin, callback=progress
        )
        return iter([dataclasses.replace(picture, rgb=rgb)]), public

    words = None
    if tools.msi is not None:
        crops = torch.stack([crop_face(picture.rgb, face, model.size, model.margin) for face in faces])
        words = list(tools.msi.words(model.backbone, crops.movedim(-1, 1)))
    protected = redraw(
        picture.rgb,
        faces,
        model.backbone,
        size=model.size,
        preset=tools.preset,
        pseudo_words=words,
        recognizer=model.recognizer,
        variants=options.variants,
        margin=model.margin,
        noise_key=NoiseKey.from_seed(options.seed),
        callback=progress,
    )
    pictures = (dataclasses.replace(picture, rgb=rgb) for rgb in protected)
    if seal is None:
        return pictures, None
    return pictures, record(
        picture, faces, model.backbone, model.size, options.fidelity, margin=model.margin, callback=progress
    )
