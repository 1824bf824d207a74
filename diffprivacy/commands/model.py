"""The checkpoint and the recognizers that a command works with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import demo
from ..backends.diffusers import DiffusersModel, load_diffusion_model
from ..backends.vision import load_vision_encoder
from ..demo.backend import load_diffusion_model as load_demo_model
from ..errors import UsageError
from ..faces.geometry import Crop
from ..identity.recognizers import Ensemble, FaceMatcher, load_recognizer
from .requests import ModelRequest, content_digest


@dataclass(frozen=True)
class Model:
    """A diffusion model, the crops it was made for, and the recognizer that guides it."""

    diffusion_model: DiffusersModel
    crop: Crop
    recognizer: FaceMatcher


def load_vision(request: ModelRequest, diffusion_model: DiffusersModel) -> None:
    """Give the diffusion model the CLIP vision model that the request names, if it does."""
    if request.clip_vision is not None:
        diffusion_model.vision_encoder = load_vision_encoder(request.clip_vision).to(diffusion_model.device)


def device_of(request: ModelRequest) -> str:
    """The device asked for, or the first that is there; raises UsageError for one that is not."""
    if request.device is None:
        return first_device()
    try:
        torch.zeros(1, device=request.device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"There is no device {request.device} here ({str(error).splitlines()[0]}): leave --device out."
        ) from error
    return request.device


def load_model(request: ModelRequest) -> Model:
    """The checkpoint and the recognizers asked for, or the embedded ones."""
    recognizer = load_guides(request)
    diffusion_model = load_checkpoint(request)
    return Model(diffusion_model, crop_of(request, diffusion_model), recognizer)


def load_guides(request: ModelRequest) -> FaceMatcher:
    """The recognizers asked for, or the embedded one, on their device."""
    device = device_of(request)
    members = [load_recognizer(file.path, file.channels).to(device) for file in request.recognizers]
    return Ensemble([(member, 1.0) for member in members]) if members else demo.load_recognizer("guide").to(device)


def guide_digests(request: ModelRequest) -> list[bytes]:
    """What tells the recognizers that guide from others; loading names those that are missing."""
    if request.unguided:
        return []
    if not request.recognizers:
        return [demo.recognizer_digest("guide")]
    return [content_digest(file.path) for file in request.recognizers if file.path.is_file()]


def crop_of(request: ModelRequest, diffusion_model: DiffusersModel) -> Crop:
    """The face crops asked for, or those that the checkpoint was made for."""
    if request.checkpoint is None:
        return Crop(request.size or demo.IMAGE_SIZE, demo.MARGIN)
    return Crop(request.size or diffusion_model.image_size)


def load_checkpoint(request: ModelRequest, version: demo.Version = demo.NEWEST) -> DiffusersModel:
    """The checkpoint asked for, or a version of the embedded demo model, on its device."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = device_of(request)
    if request.checkpoint is None:
        return load_demo_model(version).to(device)
    return load_diffusion_model(request.checkpoint).to(device, torch.float32 if device == "cpu" else torch.float16)


def first_device() -> str:
    """cuda, mps or cpu: the first of them that is there."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
