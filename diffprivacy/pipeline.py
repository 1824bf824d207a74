"""The whole job on one picture, on any Backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backbone import Backbone
from .energy import augmented, diversity, identity_away, latent_gradient
from .errors import DiffPrivacyError, NoFaceError
from .faces import MARGIN, Face, crop_face, crop_landmarks, paste_faces
from .guidance import guided
from .recognizers import FaceMatcher
from .sampling import Callback, ddim_sigmas, noise_to, sample_euler
from .stages import PRESETS, Preset, scheduled


def anonymize(
    picture: Tensor,
    faces: Sequence[Face],
    backbone: Backbone,
    size: int,
    preset: Preset = PRESETS["anonymize"]["default"],
    conditionings: dict[str, Any] | None = None,
    recognizer: FaceMatcher | None = None,
    variants: int = 1,
    margin: float = MARGIN,
    seed: int | None = None,
    callback: Callback | None = None,
) -> list[Tensor]:
    """The picture (H,W,3) in [0,1] with every given face made somebody else; one picture for each variant.

    Each face is noised to the preset's strength and denoised (Diff-Privacy, arXiv 2309.05330, section on
    anonymization), guided away from its identity when a recognizer is given. Outside the faces' masks the picture
    keeps every bit.

    size: side in pixels of the crops the backbone redraws, a multiple of its downscale.
    conditionings: those the preset's schedule names, "msi" and "empty"; by default the empty prompt for both.
    seed: of the noise; by default the operating system's entropy.

    Raises NoFaceError without faces, DiffPrivacyError for a size that does not fit the backbone.
    """
    if not faces:
        raise NoFaceError("There is no face to protect in the picture.")
    if size % backbone.downscale:
        raise DiffPrivacyError(f"The crop size {size} is no multiple of {backbone.downscale}; choose one, such as 512.")
    crops = torch.stack([crop_face(picture, face, size, margin) for face in faces]).movedim(-1, 1)
    landmarks = torch.stack([crop_landmarks(face, size, margin) for face in faces])

    sigmas = ddim_sigmas(backbone.noise_levels, preset.steps, preset.strength)
    latents = backbone.encode(crops).repeat_interleave(variants, dim=0)
    generator = torch.Generator().manual_seed(torch.seed() if seed is None else seed)
    noise = torch.randn(latents.shape, generator=generator).to(latents)

    if conditionings is None:
        conditionings = dict.fromkeys(("msi", "empty"), backbone.text_conditioning(""))
    denoisers = {
        name: lambda x, sigma, conditioning=conditioning: backbone.denoise(x, sigma, conditioning)
        for name, conditioning in conditionings.items()
    }
    denoiser = scheduled(denoisers, preset.schedule(), backbone.noise_levels)
    if recognizer is not None:
        energy = identity_away(recognizer, recognizer.reference(crops, landmarks), landmarks)
        if variants > 1:
            energy = energy + diversity(recognizer, landmarks)
        gradient = latent_gradient(augmented(energy, landmarks), backbone.differentiable_decoder())
        denoiser = guided(denoiser, gradient, sigmas, preset.guidance, backbone.noise_levels)

    samples = sample_euler(denoiser, noise_to(latents, sigmas[0], noise), sigmas, callback)
    redrawn = backbone.decode(samples).movedim(1, -1).cpu().unflatten(0, (len(faces), variants))
    return [paste_faces(picture, redrawn[:, variant], faces, margin) for variant in range(variants)]
