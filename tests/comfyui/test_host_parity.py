"""The same checkpoint file gives the same numbers through ComfyUI and through diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from diffprivacy.backends.diffusers import DiffusersModel, load_diffusion_model
from tests.comfyui.conftest import PACK

TOLERANCE = 1e-3


def relative_error(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of what varies in b."""
    return float((a - b).norm() / (b - b.mean()).norm())


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "pseudo_words": torch.randn(1, 768, generator=generator) * 0.02,
        "images": torch.rand(2, 3, 96, 64, generator=generator),
        "latents": torch.randn(2, 4, 12, 8, generator=generator),
        "x": torch.randn(2, 4, 12, 8, generator=generator) * 3,
        "sigma": torch.tensor(2.7),
    }


@pytest.fixture(scope="module")
def standalone(tiny_checkpoint: Path) -> DiffusersModel:
    diffusion_model = load_diffusion_model(tiny_checkpoint)
    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=256, patch_size=32
    )
    diffusion_model.vision_encoder = CLIPVisionModel(config).eval()
    return diffusion_model


@pytest.fixture(scope="module")
def comfy_outputs(
    inside, tiny_checkpoint: Path, inputs: dict, standalone: DiffusersModel, tmp_path_factory
) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("probe")
    vision = standalone.vision_encoder.state_dict()
    names = {key: key if key.startswith("vision_model.") else f"vision_model.{key}" for key in vision}
    save_file(
        {**inputs, **{f"vision.{names[key]}": value.contiguous() for key, value in vision.items()}}, folder / "in"
    )
    inside("probe.py", PACK, tiny_checkpoint, folder / "in", folder / "out")
    return load_file(folder / "out")


def test_noise_levels(comfy_outputs, standalone):
    assert relative_error(standalone.noise_levels.sigmas, comfy_outputs["sigmas"]) < 1e-5
    assert comfy_outputs["facts"].tolist() == [standalone.latent_channels, standalone.downscale]


def test_text_conditioning(comfy_outputs, standalone, inputs):
    words = standalone.text_conditioning("a photo of *, smiling", inputs["pseudo_words"])
    assert relative_error(words.context, comfy_outputs["text"]) < TOLERANCE
    assert relative_error(standalone.text_conditioning("").context, comfy_outputs["empty"]) < TOLERANCE


def test_pseudo_word_changes_the_conditioning(comfy_outputs, standalone):
    plain = standalone.text_conditioning("a photo of *, smiling")
    assert relative_error(plain.context, comfy_outputs["text"]) > 10 * TOLERANCE


def test_latents_and_pictures(comfy_outputs, standalone, inputs):
    assert relative_error(standalone.encode(inputs["images"]), comfy_outputs["encoded"]) < TOLERANCE
    decoded = standalone.decode(inputs["latents"])
    assert relative_error(decoded, comfy_outputs["decoded"]) < TOLERANCE
    assert relative_error(comfy_outputs["differentiable"], comfy_outputs["decoded"]) < TOLERANCE


def test_gradient_of_the_decoder(comfy_outputs, standalone, inputs):
    z = inputs["latents"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(standalone.differentiable_decoder()(z).square().sum(), z)
    assert relative_error(gradient, comfy_outputs["gradient"]) < TOLERANCE


def test_checkpointing_leaves_the_gradient_of_a_full_decoder_as_it_is(comfy_outputs):
    """With the same decoder of ComfyUI's own as a plain copy."""
    assert comfy_outputs["kl_plain_gradient"].abs().max() > 0
    assert relative_error(comfy_outputs["kl_gradient"], comfy_outputs["kl_plain_gradient"]) < 1e-5


def test_denoised(comfy_outputs, standalone, inputs):
    words = standalone.text_conditioning("a photo of *, smiling", inputs["pseudo_words"])
    for name, conditioning in (("text", words), ("empty", standalone.text_conditioning(""))):
        denoised = standalone.denoise(inputs["x"], inputs["sigma"], conditioning)
        noise = (inputs["x"] - denoised, inputs["x"] - comfy_outputs[f"denoised_{name}"])
        assert relative_error(*noise) < TOLERANCE


def test_image_features(comfy_outputs, standalone, inputs):
    for level, features in zip((1, 4), standalone.image_features(inputs["images"], [1, 4]), strict=True):
        assert relative_error(features, comfy_outputs[f"features_{level}"]) < TOLERANCE
