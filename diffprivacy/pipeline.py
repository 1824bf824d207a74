"""The whole job on one picture, on any Backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .backbone import Backbone
from .energy import (
    Energy,
    augmented,
    diversity,
    identity_away,
    identity_toward,
    latent_gradient,
    visual_distance,
)
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
    conditionings: Mapping[str, Any] | None = None,
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

    def energy(crops: Tensor, landmarks: Tensor) -> Energy | None:
        if recognizer is None:
            return None
        away = identity_away(recognizer, recognizer.reference(crops, landmarks), landmarks)
        return augmented(away + diversity(recognizer, landmarks) if variants > 1 else away, landmarks)

    return _redraw(picture, faces, backbone, size, preset, conditionings, energy, variants, margin, seed, callback)


def hide(
    picture: Tensor,
    faces: Sequence[Face],
    backbone: Backbone,
    size: int,
    preset: Preset = PRESETS["hide"]["default"],
    conditionings: Mapping[str, Any] | None = None,
    recognizer: FaceMatcher | None = None,
    variants: int = 1,
    margin: float = MARGIN,
    seed: int | None = None,
    callback: Callback | None = None,
) -> list[Tensor]:
    """The picture (H,W,3) in [0,1] with every given face looking like somebody else whom machines still match.

    As :func:`anonymize`, but guided toward the original's identity (Diff-Privacy, arXiv 2309.05330, section on
    visual identity information hiding) and away from its looks.

    Raises DiffPrivacyError without a recognizer: nothing would hold the identity.
    """
    if recognizer is None:
        raise DiffPrivacyError("Hiding needs a recognizer that keeps the identity; name one with --recognizer.")

    def energy(crops: Tensor, landmarks: Tensor) -> Energy:
        toward = identity_toward(recognizer, recognizer.reference(crops, landmarks), landmarks)
        return augmented(toward, landmarks) + VISUAL_WEIGHT * visual_distance(crops, landmarks, landmarks)

    return _redraw(picture, faces, backbone, size, preset, conditionings, energy, variants, margin, seed, callback)


VISUAL_WEIGHT = 0.5


def _redraw(
    picture: Tensor,
    faces: Sequence[Face],
    backbone: Backbone,
    size: int,
    preset: Preset,
    conditionings: Mapping[str, Any] | None,
    energy_of: Callable[[Tensor, Tensor], Energy | None],
    variants: int,
    margin: float,
    seed: int | None,
    callback: Callback | None,
) -> list[Tensor]:
    """Noise each face's crop to the preset's strength, denoise it under the energy of the crops, and paste it back."""
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
    if (energy := energy_of(crops, landmarks)) is not None:
        gradient = latent_gradient(energy, backbone.differentiable_decoder())
        denoiser = guided(denoiser, gradient, sigmas, preset.guidance, backbone.noise_levels)

    samples = sample_euler(denoiser, noise_to(latents, sigmas[0], noise), sigmas, callback)
    redrawn = backbone.decode(samples).movedim(1, -1).cpu().unflatten(0, (len(faces), variants))
    return [paste_faces(picture, redrawn[:, variant], faces, margin) for variant in range(variants)]
