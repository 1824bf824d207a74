"""What ``anonymize`` and ``hide`` work with, loaded once for all inputs."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from ..diffusion.sampling import strength_steps
from ..faces.detectors import Detector, load_detector
from ..msi.module import MSI, load_msi
from ..presets import PRESETS, Preset
from ..recovery.encryption import Seal
from .model import Model, load_model, load_vision
from .people import People, load_people
from .sealing import load_seal


@dataclasses.dataclass(frozen=True)
class Tools:
    """The settings of the task, and the models and secrets it needs."""

    preset: Preset
    seal: Seal | None
    detector: Detector
    model: Model
    msi: MSI | None
    people: People | None


def load_tools(options: argparse.Namespace) -> Tools:
    """Raises DiffPrivacyError for options that do not fit together and files that cannot be used."""
    preset = _preset(options)
    seal = load_seal(options)
    detector = load_detector(None if options.detector == "builtin" else Path(options.detector))
    model = load_model(options)
    msi = None if options.msi is None else load_msi(options.msi)
    if msi is not None:
        load_vision(options, model.backbone)
        msi.check(model.backbone)
    return Tools(preset, seal, detector, model, msi, load_people(options, detector, model.recognizer))


def _preset(options: argparse.Namespace) -> Preset:
    changes = {"strength": options.strength, "steps": options.steps}
    preset = dataclasses.replace(
        PRESETS[options.task][options.preset], **{name: value for name, value in changes.items() if value is not None}
    )
    strength_steps(preset.steps, preset.strength)
    return preset
