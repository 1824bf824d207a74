"""ComfyUI's MODEL, CLIP, VAE and CLIP_VISION as a diffusion model of the library."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import comfy.clip_model
import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from ...diffprivacy.backends.diffusers import clip_pixels
from ...diffprivacy.backends.tokenizer import (
    END_TOKEN,
    PLACEHOLDER_TOKEN,
    START_TOKEN,
    check_placeholders,
    isolate_placeholders,
)
from ...diffprivacy.diffusion.model import (
    Denoiser,
    DifferentiableDenoiser,
    DifferentiableTextEncoder,
    EncoderIdentity,
    Levels,
    TextConditioning,
)
from ...diffprivacy.errors import DiffPrivacyError
from .border import Border
from .decoders import Decoder, differentiable_decoder, tiny_decoder
from .memory import checkpoint_layer, load, private_patcher, replace_forward
from .sampling import run_sampler


def noise_levels(model: Any) -> Levels:
    """The training noise levels of a MODEL; raises DiffPrivacyError for models that make no images from noise."""
    return Border.of(model).levels


class ComfyModel:
    """See :class:`diffprivacy.diffusion.model.DiffusionModel`; conditioning is ComfyUI's CONDITIONING."""

    def __init__(self, model: Any = None, clip: Any = None, vae: Any = None, clip_vision: Any = None):
        self.model = model
        self.clip = clip
        self.vae = vae
        self.clip_vision = clip_vision

    @property
    def noise_levels(self) -> Levels:
        return noise_levels(self.model)

    @property
    def latent_channels(self) -> int:
        return self._latent_format.latent_channels

    @property
    def spoilt(self) -> None:
        """A MODEL brings its sharpening along, as a patch."""
        return None

    @property
    def downscale(self) -> int:
        return self.vae.spacial_compression_encode()

    @property
    def _latent_format(self) -> Any:
        return self.model.get_model_object("latent_format")

    def denoise(self, x: Tensor, sigma: Tensor, conditioning: list) -> Tensor:
        def once(denoiser: Denoiser, x: Tensor, sigmas: Tensor, callback: Any) -> Tensor:
            return denoiser(x, sigmas[0])

        latent = {"samples": self._latent_format.process_out(x)}
        sigmas = torch.stack([Border.of(self.model).level(torch.as_tensor(sigma)), torch.zeros(())])
        return self._latent_format.process_in(run_sampler(self.model, conditioning, latent, sigmas, once, shown=False))

    def encode(self, images: Tensor) -> Tensor:
        return self._latent_format.process_in(self.vae.encode(images.movedim(1, -1)))

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(self._latent_format.process_out(latents)).movedim(-1, 1)

    def differentiable_decoder(self) -> Decoder:
        return differentiable_decoder(self.vae, self._latent_format)

    def text_conditioning(self, prompt: str, pseudo_words: Tensor | None = None) -> list:
        prompt = isolate_placeholders(prompt)
        tokens = self.clip.tokenize(prompt)
        if pseudo_words is not None:
            check_placeholders(prompt, len(pseudo_words))
            widths = list(self.text_encoder_identity.widths)
            for name, words in zip(self._text_names, pseudo_words.split(widths, dim=-1), strict=True):
                tokens[name] = _place_words(tokens[name], words)
        return self.clip.encode_from_tokens_scheduled(tokens)

    @property
    def _text_names(self) -> list[str]:
        """ComfyUI's names of the CLIP text encoders: l, h or l and g."""
        return [name for name in "lhg" if hasattr(self.clip.cond_stage_model, f"clip_{name}")]

    @property
    def _token_tables(self) -> list[Tensor]:
        models = [getattr(self.clip.cond_stage_model, f"clip_{name}") for name in self._text_names]
        if not models:
            raise DiffPrivacyError("This is no CLIP text encoder of Stable Diffusion 1.x, 2.x or XL.", "clip")
        return [model.transformer.get_input_embeddings().weight for model in models]

    @property
    def text_encoder_identity(self) -> EncoderIdentity:
        tables = self._token_tables
        first = getattr(self.clip.cond_stage_model, f"clip_{self._text_names[0]}")
        return EncoderIdentity.of([table.shape[1] for table in tables], first.transformer.num_layers, tables)

    @property
    def image_encoder_identity(self) -> EncoderIdentity:
        network = getattr(self.clip_vision.model, "vision_model", None)
        patches = getattr(getattr(network, "embeddings", None), "patch_embedding", None)
        if network is None or patches is None or self.clip_vision.model_type != "clip_vision_model":
            raise DiffPrivacyError(
                "This image encoder is no CLIP vision model; load ViT-L/14 or ViT-H/14 of CLIP.", "clip_vision"
            )
        return EncoderIdentity.of([patches.weight.shape[0]], len(network.encoder.layers), [patches.weight])

    def word_embedding(self, word: str) -> Tensor:
        tokens = self.clip.tokenize(word)
        special = {PLACEHOLDER_TOKEN, START_TOKEN, END_TOKEN, 0}
        return torch.cat(
            [
                table[[token for token, *_ in tokens[name][0] if token not in special]].detach().float().mean(0).cpu()
                for name, table in zip(self._text_names, self._token_tables, strict=True)
            ]
        ).clone()

    def differentiable_text_encoder(self) -> DifferentiableTextEncoder:
        """A private copy of the text encoders with the CLIP's LoRAs and its chosen last layer."""
        patcher = private_patcher(self.clip.patcher)
        model = patcher.model
        model.reset_clip_options()
        if self.clip.layer_idx is not None:
            model.set_clip_options({"layer": self.clip.layer_idx})
        model.set_clip_options({"execution_device": patcher.load_device})
        encoders = [getattr(model, f"clip_{name}") for name in self._text_names]
        for module in model.modules():
            if isinstance(module, comfy.clip_model.CLIPLayer):
                replace_forward(module, _text_layer)
        widths = list(self.text_encoder_identity.widths)

        def encode(prompt: str, words: Tensor) -> TextConditioning:
            prompt = isolate_placeholders(prompt)
            check_placeholders(prompt, 1)
            load([patcher])
            tokens = self.clip.tokenize(prompt)
            outputs = [
                encoder([[vector if token == PLACEHOLDER_TOKEN else token for token, *_ in tokens[name][0]] for vector in part])
                for name, encoder, part in zip(self._text_names, encoders, words.split(widths, dim=-1), strict=True)
            ]  # fmt: skip
            context = torch.cat([output[0] for output in outputs], dim=-1)
            return TextConditioning(context, outputs[-1][1] if len(outputs) == 2 else None)

        return encode

    def differentiable_denoiser(self, checkpointing: bool = False) -> DifferentiableDenoiser:
        """A private copy of the UNet with the MODEL's LoRAs and attention patches.

        Its attention is PyTorch's own, which has gradients everywhere; those that ComfyUI may choose have not.
        """
        patcher = private_patcher(self.model)
        model = patcher.model
        if checkpointing:
            network = model.diffusion_model
            for block in (*network.input_blocks, network.middle_block, *network.output_blocks):
                for layer in block:
                    checkpoint_layer(layer)
        patcher.set_model_optimized_attention(attention_pytorch)
        options = patcher.model_options["transformer_options"]

        def denoise(x: Tensor, sigmas: Tensor, conditioning: TextConditioning) -> Tensor:
            load([patcher])
            height, width = (8 * side for side in x.shape[-2:])
            texts = {"cross_attn": conditioning.context, "pooled_output": conditioning.pooled}
            extra = {name: text if text is None else text.to(x.device) for name, text in texts.items()}
            conditions = model.extra_conds(noise=x, device=x.device, height=height, width=width, **extra)
            given = {name: condition.cond for name, condition in conditions.items()}
            return model.apply_model(x, sigmas, transformer_options=dict(options), **given)

        return denoise

    def image_features(self, images: Tensor, levels: Sequence[int]) -> list[Tensor]:
        encoder = self.clip_vision
        comfy.model_management.load_model_gpu(encoder.patcher)
        pixels = clip_pixels(images.to(encoder.load_device), encoder.image_size)
        states = encoder.model(pixel_values=pixels, intermediate_output="all")[1]
        return [states[:, level - 1].float().cpu() for level in levels]


class GuidedModel(ComfyModel):
    """For many runs under guidance: its differentiable decoder is made once, the tiny one where there is one."""

    @functools.cached_property
    def _decoder(self) -> Decoder:
        tiny = tiny_decoder(self._latent_format, self.model.load_device)
        return tiny or super().differentiable_decoder()

    def differentiable_decoder(self) -> Decoder:
        return self._decoder


def _text_layer(layer: Any, x: Tensor, mask: Any = None, optimized_attention: Any = None) -> Tensor:
    """ComfyUI's CLIP layer, but adding its residuals out of place, as autograd needs."""
    x = x + layer.self_attn(layer.layer_norm1(x), mask, optimized_attention)
    return x + layer.mlp(layer.layer_norm2(x))


def _place_words(batches: list[list[tuple]], words: Tensor) -> list[list[tuple]]:
    """ComfyUI's tokens with each placeholder's id replaced by the next row of words (n, D)."""
    rows = iter(words)
    return [
        [(next(rows), *rest) if token == PLACEHOLDER_TOKEN else (token, *rest) for token, *rest in batch]
        for batch in batches
    ]
