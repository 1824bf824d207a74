"""Regenerate faces: noised to a preset's strength, denoised under an energy (Diff-Privacy, arXiv 2309.05330)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .diffusion.conditioning import scheduled, stage_denoiser
from .diffusion.guidance import Gradient, guided
from .diffusion.inpainting import inpainting, latent_mask
from .diffusion.model import Denoiser, DiffusionModel
from .diffusion.noise import NoiseKey
from .diffusion.out_of_memory import halving, in_parts
from .diffusion.sampling import Callback, ddim_sigmas, noise_to, sample_ancestral, sample_euler
from .diffusion.sharpening import sharpening
from .diffusion.temporal import smoothed
from .errors import DiffPrivacyError
from .faces.colors import match_colors
from .faces.keeping import replaced_part
from .identity.energies import (
    ACCEPTED,
    STRUCTURE,
    Energy,
    augmented,
    diversity,
    identity_away,
    identity_toward,
    latent_gradient,
    visual_distance,
)
from .identity.recognizers import FaceMatcher
from .identity.strangers import AWAY, DECOY, DECOY_WEIGHT, drawn_aims, drawn_decoys
from .presets import Preset

VISUAL_WEIGHT = 1.0
"""Of looking different, against machines matching, in :func:`hiding`."""
TEXT_SCALE = 5.0
"""How far predictions go from the empty prompt's to a text's, in their distance."""
GRADIENT_SIDE = 512
"""Gradients are taken through as many crops at once as fill an image of this side in pixels, to bound the memory."""
NETWORK_SIDE = 1024
"""The same for the network and the autoencoder, which need no gradients."""

Task = Literal["anonymize", "hide"]
EnergyForm = Literal["stranger", "paper"]
EnergyOf = Callable[[Tensor, Tensor, Tensor], Energy | None]
"""What guides the regeneration of original crops (F,3,S,S) in [0,1] with their five points (F,5,2); None for nothing.

