"""``diffprivacy anonymize`` and ``hide``: many pictures, one after the other; what is finished stays finished."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import pipeline, png
from ..detectors import Detector, load_detector
from ..errors import DiffPrivacyError, NoFaceError
from ..faces import crop_face
from ..images import Picture, read_picture, write_picture
from ..keyed import Public, anonymize_keyed
from ..keys import RecoveryKey
from ..msi import MSI, load_msi
from ..recovery import record
from ..sampling import strength_steps
from ..selection import select_faces
from ..stages import PRESETS, Preset
from ..vault import Seal
from .inputs import all_exist, plan
from .model import Model, add_model_options, add_vision_option, load_model, load_vision
from .options import positive
from .sealing import add_seal_options, load_seal, write_sealed

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
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="picture, or folder of pictures")
    add("-o", "--output", required=True, type=Path, metavar="OUT", help="folder for the PNG files")
    add_model_options(parser)
    add("--detector", default="builtin", metavar="FILE", help="detector as ONNX, or builtin (default)")
    add("--faces", default="all", metavar="WHICH", help="all (default), largest, or numbers from the left such as 0,2")
    add(
        "--without-face",
        choices=["error", "copy"],
        default="error",
        help="for a picture in which no face is found (default: error, nothing is written)",
    )
    add("--preset", choices=["default", "paper"], default="default", help="what measured best, or the paper's settings")
    add("--strength", type=float, metavar="S", help="how far a face is redrawn, above 0 and up to 1")
    add("--steps", type=positive, metavar="N", help="steps of the whole schedule, of which the strength's share runs")
    add("--variants", type=positive, default=1, metavar="N", help="different faces to make of each (default 1)")
    add("--seed", type=int, metavar="N", help="fix the noise, for tests (default: drawn from the operating system)")
    add("--overwrite", action="store_true", help="do finished pictures again")
    add(
        "--msi",
        type=Path,
        metavar="FILE",
        help="say each face in pseudo-words until the switch, not nothing; see train-msi",
    )
    add_vision_option(parser)
    add_seal_options(parser)


def protect(options: argparse.Namespace) -> int:
    """Protect all inputs as ``options.task`` says; returns the exit code."""
    from tqdm import tqdm

    targets = plan(options.inputs, options.output, options.variants)
    todo = {source: files for source, files in targets.items() if options.overwrite or not all_exist(files)}
    if len(todo) < len(targets):
        print(f"{len(targets) - len(todo)} already done (--overwrite does them again)")
    if not todo:
        return 0
    if options.seed is not None:
        print("warning: --seed makes the noise predictable; leave it out for pictures that matter", file=sys.stderr)
    preset = _preset(options)
    seal = load_seal(options)
    detector = load_detector(None if options.detector == "builtin" else Path(options.detector))
    model = load_model(options)
    msi = None if options.msi is None else load_msi(options.msi)
    if msi is not None:
        load_vision(options, model.backbone)
        msi.check(model.backbone)
    failed = 0
    for source, files in todo.items():
        try:
            with tqdm(desc=source.name, unit="step", disable=None, leave=False) as bar:
                pictures, key = _protect(source, options, preset, detector, model, msi, seal, bar)
        except DiffPrivacyError as error:
            print(f"error: {source}: {error}", file=sys.stderr)
            failed += 1
            continue
        files[0].parent.mkdir(parents=True, exist_ok=True)
        for file in files:
            _write(file, next(pictures), key, seal, options)
    return 1 if failed else 0


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


def _protect(
    source: Path,
    options: argparse.Namespace,
    preset: Preset,
    detector: Detector,
    model: Model,
    msi: MSI | None,
    seal: Seal | None,
    bar: tqdm,
) -> tuple[Iterator[Picture], RecoveryKey | Public | None]:
    """The protected variants, each made when it is asked for, and what brings the faces back where that is wanted."""
    picture = read_picture(source)
    try:
        faces = select_faces(detector.detect(picture.rgb), options.faces)
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
    if msi is not None:
        crops = torch.stack([crop_face(picture.rgb, face, model.size, model.margin) for face in faces])
        words = list(msi.words(model.backbone, crops.movedim(-1, 1)))
    protected = redraw(
        picture.rgb,
        faces,
        model.backbone,
        size=model.size,
        preset=preset,
        pseudo_words=words,
        recognizer=model.recognizer,
        variants=options.variants,
        margin=model.margin,
        seed=options.seed,
        callback=progress,
    )
    pictures = (dataclasses.replace(picture, rgb=rgb) for rgb in protected)
    if seal is None:
        return pictures, None
    return pictures, record(
        picture, faces, model.backbone, model.size, options.fidelity, margin=model.margin, callback=progress
    )


def _preset(options: argparse.Namespace) -> Preset:
    changes = {"strength": options.strength, "steps": options.steps}
    preset = dataclasses.replace(
        PRESETS[options.task][options.preset], **{name: value for name, value in changes.items() if value is not None}
    )
    strength_steps(preset.steps, preset.strength)
    return preset
