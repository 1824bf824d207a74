"""The same seed gives the same picture at the command line and through ComfyUI, with the embedded model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from diffprivacy import demo, pipeline, regeneration
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.diffusion.sampling import strength_steps
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import protected_mask
from diffprivacy.identity.energies import Energy, augmented, identity_away
from diffprivacy.media.images import Picture, read_picture, write_picture
from diffprivacy.presets import PRESETS
from diffprivacy.regeneration import Regeneration
from tests.comfyui.graphs import Graph, demo_crops, slot
from tests.comfyui.photos import pixels, write_astronaut

SEED = 5
DEFAULT = PRESETS["anonymize"]["default"]
PRESET = dataclasses.replace(DEFAULT, steps=10, scale=DEFAULT.scale / 5)
"""Few and gentle steps: guidance amplifies the last digits of float32, in which the hosts differ."""


class RandomNoise(NoiseKey):
    """The noise of ComfyUI's node of that name."""

    def normal(self, shape: tuple[int, ...], *labels: str | int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.manual_seed(SEED))


@pytest.fixture(scope="module")
def photo(server):
    return write_astronaut(server.base / "input")


def ancestral_noise():
    """The noise that ComfyUI's `euler_ancestral` adds, step by step."""
    generator = torch.Generator().manual_seed(SEED + 1)
    return lambda noise, _: torch.randn(noise.shape, generator=generator)


def through_comfyui(server, guided: bool) -> np.ndarray:
    """The demo model's face under the pipeline's sigmas, sampler and one seed."""
    graph = Graph()
    loader, image, crops = demo_crops(graph, variants=1)
    model, clip, vae, guide = loader, slot(loader, 1), slot(loader, 2), slot(loader, 4)
    if guided:
        energy = graph.add(
            "DiffPrivacyAnonymizeEnergy",
            **{"recognizer": guide, "reference": crops, "faces": slot(crops, 2), "identity": 1.0, "diversity": 1.0},
            **{"form": "smooth", "augmentations": 4},
        )
        low, high = PRESET.interval
        settings = {"rule": PRESET.rule, "scale": PRESET.scale, "from_step": high, "to_step": low, "every": 1}
        settings |= {"decoder": "VAE", "chunk": 0}
        model = graph.add("DiffPrivacyEnergyGuidance", model=model, vae=vae, energy=energy, **settings)
    steps = strength_steps(PRESET.steps, PRESET.strength)
    samples = graph.add(
        "SamplerCustomAdvanced",
        noise=graph.add("RandomNoise", noise_seed=SEED),
        guider=graph.add("BasicGuider", model=model, conditioning=graph.add("CLIPTextEncode", clip=clip, text="")),
        sampler=graph.add("KSamplerSelect", sampler_name="euler_ancestral"),
        sigmas=graph.add("BasicScheduler", model=model, scheduler="ddim_uniform", steps=steps, denoise=PRESET.strength),
        latent_image=graph.add("DiffPrivacyCropsToLatent", crops=crops, vae=vae, mask=slot(crops, 1)),
    )
    decoded = graph.add("VAEDecode", samples=samples, vae=vae)
    pasted = graph.add("DiffPrivacyPasteFaces", image=image, crops=decoded, faces=slot(crops, 2))
    saved = graph.add("DiffPrivacySaveProtected", image=pasted, filename_prefix="parity")
    (reference,) = server.run(graph)[saved[0]]["images"]
    return server.picture(reference)


def away_from_original(crops: torch.Tensor, landmarks: torch.Tensor, _: torch.Tensor) -> Energy:
    """A form without anything that is drawn."""
    guide = demo.load_recognizer("guide")
    away = identity_away(guide, guide.reference(crops, landmarks), landmarks, form="smooth")
    return augmented(away, landmarks)


@pytest.mark.parametrize(("guided", "largest", "mean"), [(False, 1, 0.001), (True, 24, 2.0)])
def test_one_seed_one_picture(server, photo, tmp_path, monkeypatch, guided, largest, mean):
    """Unguided to the rounding of 8 bits; guidance and sharpening amplify the last digits of float32.

    Levels of 255 in the face: the largest difference and the mean.
    """
    monkeypatch.setattr(regeneration, "fresh_noise", ancestral_noise())
    picture = read_picture(photo).rgb
    faces = load_detector(None).detect(picture)
    how = Regeneration(PRESET, away_from_original if guided else None)
    (made,) = pipeline.protect(picture, faces, load_diffusion_model(), demo.CROP, how, RandomNoise())
    write_picture(tmp_path / "made.png", Picture(made))
    face = protected_mask(picture.shape, faces, demo.MARGIN).numpy() > 0
    here, there = (rgb[face].astype(int) for rgb in (pixels(tmp_path / "made.png"), through_comfyui(server, guided)))
    difference = np.abs(here - there)
    assert np.abs(here - pixels(photo)[face]).mean() > 5
    assert (difference.max() <= largest, difference.mean() <= mean) == (True, True), (
        difference.max(),
        difference.mean(),
    )
