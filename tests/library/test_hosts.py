"""The diffusers host: checkpoints and folders in, the numbers diffusers itself computes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file

from diffprivacy.backends.diffusers import load_diffusion_model
from diffprivacy.backends.tokenizer import END_TOKEN, PLACEHOLDER_TOKEN, START_TOKEN, isolate_placeholders, tokenize
from diffprivacy.diffusion.model import NoiseLevels
from diffprivacy.errors import DiffPrivacyError


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
@pytest.mark.parametrize("timestep", [0, 20, 500, 999])
def test_denoise_predicts_the_clean_latent_of_diffusers_own_scheduler(folders, kind, timestep):
    diffusion_model = load_diffusion_model(folders[kind])
    scheduler = DDIMScheduler.from_pretrained(folders[kind] / "scheduler")
    scheduler.set_timesteps(1000)
    conditioning = diffusion_model.text_conditioning("a face")
    x_vp = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(1))
    sizes = None
    if conditioning.pooled is not None:
        sizes = {
            "text_embeds": conditioning.pooled.expand(2, -1),
            "time_ids": torch.tensor([[64.0, 48, 0, 0, 64, 48]]).expand(2, -1),
        }
    with torch.no_grad():
        output = diffusion_model.unet(
            x_vp, timestep, conditioning.context.expand(2, -1, -1), added_cond_kwargs=sizes
        ).sample
    expected = scheduler.step(output, timestep, x_vp).pred_original_sample
    sigma = diffusion_model.noise_levels.sigmas[timestep]
    found = diffusion_model.denoise(x_vp * (1 + sigma**2).sqrt(), sigma, conditioning)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_two_text_encoders_share_one_context(folders):
    diffusion_model = load_diffusion_model(folders["sdxl"])
    conditioning = diffusion_model.text_conditioning("a photo of *", torch.randn(1, 80))
    assert conditioning.context.shape == (1, 77, 80)
    assert conditioning.pooled is not None
    assert conditioning.pooled.shape == (1, 24)
    plain = diffusion_model.text_conditioning("a photo of *")
    assert not torch.allclose(plain.context[..., :32], conditioning.context[..., :32])
    assert not torch.allclose(plain.context[..., 32:], conditioning.context[..., 32:])


def test_pseudo_words_stand_where_the_placeholders_were(folders):
    """A prompt whose placeholder is replaced by an ordinary word's own embedding is that word's prompt."""
    diffusion_model = load_diffusion_model(folders["sd2"])
    table = diffusion_model.text_encoders[0].get_input_embeddings().weight
    face, smile = tokenize("face smile")[1:3]
    words = table[[face, smile]].detach()
    found = diffusion_model.text_conditioning("a *, and a *", words)
    torch.testing.assert_close(found.context, diffusion_model.text_conditioning("a face , and a smile").context)


def test_placeholders_and_pseudo_words_must_agree(folders):
    diffusion_model = load_diffusion_model(folders["sd2"])
    with pytest.raises(DiffPrivacyError, match=r"1 placeholder.* for 2 pseudo-word"):
        diffusion_model.text_conditioning("a photo of *", torch.randn(2, 48))


def test_latents_are_scaled_and_come_back(folders):
    diffusion_model = load_diffusion_model(folders["sdxl"])
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        mode = diffusion_model.autoencoder.model.encode(images * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(diffusion_model.encode(images), mode * 0.13025)
    with torch.no_grad():
        decoded = diffusion_model.autoencoder.model.decode(mode).sample
    torch.testing.assert_close(diffusion_model.decode(mode * 0.13025), (decoded / 2 + 0.5).clamp(0, 1))


def test_gradient_passes_the_decoder_and_only_to_the_latents(folders):
    diffusion_model = load_diffusion_model(folders["sd2"])
    z = torch.randn(1, 4, 4, 4, requires_grad=True)
    diffusion_model.differentiable_decoder()(z).sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in diffusion_model.autoencoder.parameters())


def test_noise_levels_are_those_of_the_training_schedule():
    """sigma_t^2 = (1 - abar_t) / abar_t with SD's scaled linear betas, from diffusers' own table."""
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    levels = NoiseLevels.scaled_linear()
    torch.testing.assert_close(levels.sigmas, sigmas, rtol=1e-4, atol=0)
    steps = torch.arange(1000)
    assert torch.equal(levels.timestep(levels.sigmas), steps)
    assert torch.equal(levels.timestep(levels.sigma(steps + 0.2)), steps)


def test_tokens_of_known_prompts():
    """Ids published with CLIP: start 49406, a 320, photo 1125, of 539, * 265, end 49407."""
    assert tokenize("a photo of *")[:7] == [START_TOKEN, 320, 1125, 539, PLACEHOLDER_TOKEN, END_TOKEN, END_TOKEN]
    assert tokenize("A  PHOTO\nof *", pad_token=0)[:8] == [START_TOKEN, 320, 1125, 539, 265, END_TOKEN, 0, 0]
    assert PLACEHOLDER_TOKEN not in tokenize("a photo of *, smiling")
    assert tokenize(isolate_placeholders("a photo of *, smiling"))[4] == PLACEHOLDER_TOKEN
    long = tokenize("face " * 100)
    assert len(long) == 77
    assert long[-1] == END_TOKEN


def flow_checkpoint(path: Path) -> None:
    save_file({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(1)}, path)


def lora(path: Path) -> None:
    save_file({"lora_unet_mid_block.lora_up.weight": torch.zeros(1)}, path)


def truncated(path: Path) -> None:
    lora(path)
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("missing.safetensors", lambda path: None, "does not exist"),
        ("model.ckpt", lambda path: path.write_bytes(b"x"), "only .safetensors"),
        ("text.safetensors", lambda path: path.write_text("not a checkpoint"), "not a readable safetensors"),
        ("cut.safetensors", truncated, "not a readable safetensors"),
        ("lora.safetensors", lora, "no Stable Diffusion UNet"),
        ("flow.safetensors", flow_checkpoint, "flow model"),
        ("folder", lambda path: path.mkdir(), "no model_index.json"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_one_clear_error(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(DiffPrivacyError, match=message) as caught:
        load_diffusion_model(tmp_path / name)
    assert name in str(caught.value)


def test_flow_model_folder(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", "transformer": []}))
    with pytest.raises(DiffPrivacyError, match=r"FluxPipeline.*flow"):
        load_diffusion_model(tmp_path)
