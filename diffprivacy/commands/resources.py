"""What ``anonymize`` and ``hide`` work with, loaded once for all inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from ..diffusion.sampling import strength_steps
from ..faces.detectors import Detector, load_detector
from ..faces.regions import BoxFile, read_boxes
from ..media.credentials import Credentials, read_credentials
from ..msi.module import MSI, load_msi
from ..presets import PERSONAS, PRESETS, Preset
from ..recovery.encryption import Encryptor
from .face_finder import FaceFinder
from .model import Model, load_model, load_vision
from .people import People, load_people
from .personas import Personas, load_personas
from .requests import ProtectRequest
from .sealing import load_encryptor


@dataclasses.dataclass(frozen=True)
class Resources:
    """The settings of the task, and the models and secrets it needs.

    regenerate: what makes faces of several inputs at once, None where one input comes after the other. network: held by
    whoever else uses the diffusion model.
    """

    preset: Preset
    encryptor: Encryptor | None
    detector: Detector
    model: Model
    msi: MSI | None
    people: People | None
    personas: Personas | None = None
    credentials: Credentials | None = None
    boxes: BoxFile | None = None
    regenerate: Callable[..., Tensor] | None = None
    network: AbstractContextManager[object] = dataclasses.field(default_factory=nullcontext)

    @property
    def finder(self) -> FaceFinder:
        """What finds and chooses faces in images."""
        return FaceFinder(self.detector, self.boxes, self.people, self.model.crop.margin)


def load_resources(request: ProtectRequest) -> Resources:
    """Raises DiffPrivacyError for options that do not fit together and files that cannot be used."""
    preset = preset_of(request)
    encryptor = load_encryptor(request)
    signer = request.credentials
    credentials = None if signer is None else read_credentials(signer.certificate, signer.key)
    detector = load_detector(request.detector, request.min_score, request.min_size)
    boxes = None if request.boxes is None else read_boxes(request.boxes)
    model = load_model(request.model)
    msi = None if request.msi is None else load_msi(request.msi)
    if msi is not None:
        load_vision(request.model, model.diffusion_model)
        msi.check(model.diffusion_model)
    people = load_people(request.people, detector, model.recognizer)
    personas = load_personas(request, model.recognizer)
    return Resources(preset, encryptor, detector, model, msi, people, personas, credentials, boxes)


def preset_of(request: ProtectRequest, film: bool = False) -> Preset:
    """The settings asked for. Raises DiffPrivacyError for a strength that leaves no step."""
    toward = request.personas is not None or (film and request.preset == "default")
    presets = PERSONAS if toward else PRESETS
    changes = {"strength": request.strength, "steps": request.steps}
    preset = dataclasses.replace(
        presets[request.task][request.preset], **{name: value for name, value in changes.items() if value is not None}
    )
    strength_steps(preset.steps, preset.strength)
    return preset
