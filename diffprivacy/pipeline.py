"""The whole job on one picture, on any Backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .diffusion.conditioning import scheduled, stage_denoiser
from .diffusion.guidance import Gradient, guided
from .diffusion.model import Backbone, Denoiser
from .diffusion.noise import NoiseKey
from .diffusion.sampling import Callback, ddim_sigmas, noise_to, sample_euler
from .diffusion.temporal import steadied
from .errors import DiffPrivacyError, NoFaceError
from .faces.geometry import MARGIN, Face, crop_face, crop_landmarks, paste_faces
from .identity.energies import (
    Energy,
    augmented,
    diversity,
    identity_away,
    identity_toward,
    latent_gradient,
    visual_distance,
)
from .identity.recognizers import FaceMatcher
from .presets import PRESETS, Preset


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
    noise_key: NoiseKey | None = None,
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
    noise_key: what the noise follows from; by default a fresh one.

    Raises NoFaceError without faces, DiffPrivacyError for a size that does not fit the backbone.
    """
    energy = anonymizing(recognizer, variants)
    return _redraw(
        picture, faces, backbone, size, preset, pseudo_words, prompt, energy, variants, margin, noise_key, callback
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
    noise_key: NoiseKey | None = None,
    callback: Callback | None = None,
) -> Iterator[Tensor]:
    """The picture (H,W,3) in [0,1] with every given face looking like somebody else whom machines still match.

    As :func:`anonymize`, but guided toward the original's identity (Diff-Privacy, arXiv 2309.05330, section on
    visual identity information hiding) and away from its looks.

    Raises DiffPrivacyError without a recognizer: nothing would hold the identity.
    """
    energy = hiding(recognizer)
    return _redraw(
        picture, faces, backbone, size, preset, pseudo_words, prompt, energy, variants, margin, noise_key, callback
    )


VISUAL_WEIGHT = 1.0
"""Of looking different, against machines matching, in :func:`hide`."""
GRADIENT_SIDE = 512
"""Gradients are taken through as many crops at once as fill a picture of this side in pixels, to bound the memory."""
NETWORK_SIDE = 1024
"""The same for the network and the autoencoder, which need no gradients."""

EnergyOf = Callable[[Tensor, Tensor], Energy | None]
"""What guides the redrawing of original crops (F,3,S,S) in [0,1] with their five points (F,5,2); None for nothing."""


def anonymizing(recognizer: FaceMatcher | None, variants: int = 1, target: Sequence[Tensor] | None = None) -> EnergyOf:
    """Away from the original's identity, and the variants from each other; nothing without a recognizer.

    target: embeddings (1,D), one for each network, of a new face that has been made already and is to be it again.
    """

    def energy(crops: Tensor, landmarks: Tensor) -> Energy | None:
        if recognizer is None:
            return None
        away = identity_away(recognizer, recognizer.reference(crops, landmarks), landmarks)
        if target is not None:
            same = tuple(vector.expand(len(crops), -1) for vector in target)
            away = away + identity_toward(recognizer, same, landmarks)
        return augmented(away + diversity(recognizer, landmarks) if variants > 1 else away, landmarks)

    return energy


def hiding(recognizer: FaceMatcher | None) -> EnergyOf:
    """Toward the original's identity and away from its looks; raises DiffPrivacyError without a recognizer."""
    if recognizer is None:
        raise DiffPrivacyError("Hiding needs a recognizer that keeps the identity; name one.", "recognizer")

    def energy(crops: Tensor, landmarks: Tensor) -> Energy:
        toward = identity_toward(recognizer, recognizer.reference(crops, landmarks), landmarks)
        return augmented(toward, landmarks) + VISUAL_WEIGHT * visual_distance(crops, landmarks, landmarks)

    return energy


