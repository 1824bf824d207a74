"""The checkpoint and the recognizers that a command works with."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import demo
from ..backends.diffusers import DiffusersBackbone, load_backbone
from ..backends.vision import load_vision_encoder
from ..demo.backend import load_backbone as load_demo_backbone
from ..faces.geometry import MARGIN
from ..identity.recognizers import Ensemble, FaceMatcher, Recognizer, load_recognizer
from .options import positive


@dataclass(frozen=True)
class Model:
    """A backbone, the crops it was made for (side in pixels, margin), and the recognizer that guides it."""

    backbone: DiffusersBackbone
    size: int
    margin: float
    recognizer: FaceMatcher | None


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`load_model` reads."""
    add_checkpoint_options(parser)
    add = parser.add_argument
    add(
        "--recognizer",
        action="append",
        metavar="FILE[:BGR]",
        help="recognizer as ONNX to guide with; several make an ensemble; :BGR for those that take BGR, as AdaFace does",
    )
    add(
        "--size",
        type=positive,
        metavar="PIXELS",
        help="side of the face crops (default: what the checkpoint was made for)",
    )


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`load_checkpoint` reads."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE|DIR",
        help="SD 1.x .safetensors, or a diffusers folder (default: demo model)",
    )
    parser.add_argument("--device", metavar="NAME", help="cuda, mps or cpu (default: the first of them that is there)")


def add_vision_option(parser: argparse.ArgumentParser) -> None:
    """The option that :func:`load_vision` reads."""
    parser.add_argument(
        "--clip-vision",
        type=Path,
        metavar="FILE|DIR",
        help="CLIP vision model for MSI, such as ViT-L/14 (the demo model has one)",
    )


def load_vision(options: argparse.Namespace, backbone: DiffusersBackbone) -> None:
    """Give the backbone the CLIP vision model that the options name, if they do."""
    if options.clip_vision is not None:
        backbone.vision_encoder = load_vision_encoder(options.clip_vision).to(backbone.device)


def named_recognizer(text: str) -> Recognizer:
    """The recognizer of a file or, when it takes its pictures in BGR, of ``FILE:BGR``; raises as load_recognizer."""
    file = text.removesuffix(":BGR")
    return load_recognizer(file, "RGB" if file == text else "BGR")


def load_model(options: argparse.Namespace) -> Model:
    """The checkpoint that the options name, or the embedded demo model, which brings a recognizer of its own."""
    device = options.device or first_device()
    members = [named_recognizer(name).to(device) for name in options.recognizer or []]
    recognizer = Ensemble([(member, 1.0) for member in members]) if members else None
    backbone = load_checkpoint(options)
    if options.checkpoint is None:
        print("using the embedded demo model, 128x128 pixels a face; --checkpoint gives real quality", file=sys.stderr)
        guide = recognizer or demo.load_recognizer("guide").to(device)
        return Model(backbone, options.size or demo.IMAGE_SIZE, demo.MARGIN, guide)
    return Model(backbone, options.size or backbone.image_size, MARGIN, recognizer)


def load_checkpoint(options: argparse.Namespace) -> DiffusersBackbone:
    """The checkpoint that the options name, or the embedded demo model, on its device."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = options.device or first_device()
    if options.checkpoint is None:
        return load_demo_backbone().to(device)
    return load_backbone(options.checkpoint).to(device, torch.float32 if device == "cpu" else torch.float16)


def first_device() -> str:
    """cuda, mps or cpu: the first of them that is there."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
