"""Recovery on real photos with the demo model: how exact it is, and what it refuses."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from diffprivacy import demo, pipeline
from diffprivacy.backends.diffusers import DiffusersModel
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.conditioning import stage_denoiser
from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.diffusion.sampling import sample_euler
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.evaluation.fidelity import psnr
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import crop_face, paste_faces, protected_mask
from diffprivacy.media.images import Picture, decode_picture, encode_png, levels
from diffprivacy.presets import Preset
from diffprivacy.recovery.key import RecoveryKey
from diffprivacy.recovery.replay import Replay, record, recover, replay
from diffprivacy.regeneration import Regeneration
from testing.folders import FRIENDS

BLUNT = Preset(strength=0.6, steps=5, switch=None)


@pytest.fixture(scope="module")
def diffusion_model(demo_model: DiffusersModel) -> DiffusersModel:
    return demo_model


@dataclasses.dataclass
class Scene:
    """A photo, its faces, and the protected picture as a file gives it back."""

    original: Picture
    faces: list
    protected: Picture


def scene(original: Picture, diffusion_model: DiffusersModel) -> Scene:
    faces = load_detector(None).detect(original.rgb)
    (rgb,) = pipeline.protect(
        original.rgb, faces, diffusion_model, demo.CROP, Regeneration(BLUNT), NoiseKey.from_seed(1)
    )
    return Scene(original, faces, decode_picture(encode_png(dataclasses.replace(original, rgb=rgb)), "protected"))


@pytest.fixture(scope="module")
def astronaut(diffusion_model) -> Scene:
    return scene(Picture(torch.from_numpy(skimage.data.astronaut().astype(np.float32) / 255)), diffusion_model)


@pytest.fixture(scope="module")
def group(diffusion_model) -> Scene:
    pixels = np.asarray(Image.open(FRIENDS).reduce(2))
    return scene(Picture(torch.from_numpy(pixels.astype(np.float32) / 255)), diffusion_model)


def key_of(scene: Scene, diffusion_model: DiffusersModel | None, fidelity: str = "latent", **options) -> RecoveryKey:
    key = record(scene.original, scene.faces, diffusion_model, demo.CROP, fidelity, Replay(**options))
    return RecoveryKey.from_bytes(key.bound_to(scene.protected).to_bytes())


def crop(rgb: torch.Tensor, scene: Scene) -> torch.Tensor:
    return crop_face(rgb, scene.faces[0], demo.IMAGE_SIZE, demo.MARGIN)


@pytest.fixture(scope="module")
def short_key(astronaut, diffusion_model) -> RecoveryKey:
    """Of few steps, which are exact, too."""
    return key_of(astronaut, diffusion_model, steps=4)


@pytest.fixture(scope="module")
def lost(astronaut, diffusion_model) -> Callable[[torch.Tensor], float]:
    """By how many dB less than a round trip through the autoencoder the worst of some latents shows the face."""
    original = crop(astronaut.original.rgb, astronaut)
    encoded = diffusion_model.encode(original.movedim(-1, 0)[None])

    def of(latents: torch.Tensor) -> float:
        return min(psnr(picture.movedim(0, -1), original) for picture in diffusion_model.decode(latents))

    return lambda latents: of(encoded) - of(latents)


def test_replay_is_as_good_as_the_autoencoder(astronaut, diffusion_model, lost):
    key = key_of(astronaut, diffusion_model)
    assert lost(replay(key, diffusion_model)) < 0.01
    in_another_batch_size = key.noise_map.repeat(2, 1, 1, 1)
    assert lost(sample_euler(stage_denoiser(diffusion_model), in_another_batch_size, key.sigmas)) < 0.1


@pytest.mark.parametrize(("kind", "loss"), [("latent", 0.01), ("compact", 0.2)])
def test_belm_is_as_good(astronaut, diffusion_model, lost, kind, loss):
    assert lost(replay(key_of(astronaut, diffusion_model, kind, method="belm"), diffusion_model)) < loss


def test_recovered_picture_shows_the_original_and_nothing_of_the_strange_face(astronaut, short_key, diffusion_model):
    recovered = recover(astronaut.protected, [short_key], diffusion_model)
    original, protected = astronaut.original.rgb, astronaut.protected.rgb
    mask = protected_mask(original.shape, astronaut.faces, demo.MARGIN)
    assert torch.equal(recovered.rgb[mask == 0], original[mask == 0])
    # The soft border too comes from the key alone: another protected picture gives the same recovery.
    grey = torch.where(mask[..., None] > 0, 0.5, protected)
    key = short_key.bound_to(Picture(grey))
    assert torch.allclose(recover(Picture(grey), [key], diffusion_model).rgb, recovered.rgb, atol=1e-6)
    round_trip = diffusion_model.decode(diffusion_model.encode(crop(original, astronaut).movedim(-1, 0)[None]))[
        0
    ].movedim(0, -1)
    ceiling = paste_faces(original, [round_trip], astronaut.faces, demo.MARGIN, opaque=True)
    assert psnr(recovered.rgb, original) > psnr(ceiling, original) - 0.1
    assert psnr(protected, original) < psnr(ceiling, original) - 3


def test_pseudo_words_bring_the_picture_back(astronaut, diffusion_model):
    words = [
        torch.randn(10, diffusion_model.text_encoders[0].config.hidden_size, generator=torch.Generator().manual_seed(3))
    ]
    key = key_of(astronaut, diffusion_model, prompt="a photo of *", pseudo_words=words, steps=10)
    encoded = diffusion_model.encode(crop(astronaut.original.rgb, astronaut).movedim(-1, 0)[None])
    error = (replay(key, diffusion_model) - encoded).square().mean().sqrt()
    plain = dataclasses.replace(key, prompt="", pseudo_words=None)
    assert error < 1e-4
    assert (replay(plain, diffusion_model) - encoded).square().mean().sqrt() > 100 * error


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_lossless_brings_every_bit_back_without_a_model(group, bit_depth):
    noise = torch.rand(group.original.rgb.shape, generator=torch.Generator().manual_seed(1)) * 1e-3
    original = Picture(torch.from_numpy(levels(group.original.rgb + noise, bit_depth) / (2**bit_depth - 1)).float())
    original = dataclasses.replace(original, bit_depth=bit_depth)
    mask = protected_mask(original.rgb.shape, group.faces, demo.MARGIN)[..., None]
    protected = dataclasses.replace(original, rgb=original.rgb * (1 - mask))
    protected = decode_picture(encode_png(protected), "protected")
    key = key_of(Scene(original, group.faces, protected), None, "lossless")
    recovered = recover(protected, [key])
    assert torch.equal(recovered.rgb, original.rgb)
    assert np.array_equal(levels(recovered.rgb, bit_depth), levels(original.rgb, bit_depth))


@pytest.mark.parametrize("fidelity", ["latent", "lossless"])
def test_faces_are_released_one_by_one(group, diffusion_model, fidelity):
    """A key of one face changes nothing outside its mask, and all keys together bring back what one for all does."""
    chosen = dataclasses.replace(group, faces=group.faces[1:3])
    key = key_of(
        chosen,
        None if fidelity == "lossless" else diffusion_model,
        fidelity,
        **({} if fidelity == "lossless" else {"steps": 4}),
    )
    one = recover(group.protected, [key.only(0)], diffusion_model).rgb
    mask = protected_mask(one.shape, chosen.faces[:1], demo.MARGIN)
    assert torch.equal(one[mask == 0], group.protected.rgb[mask == 0])
    assert not torch.equal(one[mask == 1], group.protected.rgb[mask == 1])
    if fidelity == "lossless":
        assert torch.equal(one[mask > 0], group.original.rgb[mask > 0])
    each = recover(group.protected, key.each(), diffusion_model).rgb
    assert torch.equal(each, recover(group.protected, [key], diffusion_model).rgb)


def test_a_lossless_key_holds_no_pixel_of_other_faces(group):
    """Not even where the rectangle around one face cuts into its neighbour."""
    key = key_of(group, None, "lossless")
    for face, patch in zip(group.faces, key.patches, strict=True):
        part = decode_picture(patch.file, "patch")
        mask = protected_mask(group.original.rgb.shape, [face], demo.MARGIN)
        height, width = part.rgb.shape[:2]
        inside = mask[patch.top : patch.top + height, patch.left : patch.left + width] > 0
        assert part.rgb[~inside].abs().max() == 0


def test_a_key_of_another_picture_is_refused(astronaut, group):
    key = key_of(astronaut, None, "lossless")
    with pytest.raises(DiffPrivacyError, match="to one of 512x512, and this has 640x443"):
        recover(group.protected, [key])
    with pytest.raises(DiffPrivacyError, match="belongs to another image, or this one's pixels were changed"):
        recover(astronaut.original, [key])


def test_a_changed_picture_is_recovered_on_request(astronaut):
    file = io.BytesIO()
    Image.fromarray(levels(astronaut.protected.rgb, 8)).save(file, "JPEG", quality=90)
    key = key_of(astronaut, None, "lossless")
    recovered = recover(decode_picture(file.getvalue(), "jpeg"), [key], changed=True).rgb
    mask = protected_mask(recovered.shape, astronaut.faces, demo.MARGIN) > 0
    assert torch.equal(recovered[mask], astronaut.original.rgb[mask])


def test_another_checkpoint_is_refused_by_name(astronaut, short_key, diffusion_model):
    key = short_key
    for part in key.fingerprints:
        other = dataclasses.replace(key, fingerprints={**key.fingerprints, part: "0" * 32})
        with pytest.raises(DiffPrivacyError, match=f"checkpoint: .* another {part}: name the same one"):
            recover(astronaut.protected, [other], diffusion_model)


def test_fingerprints_tell_weights_apart_and_ignore_precision(diffusion_model):
    other = load_diffusion_model()
    assert other.fingerprints == diffusion_model.fingerprints
    half = other.to("cpu", torch.float16)
    assert half.fingerprints == diffusion_model.fingerprints
    with torch.no_grad():
        next(other.autoencoder.parameters()).mul_(1.01)
    assert other.fingerprints["autoencoder"] != diffusion_model.fingerprints["autoencoder"]
    assert other.fingerprints["checkpoint"] == diffusion_model.fingerprints["checkpoint"]


def huge_patch() -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (4000, 4000)).save(file, "PNG")
    return file.getvalue()


def test_patches_that_do_not_fit_are_refused_unread(astronaut, monkeypatch):
    key = key_of(astronaut, None, "lossless")
    patch = key.patches[0]
    for changes in ({"top": 500}, {"file": b"nothing"}, {"file": patch.file[:40]}, {"file": huge_patch()}):
        bad = dataclasses.replace(key, patches=(dataclasses.replace(patch, **changes),))
        with pytest.raises(DiffPrivacyError, match="patch"):
            recover(astronaut.protected, [bad])