def redraw_crops(
    crops: Tensor,
    landmarks: Tensor,
    noise: Tensor,
    backbone: Backbone,
    preset: Preset,
    energy_of: EnergyOf,
    pseudo_words: Tensor | None = None,
    prompt: str = "a photo of *",
    steadiness: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """Crops (F,3,S,S) in [0,1] noised to the preset's strength and denoised under the energy: (F * V,3,S,S).

    landmarks: the five points (F,5,2) in pixels of the crops. noise: unit Gaussian (F * V,C,h,w), V variants of each.
    pseudo_words: (S,D), one row for each time stage, which stand for ``*`` in the prompt until the preset switches to
    the empty prompt; without them the empty prompt holds throughout.
    steadiness: of consecutive frames of one face, over how many neighbours to both sides it is steadied; 0 for none.
    """
    size = crops.shape[-1]
    variants = len(noise) // len(crops)
    sigmas = ddim_sigmas(backbone.noise_levels, preset.steps, preset.strength)
    at_once = max(variants, (NETWORK_SIDE // size) ** 2)
    empty = stage_denoiser(backbone)
    msi = empty if pseudo_words is None else stage_denoiser(backbone, prompt, pseudo_words)
    whole = scheduled({"msi": msi, "empty": empty}, preset.schedule(), backbone.noise_levels)
    denoiser = _in_parts(whole, at_once)
    if (gradient := _gradient(crops, landmarks, variants, backbone, energy_of)) is not None:
        denoiser = guided(denoiser, gradient, sigmas, preset.guidance, backbone.noise_levels)
    if steadiness:
        denoiser = steadied(denoiser, steadiness)
    latents = torch.cat([backbone.encode(part) for part in crops.split(at_once)]).repeat_interleave(variants, dim=0)
    samples = sample_euler(denoiser, noise_to(latents, sigmas[0], noise.to(latents)), sigmas, callback)
    return torch.cat([backbone.decode(part) for part in samples.split(at_once)])


def _in_parts(denoiser: Denoiser, at_once: int) -> Denoiser:
    return lambda x, sigma: torch.cat([denoiser(part, sigma) for part in x.split(at_once)])


def _gradient(
    crops: Tensor, landmarks: Tensor, variants: int, backbone: Backbone, energy_of: EnergyOf
) -> Gradient | None:
    """The energies' gradient, taken through a few crops at a time; each crop's energy is its own."""
    chunk = max(1, (GRADIENT_SIDE // crops.shape[-1]) ** 2)
    faces = max(1, chunk // variants)
    decoder = backbone.differentiable_decoder()
    energies = [energy_of(*part) for part in zip(crops.split(faces), landmarks.split(faces), strict=True)]
    gradients = [latent_gradient(energy, decoder, chunk) for energy in energies if energy is not None]
    if not gradients:
        return None

    def gradient(z0: Tensor, seed: int) -> Tensor:
        parts = zip(gradients, z0.split(faces * variants), strict=True)
        return torch.cat([of_part(part, seed) for of_part, part in parts])

    return gradient


def _redraw(
    picture: Tensor,
    faces: Sequence[Face],
    backbone: Backbone,
    size: int,
    preset: Preset,
    pseudo_words: Sequence[Tensor] | None,
    prompt: str,
    energy_of: EnergyOf,
    variants: int,
    margin: float,
    noise_key: NoiseKey | None,
    callback: Callback | None,
) -> Iterator[Tensor]:
    """Redraw each face's crop and paste it back; one after the other, so that memory does not grow with their number."""
    if not faces:
        raise NoFaceError("There is no face to protect in the picture.")
    check_size(size, backbone)
    noise_key = noise_key or NoiseKey()
    shape = latent_shape(backbone, size)
    redrawn = []
    for i, face in enumerate(faces):
        crop = crop_face(picture, face, size, margin).movedim(-1, 0)[None]
        noise = torch.stack([noise_key.normal(shape, "face", i, "variant", variant) for variant in range(variants)])
        new = redraw_crops(
            crop,
            crop_landmarks(face, size, margin)[None],
            noise,
            backbone,
            preset,
            energy_of,
            None if pseudo_words is None else pseudo_words[i],
            prompt,
            callback=part_of(callback, i, len(faces)),
        )
        redrawn.append(new.movedim(1, -1).cpu())
    return (paste_faces(picture, [crops[variant] for crops in redrawn], faces, margin) for variant in range(variants))


def check_size(size: int, backbone: Backbone) -> None:
    """Raises DiffPrivacyError for a crop size that does not fit the backbone."""
    if size % backbone.downscale:
        raise DiffPrivacyError(f"The crop size {size} is no multiple of {backbone.downscale}; choose one, such as 512.")


def latent_shape(backbone: Backbone, size: int) -> tuple[int, int, int]:
    """(C,h,w) of a square crop's latent."""
    return backbone.latent_channels, size // backbone.downscale, size // backbone.downscale


def part_of(callback: Callback | None, done: int, parts: int) -> Callback | None:
    """A callback for one of several sampling runs of equal length that counts on through all of them."""
    if callback is None:
        return None
    return lambda step: callback({**step, "i": done * step["steps"] + step["i"], "steps": parts * step["steps"]})