Its third argument is the private noise (F * V,...), from which aims are drawn.
"""


@dataclass(frozen=True)
class Regeneration:
    """How a face is regenerated.

    preset: strength, steps, schedule and guidance. energy: what guides, None for nothing.
    words: (S,D), one row for each time stage, which stand for ``*`` in the prompt until the preset switches to the
    empty prompt; without them the empty prompt holds throughout.
    text: what the new face is to be, such as "an old man"; where it is given it takes the empty prompt's place, by
    classifier-free guidance (Ho and Salimans, arXiv 2207.12598) of ``TEXT_SCALE``.
    variants: how many new faces are made of one. smoothing: of consecutive frames of one face, the weights
    (F,F) with which predictions are averaged over time; None for no average. match_colors: the new faces take the
    original's colours at their border, see :mod:`.faces.colors`. by: what does the work of :func:`regenerate_crops`,
    such as one that does it for several images at once; None for that itself. noise_key: of a persona, from which all
    faces of one person start; None for the noise of the image. keep: names of the parts that stay, see
    :mod:`.faces.keeping`.
    """

    preset: Preset
    energy: EnergyOf | None = None
    words: Tensor | None = None
    prompt: str = "a photo of *"
    text: str = ""
    variants: int = 1
    smoothing: Tensor | None = None
    match_colors: bool = False
    by: Callable[..., Tensor] | None = None
    noise_key: NoiseKey | None = None
    keep: Sequence[str] = ()


def task_energy(
    task: Task,
    recognizer: FaceMatcher | None,
    form: EnergyForm = "stranger",
    variants: int = 1,
    target: Sequence[Tensor] | None = None,
    alone: bool = False,
    persona: Sequence[Tensor] | None = None,
) -> EnergyOf:
    """What guides a task: :func:`anonymizing` or :func:`hiding`, or where there is a persona :func:`becoming` it.

    alone: each of several faces is guided as if it were alone, see :func:`.identity.energies.augmented`.
    persona: embeddings (1,D), one for each network.
    """
    if persona is not None:
        toward = becoming(recognizer, persona, alone)
        return toward if task == "anonymize" else looking_different(toward)
    if task == "anonymize":
        return anonymizing(recognizer, variants, target, form, alone)
    return hiding(recognizer, form, alone)


def anonymizing(
    recognizer: FaceMatcher | None,
    variants: int = 1,
    target: Sequence[Tensor] | None = None,
    form: EnergyForm = "stranger",
    alone: bool = False,
) -> EnergyOf:
    """Away from the original's identity until it is a stranger's, and the variants from each other; nothing without a
    recognizer.

    A weak pull toward a decoy, a stranger drawn from the noise, makes two protections of one face harder to link.
    target: embeddings (1,D), one for each network, of a new face that was made before, which this one is to match.
    form: "paper" for max(cos, 0), without aims, decoys and random views (arXiv 2309.05330, anonymization).
    """

    def energy(crops: Tensor, landmarks: Tensor, noise: Tensor) -> Energy | None:
        if recognizer is None:
            return None
        reference = recognizer.reference(crops, landmarks)
        aims = drawn_aims(recognizer.strangers, noise, AWAY)
        whole = identity_away(recognizer, reference, landmarks, aims, form)
        if variants > 1:
            whole = whole + diversity(recognizer, landmarks, aims, form)
        if target is not None:
            same = tuple(vector.expand(len(crops), -1) for vector in target)
            whole = whole + identity_toward(recognizer, same, landmarks)
        elif form == "stranger":
            decoys = drawn_decoys(reference, noise)
            whole = whole + DECOY_WEIGHT * identity_toward(recognizer, decoys, landmarks, DECOY)
        return whole if form == "paper" else augmented(whole, landmarks, alone=alone)

    return energy


def becoming(
    recognizer: FaceMatcher | None, persona: Sequence[Tensor], alone: bool = False
) -> Callable[[Tensor, Tensor, Tensor], Energy]:
    """Toward a persona, and away from the original until it is a stranger's.

    persona: embeddings (1,D) or (F,D), one for each network. Raises DiffPrivacyError without a recognizer.
    """
    if recognizer is None:
        raise DiffPrivacyError("A persona needs a recognizer that guides toward it; name one.", "recognizer")

    def energy(crops: Tensor, landmarks: Tensor, noise: Tensor) -> Energy:
        reference = recognizer.reference(crops, landmarks)
        aims = drawn_aims(recognizer.strangers, noise, AWAY)
        target = tuple(vector.expand(len(crops), -1) for vector in persona)
        away = identity_away(recognizer, reference, landmarks, aims)
        return augmented(away + identity_toward(recognizer, target, landmarks), landmarks, alone=alone)

    return energy


def looking_different(energy_of: Callable[[Tensor, Tensor, Tensor], Energy]) -> EnergyOf:
    """With an energy, away from the original's structure."""

    def energy(crops: Tensor, landmarks: Tensor, noise: Tensor) -> Energy:
        visual = VISUAL_WEIGHT * visual_distance(crops, landmarks, landmarks, STRUCTURE)
        return energy_of(crops, landmarks, noise) + visual

    return energy


def hiding(recognizer: FaceMatcher | None, form: EnergyForm = "stranger", alone: bool = False) -> EnergyOf:
    """Toward the original's identity and away from its structure, each up to its aim.

    form: "paper" for 1 - cos alone, without random views (arXiv 2309.05330, hiding).
    Raises DiffPrivacyError without a recognizer.
    """
    if recognizer is None:
        raise DiffPrivacyError("Hiding needs a recognizer that keeps the identity; name one.", "recognizer")

    def energy(crops: Tensor, landmarks: Tensor, _: Tensor) -> Energy:
        reference = recognizer.reference(crops, landmarks)
        if form == "paper":
            return identity_toward(recognizer, reference, landmarks)
        return augmented(identity_toward(recognizer, reference, landmarks, ACCEPTED), landmarks, alone=alone)

    return energy if form == "paper" else looking_different(energy)


