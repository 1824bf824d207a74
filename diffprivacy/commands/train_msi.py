"""``diffprivacy train-msi``: fit MSI to one face, a few photos of a person, or a folder of many people."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..faces.detectors import load_detector
from ..faces.geometry import crop_face
from ..faces.selection import select_faces
from ..msi.module import DEFAULT, PAPER, load_msi, new_msi, save_msi
from ..msi.training import Progress, Settings, Training
from ..msi.training_data import prepare, readable_crops
from ..progress import progress_bar, progress_over
from .inputs import pictures_in
from .model import crop_of, load_checkpoint, load_vision
from .options import (
    add_checkpoint_options,
    add_crop_options,
    add_detector_option,
    add_vision_option,
    model_request,
    positive,
    whole,
)
from .requests import TrainRequest

MANY = 20
"""Faces from which on some are held out to measure with."""


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("train-msi", help="learn pseudo-words that describe a face, for anonymize --msi")
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="image, or folder of images")
    add("-o", "--output", required=True, type=Path, metavar="FILE", help="the .safetensors file to write")
    add_checkpoint_options(parser)
    add_vision_option(parser)
    add_crop_options(parser)
    add_detector_option(parser)
    add("--faces", default="largest", metavar="WHICH", help="largest (default), all, or numbers from the left, from 0")
    add("--init", type=Path, metavar="MSI", help="start from a trained MSI (default: from the word face)")
    add(
        "--preset",
        choices=["default", "paper"],
        default="default",
        help="default: what measured best; paper: its module",
    )
    add(
        "--steps",
        type=positive,
        default=Settings.steps,
        metavar="N",
        help="maximum; stops early when the validation loss plateaus (default %(default)s)",
    )
    add("--minutes", type=float, default=math.inf, metavar="M", help="stop after this many minutes")
    add("--batch", type=positive, default=Settings.batch, metavar="N", help="time steps a batch (default %(default)s)")
    add(
        "--chunk",
        type=positive,
        default=None,
        metavar="N",
        help="how many of the batch go through the network at once; less needs less memory (default: all)",
    )
    add("--checkpointing", action="store_true", help="save memory by recomputing activations, which takes more time")
    add("--lr", type=float, default=Settings.lr, metavar="LR", help="learning rate (default: automatic)")
    add("--no-flips", action="store_true", help="do not train on mirror images too")
    add(
        "--seed",
        type=whole,
        default=0,
        metavar="N",
        help="seed of the training (default 0): the same seed gives the same file",
    )
    parser.set_defaults(run=lambda options: train_msi(_request(options)))


def _request(options: argparse.Namespace) -> TrainRequest:
    settings = Settings(
        steps=options.steps,
        batch=options.batch,
        chunk=options.chunk or 0,
        lr=options.lr,
        checkpointing=options.checkpointing,
        seed=options.seed,
    )
    return TrainRequest(
        inputs=tuple(options.inputs),
        output=options.output,
        model=model_request(options),
        detector=options.detector,
        faces=options.faces,
        init=options.init,
        preset=options.preset,
        settings=settings,
        minutes=options.minutes,
        flips=not options.no_flips,
    )


def train_msi(request: TrainRequest) -> int:
    """Train, or resume an interrupted run; returns the exit code."""
    sources = [picture for given in request.inputs for picture in pictures_in(given)]
    if request.output.suffix != ".safetensors":
        raise UsageError(f"{request.output}: an MSI is a .safetensors file; give such a name to --output.")
    diffusion_model = load_checkpoint(request.model)
    load_vision(request.model, diffusion_model)
    crop = crop_of(request.model, diffusion_model)
    if request.init is None:
        start = new_msi(diffusion_model, PAPER if request.preset == "paper" else DEFAULT, request.settings.seed)
    else:
        start = load_msi(request.init)
    start.check(diffusion_model)
    detector = load_detector(request.detector)

    def crops(rgb: Tensor) -> list[Tensor]:
        faces = select_faces(detector.detect(rgb), request.faces)
        return [crop_face(rgb, face, crop.size, crop.margin) for face in faces]

    images = readable_crops(progress_over(sources, "faces", "image"), crops, crop.size)
    held_out = min(16, len(images) // 10) if len(images) >= MANY else 0
    data = prepare(diffusion_model, images[: len(images) - held_out], flips=request.flips)
    validation = prepare(diffusion_model, images[len(images) - held_out :], flips=False) if held_out else None
    print(f"{len(images)} face(s), {held_out} of them held out")
    if diffusion_model.device.type == "cuda":
        diffusion_model.to(diffusion_model.device, torch.bfloat16)
    request.output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = request.output.with_name(request.output.name + ".unfinished")
    training = Training(
        start, diffusion_model, data, request.settings, validation, diffusion_model.device, unfinished, request.minutes
    )
    with progress_bar("training", request.settings.steps, initial=training.step, leave=True) as bar:

        def progress(now: Progress) -> None:
            bar.set_postfix(loss=f"{now.validation:.5f}")
            bar.update(1)

        try:
            training.run(progress)
        except KeyboardInterrupt:
            save_msi(training.learnt(), request.output)
            print(f"{request.output} holds what was learnt so far", file=sys.stderr)
            raise
    save_msi(training.learnt(), request.output)
    unfinished.unlink(missing_ok=True)
    first = training.history[0][2]
    print(f"{request.output}: validation loss {first:.5f} -> {training.best_loss:.5f} in {training.step} steps")
    return 0
