"""Only the face is sampled anew; what is around it is the original's at every step."""

import dataclasses

import numpy as np
import pytest
import skimage.data
import torch

from diffprivacy import demo
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.inpainting import inpainting, latent_mask
from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.diffusion.sampling import ancestral_step, sample_ancestral, sample_euler
from diffprivacy.faces.geometry import Face, crop_face, crop_landmarks, face_mask
from diffprivacy.faces.keeping import kept_parts, replaced_part
from diffprivacy.presets import PRESETS
from diffprivacy.regeneration import Regeneration, latent_shape, regenerate_crops

POINTS = np.array([[203, 102], [247, 102], [226, 128], [208, 150], [243, 150]], np.float32)
FACE = Face((180, 60, 270, 185), POINTS, 0.9)
"""The astronaut's."""
CROP = {"size": demo.IMAGE_SIZE, "margin": demo.MARGIN}
SIGMAS = torch.tensor([8.0, 3.0, 1.0, 0.0])


@pytest.fixture
def half():
    """Latents, their noise, and a mask of their upper half."""
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=generator)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, :4] = 1
    return latents, noise, mask


def test_outside_the_mask_the_network_sees_the_noised_original(half):
    latents, noise, mask = half
    seen = []

    def network(x, sigma):
        seen.append((x, sigma))
        return torch.zeros_like(x)

    def fresh(_):
        return torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))

    start = latents + SIGMAS[0] * noise
    samples = sample_ancestral(inpainting(network, latents, noise, mask), start, SIGMAS, fresh)
    assert [float(sigma) for _, sigma in seen] == [8.0, 3.0, 1.0]
    for x, sigma in seen:
        assert torch.allclose(x[:, :, 4:], (latents + sigma * noise)[:, :, 4:], atol=1e-5)
    down, up = ancestral_step(SIGMAS[0], SIGMAS[1])
    inside = (start + start / 8.0 * (down - 8.0) + up * fresh(0))[:, :, :4]
    assert torch.allclose(seen[1][0][:, :, :4], inside, atol=1e-5)
    assert torch.allclose(samples[:, :, 4:], latents[:, :, 4:], atol=1e-5)
    assert torch.allclose(samples[:, :, :4], torch.zeros(2, 4, 4, 8), atol=1e-5)


def test_a_mask_of_everything_changes_nothing(half):
    latents, noise, mask = half
    start = latents + SIGMAS[0] * noise
    plain = sample_euler(lambda x, sigma: x.tanh(), start, SIGMAS)
    masked = inpainting(lambda x, sigma: x.tanh(), latents, noise, torch.ones_like(mask))
    assert torch.equal(sample_euler(masked, start, SIGMAS), plain)


def test_a_latent_pixel_is_sampled_where_more_than_a_quarter_of_it_is_masked():
    masks = torch.zeros(1, 16, 24)
    masks[0, :8, :2] = 1
    masks[0, :8, 8:11] = 1
    masks[0, 8:, 8:] = 0.3
    assert latent_mask(masks, (2, 3)).tolist() == [[[[0, 1, 0], [0, 1, 1]]]]


@pytest.mark.parametrize(("size", "margin"), [(128, 1.45), (512, 1.8), (96, 1.0)])
def test_the_mask_of_a_crop_follows_from_its_points(size, margin):
    points = crop_landmarks(FACE, size, margin)
    assert torch.allclose(replaced_part(points, size), face_mask(FACE, size, margin), atol=1e-4)


def test_kept_parts_are_not_replaced():
    points = crop_landmarks(FACE, 128, demo.MARGIN)
    eyes = kept_parts((128, 128), [Face((0, 0, 127, 127), points.numpy(), 1.0)], ("eyes",))
    whole, without = (replaced_part(points, 128, parts) for parts in ((), ("eyes",)))
    assert float(eyes.max()) == 1
    assert torch.allclose(without, whole * (1 - eyes))


@pytest.mark.parametrize("keep", [(), ("mouth",)])
def test_a_new_face_is_drawn_into_the_originals_latent(monkeypatch, keep):
    diffusion_model = load_diffusion_model()
    monkeypatch.setattr(diffusion_model, "decode", lambda samples: samples)
    crop = crop_face(torch.from_numpy(skimage.data.astronaut()).float() / 255, FACE, **CROP).movedim(-1, 0)[None]
    points = crop_landmarks(FACE, **CROP)[None]
    noise = NoiseKey.from_seed(0).normal((2, *latent_shape(diffusion_model, demo.IMAGE_SIZE)))
    how = Regeneration(dataclasses.replace(PRESETS["anonymize"]["default"], steps=4), variants=2, keep=keep)
    made, original = regenerate_crops(crop, points, noise, diffusion_model, how), diffusion_model.encode(crop)
    drawn = latent_mask(replaced_part(points[0], demo.IMAGE_SIZE, keep)[None], original.shape[-2:])[0, 0] == 1
    for variant in made:
        assert torch.allclose(variant[:, ~drawn], original[0][:, ~drawn], atol=1e-4)
        assert (variant - original[0])[:, drawn].abs().mean() > 0.3