def regenerate_crops(
    crops: Tensor,
    landmarks: Tensor,
    noise: Tensor,
    diffusion_model: DiffusionModel,
    how: Regeneration,
    callback: Callback | None = None,
) -> Tensor:
    """Crops (F,3,S,S) in [0,1] regenerated: (F * V,3,S,S), the V variants of each in consecutive rows.

    landmarks: the five points (F,5,2) in pixels of the crops. noise: unit Gaussian (F * V,C,h,w). What
    pasting leaves is the original's at every step, so that the new face joins it.
    """
    preset, variants = how.preset, how.variants
    sigmas = ddim_sigmas(diffusion_model.noise_levels, preset.steps, preset.strength)
    at_once = max(variants, (NETWORK_SIDE // crops.shape[-1]) ** 2)
    gradient = _gradient(crops, landmarks, noise, diffusion_model, how)
    sharp = gradient is not None
    empty = _predictions(diffusion_model, sharp, text=how.text)
    msi = empty if how.words is None else _predictions(diffusion_model, sharp, how.prompt, how.words)
    whole = scheduled({"msi": msi, "empty": empty}, preset.schedule(), diffusion_model.noise_levels)
    denoiser = in_parts(whole, at_once)
    if gradient is not None:
        denoiser = guided(denoiser, gradient, sigmas, preset.guidance, diffusion_model.noise_levels, preset.ancestral)
    if how.smoothing is not None:
        denoiser = smoothed(denoiser, how.smoothing)
    latents = in_parts(diffusion_model.encode, at_once)(crops).repeat_interleave(variants, dim=0)
    starting = noise.to(latents)
    masks = torch.stack([replaced_part(points, crops.shape[-1], how.keep) for points in landmarks])
    mask = latent_mask(masks, latents.shape[-2:]).to(latents).repeat_interleave(variants, dim=0)
    denoiser = inpainting(denoiser, latents, starting, mask)
    start = noise_to(latents, sigmas[0], starting)
    if preset.ancestral:
        samples = sample_ancestral(denoiser, start, sigmas, partial(fresh_noise, noise), callback)
    else:
        samples = sample_euler(denoiser, start, sigmas, callback)
    new = in_parts(diffusion_model.decode, at_once)(samples)
    if not how.match_colors:
        return new
    originals, points = (each.repeat_interleave(variants, dim=0) for each in (crops, landmarks))
    return torch.stack([match_colors(*of_one) for of_one in zip(new, originals, points, strict=True)])


def fresh_noise(noise: Tensor, number: int, of: str = "step") -> Tensor:
    """New unit Gaussian noise, such as for a step, which follows from the private noise (B,...) row by row."""
    return torch.stack([NoiseKey.of(row).normal(tuple(row.shape), of, number) for row in noise])


def _predictions(
    diffusion_model: DiffusionModel, sharp: bool, prompt: str = "", words: Tensor | None = None, text: str = ""
) -> Denoiser:
    """The diffusion model under a prompt, guided from that toward a text; sharpened where it has words for spoilt ones."""
    without = stage_denoiser(diffusion_model, prompt, words)
    under = stage_denoiser(diffusion_model, text) if text else without
    spoilt = stage_denoiser(diffusion_model, diffusion_model.spoilt) if sharp and diffusion_model.spoilt else None

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        toward = under(x, sigma)
        denoised = toward
        if text:
            plain = without(x, sigma)
            denoised = plain + TEXT_SCALE * (toward - plain)
        return denoised if spoilt is None else denoised + sharpening(toward, spoilt(x, sigma))

    return denoise


def starting_noise(how: Regeneration, shape: tuple[int, int, int], noise_key: NoiseKey, *labels: str | int) -> Tensor:
    """Unit Gaussian noise (V,C,h,w) for the variants of a face: of its persona, else of the stream that the labels name."""
    key, which = (noise_key, labels) if how.noise_key is None else (how.noise_key, ())
    return torch.stack([key.normal(shape, *which, "variant", variant) for variant in range(how.variants)])


def latent_shape(diffusion_model: DiffusionModel, size: int) -> tuple[int, int, int]:
    """(C,h,w) of a square crop's latent; raises DiffPrivacyError for a size that does not fit the diffusion model."""
    if size % diffusion_model.downscale:
        raise DiffPrivacyError(
            f"The crop size {size} is no multiple of {diffusion_model.downscale}; choose one, such as 512."
        )
    return diffusion_model.latent_channels, size // diffusion_model.downscale, size // diffusion_model.downscale


def _gradient(
    crops: Tensor, landmarks: Tensor, noise: Tensor, diffusion_model: DiffusionModel, how: Regeneration
) -> Gradient | None:
    """The energies' gradient, taken through a few crops at a time; each crop's energy is its own."""
    if how.energy is None:
        return None
    chunk = max(1, (GRADIENT_SIDE // crops.shape[-1]) ** 2)
    faces = max(1, chunk // how.variants)
    decoder = diffusion_model.differentiable_decoder()
    parts = zip(crops.split(faces), landmarks.split(faces), noise.split(faces * how.variants), strict=True)
    energies = [how.energy(*part) for part in parts]
    gradients = [halving(partial(latent_gradient, energy, decoder), chunk) for energy in energies if energy is not None]
    if not gradients:
        return None

    def gradient(z0: Tensor, seed: int) -> Tensor:
        parts = zip(gradients, z0.split(faces * how.variants), strict=True)
        return torch.cat([of_part(part, seed) for of_part, part in parts])

    return gradient
