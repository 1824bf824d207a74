"""The whole job on one picture, on any Backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from .stages import PRESETS, Preset, scheduled, stage_denoiser


def anonymize(
    picture: Tensor,
    faces: Sequence[Face],
    backbone: Backbone,
    size: int,
    preset: Preset = PRESETS["anonymize"]["default"],
    pseudo_words: Sequence[Tensor] | None = None,
    prompt: str = "a photo of *",
    recognizer: FaceMatcher | None = None,
    variants: int = 1,
    margin: float = MARGIN,
    seed: int | None = None,
    callback: Callback | None = None,
) -> Iterator[Tensor]:
    """The picture (H,W,3) in [0,1] with every given face made somebody else; for each variant one picture, pasted
    together when it is asked for.

    Each face is noised to the preset's strength and denoised (Diff-Privacy, arXiv 2309.05330, section on
    anonymization), guided away from its identity when a recognizer is given. Outside the faces' masks the picture
    keeps every bit.

    size: side in pixels of the crops the backbone redraws, a multiple of its downscale.
    pseudo_words: (S,D) of each face, one row for each time stage, which stand for ``*`` in the prompt until the preset
    switches to the empty prompt; without them the empty prompt holds throughout.
    seed: of the noise; by default the operating system's entropy.

    Raises NoFaceError without faces, DiffPrivacyError for a size that does not fit the backbone.
    """

    def energy(crops: Tensor, landmarks: Tensor) -> Energy | None:
        if recognizer is None:
            return None
        away = identity_away(recognizer, recognizer.reference(crops, landmarks), landmarks)
        return augmented(away + diversity(recognizer, landmarks) if variants > 1 else away, landmarks)

    return _redraw(
        picture, faces, backbone, size, preset, pseudo_words, prompt, energy, variants, margin, seed, callback
    )


def hide(
    picture: Tensor,
    faces: Sequence[Face],
    backbone: Backbone,
    size: int,
    preset: Preset = PRESETS["hide"]["default"],
    pseudo_words: Sequence[Tensor] | None = None,
    prompt: str = "a photo of *",
    recognizer: FaceMatcher | None = None,
    variants: int = 1,
    margin: float = MARGIN,
    seed: int | None = None,
    callback: Callback | None = None,
) -> Iterator[Tensor]:
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

    return _redraw(
        picture, faces, backbone, size, preset, pseudo_words, prompt, energy, variants, margin, seed, callback
    )


VISUAL_WEIGHT = 1.0
"""Of looking different, against machines matching, in :func:`hide`."""
GRADIENT_SIDE = 512
"""Gradients are taken through as many crops at once as fill a picture of this side in pixels, to bound the memory."""


def _redraw(
    picture: Tensor,
    faces: Sequence[Face],
    backbone: Backbone,
    size: int,
    preset: Preset,
    pseudo_words: Sequence[Tensor] | None,
    prompt: str,
    energy_of: Callable[[Tensor, Tensor], Energy | None],
    variants: int,
    margin: float,
    seed: int | None,
    callback: Callback | None,
) -> Iterator[Tensor]:
    """Noise each face's crop to the preset's strength, denoise it under the energy of the crop, and paste it back.

    Faces go one after the other, so that memory does not grow with their number.
    """
    if not faces:
        raise NoFaceError("There is no face to protect in the picture.")
    if size % backbone.downscale:
        raise DiffPrivacyError(f"The crop size {size} is no multiple of {backbone.downscale}; choose one, such as 512.")
    sigmas = ddim_sigmas(backbone.noise_levels, preset.steps, preset.strength)
    generator = torch.Generator().manual_seed(torch.seed() if seed is None else seed)
    decoder = backbone.differentiable_decoder()
    empty = stage_denoiser(backbone)

    def progress(done: int) -> Callback:
        steps = len(sigmas) - 1

        def report(step: dict[str, Any]) -> None:
            if callback is not None:
                callback({**step, "i": done * steps + step["i"], "steps": len(faces) * steps})

        return report

    redrawn = []
    for i, face in enumerate(faces):
        crop = crop_face(picture, face, size, margin).movedim(-1, 0)[None]
        landmarks = crop_landmarks(face, size, margin)[None]
        msi = empty if pseudo_words is None else stage_denoiser(backbone, prompt, pseudo_words[i])
        denoiser = scheduled({"msi": msi, "empty": empty}, preset.schedule(), backbone.noise_levels)
        if (energy := energy_of(crop, landmarks)) is not None:
            gradient = latent_gradient(energy, decoder, chunk=max(1, (GRADIENT_SIDE // size) ** 2))
            denoiser = guided(denoiser, gradient, sigmas, preset.guidance, backbone.noise_levels)
        latents = backbone.encode(crop).repeat(variants, 1, 1, 1)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        samples = sample_euler(denoiser, noise_to(latents, sigmas[0], noise), sigmas, progress(i))
        redrawn.append(backbone.decode(samples).movedim(1, -1).cpu())
    return (paste_faces(picture, [crops[variant] for crops in redrawn], faces, margin) for variant in range(variants))
