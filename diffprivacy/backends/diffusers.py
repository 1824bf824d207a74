"""The DiffusionModel on a diffusers model, without ComfyUI and without a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..devices import upload
from ..diffusion.model import (
    DifferentiableDenoiser,
    DifferentiableTextEncoder,
    EncoderIdentity,
    NoiseLevels,
    TextConditioning,
    weights_fingerprint,
)
from ..errors import DiffPrivacyError
from . import single_file
from .tokenizer import END_TOKEN, PLACEHOLDER_TOKEN, check_placeholders, isolate_placeholders, tokenize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class DiffusersModel:
    """A diffusers UNet with its autoencoder and CLIP models; see :class:`diffprivacy.diffusion.model.DiffusionModel`.

    autoencoder: encode and decode between images in [-1,1] and its own latents, plain tensors both.
    latent_scale, latent_shift: network latent = (autoencoder latent) * latent_scale + latent_shift.
    spoilt: its words for spoilt pictures, see :mod:`..diffusion.sharpening`; None for a model that needs no sharpening.
    fingerprint: of UNet and text encoders that were rounded since keys recorded it; None: their own.
    """

    unet: Any
    autoencoder: nn.Module
    text_encoders: list[Any]
    pad_tokens: list[int]
    latent_scale: float
    latent_shift: float = 0.0
    downscale: int = 8
    velocity: bool = False
    vision_encoder: Any = None
    noise_levels: NoiseLevels = field(default_factory=NoiseLevels.scaled_linear)
    spoilt: str | None = None
    fingerprint: str | None = None

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def latent_channels(self) -> int:
        return self.unet.config.in_channels

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures the checkpoint was trained on."""
        return self.downscale * (self.unet.config.sample_size or 64)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the parts that recovery replays."""
        return {
            "checkpoint": self.fingerprint or weights_fingerprint([self.unet, *self.text_encoders]),
            "autoencoder": weights_fingerprint([self.autoencoder]),
        }

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: Tensor, conditioning: TextConditioning) -> Tensor:
        """Predicted clean latent z0 for x = z + sigma * eps (Karras et al., arXiv 2206.00364, eq. 7)."""
        return self._denoised(x, sigma, conditioning)

    def differentiable_denoiser(self, checkpointing: bool = False) -> DifferentiableDenoiser:
        """The UNet itself, its weights frozen, under diffusers' own non-reentrant checkpointing if asked for."""
        self.unet.requires_grad_(False)
        (self.unet.enable_gradient_checkpointing if checkpointing else self.unet.disable_gradient_checkpointing)()
        return self._denoised

    def _denoised(self, x: Tensor, sigma: Tensor, conditioning: TextConditioning) -> Tensor:
        """z0 for x (B,C,h,w) at noise levels sigma, 0-d or (B,); on x's device, wherever the weights are."""
        timestep = self.noise_levels.timestep(sigma.to(x.dtype))
        sigma = upload(sigma, x.device, x.dtype).view(-1, 1, 1, 1)
        norm = (sigma**2 + 1).sqrt()
        output = self.unet(
            (x / norm).to(self.device, self.dtype),
            upload(timestep, self.device),
            encoder_hidden_states=conditioning.context.to(self.dtype).expand(len(x), -1, -1),
            added_cond_kwargs=self._size_conditioning(x, conditioning),
        ).sample.to(x)
        if self.velocity:
            return x / norm**2 - output * sigma / norm
        return x - sigma * output

    def _size_conditioning(self, x: Tensor, conditioning: TextConditioning) -> dict[str, Tensor] | None:
        """SDXL's pooled text and its original, crop and target sizes; None for other models."""
        if conditioning.pooled is None:
            return None
        height, width = (side * self.downscale for side in x.shape[-2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=self.dtype, device=self.device)
        return {
            "text_embeds": conditioning.pooled.to(self.dtype).expand(len(x), -1),
            "time_ids": sizes.expand(len(x), -1),
        }

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents (B,C,H/8,W/8) of images (B,3,H,W) in [0,1]; the mode of the autoencoder's distribution."""
        latents = self.autoencoder.encode(images.to(self.device, self._autoencoder_dtype) * 2 - 1)  # pyright: ignore[reportCallIssue]
        return latents.float() * self.latent_scale + self.latent_shift

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0,1] of latents."""
        return self.differentiable_decoder()(latents)

    def differentiable_decoder(self) -> Callable[[Tensor], Tensor]:
        """The decoder itself, its weights frozen: autograd reaches the latents only."""
        self.autoencoder.requires_grad_(False)

        def decode(latents: Tensor) -> Tensor:
            unscaled = (latents.to(self.device) - self.latent_shift) / self.latent_scale
            images = self.autoencoder.decode(unscaled.to(self._autoencoder_dtype))  # pyright: ignore[reportCallIssue]
            return (images.float() / 2 + 0.5).clamp(0, 1)

        return decode

    @property
    def _autoencoder_dtype(self) -> torch.dtype:
        return next(self.autoencoder.parameters()).dtype

    @torch.no_grad()
    def text_conditioning(self, prompt: str, pseudo_words: Tensor | None = None) -> TextConditioning:
        """The text encoders' output for a prompt whose ``*`` are replaced by the rows of pseudo_words (n, D).

        With two text encoders (SDXL) a row is the concatenation of both encoders' embeddings.
        """
        prompt = isolate_placeholders(prompt)
        if pseudo_words is not None:
            check_placeholders(prompt, len(pseudo_words))
        return self._conditioning(prompt, 1, pseudo_words)

    def differentiable_text_encoder(self) -> DifferentiableTextEncoder:
        """The text encoders themselves, their weights frozen."""
        for encoder in self.text_encoders:
            encoder.requires_grad_(False)

        def encode(prompt: str, words: Tensor) -> TextConditioning:
            prompt = isolate_placeholders(prompt)
            check_placeholders(prompt, 1)
            return self._conditioning(prompt, len(words), words)

        return encode

    def _conditioning(self, prompt: str, rows: int, pseudo_words: Tensor | None) -> TextConditioning:
        """The prompt encoded ``rows`` times; pseudo_words fill its placeholders row after row."""
        words: Sequence[Tensor | None] = [None] * len(self.text_encoders)
        if pseudo_words is not None:
            words = pseudo_words.split(self._text_widths, dim=-1)
        outputs = [
            self._encode_text(encoder, [tokenize(prompt, pad)] * rows, vectors)
            for encoder, pad, vectors in zip(self.text_encoders, self.pad_tokens, words, strict=True)
        ]
        if len(outputs) == 1:
            return TextConditioning(outputs[0].last_hidden_state.float())
        context = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return TextConditioning(context.float(), outputs[-1].text_embeds.float())

    def _encode_text(self, encoder: Any, tokens: list[list[int]], words: Tensor | None) -> Any:
        ids = torch.tensor(tokens, device=self.device)
        if words is None:
            return encoder(ids, output_hidden_states=True)

        def replace(_module: Any, _inputs: Any, embeddings: Tensor) -> Tensor:
            return embeddings.masked_scatter((ids == PLACEHOLDER_TOKEN)[..., None], words.to(embeddings))

        handle = encoder.get_input_embeddings().register_forward_hook(replace)
        try:
            return encoder(ids, output_hidden_states=True)
        finally:
            handle.remove()

    @torch.no_grad()
    def image_features(self, images: Tensor, levels: Sequence[int]) -> list[Tensor]:
        """Hidden states (B,N,D) of the CLIP vision model at the given levels, 1 to its number of layers."""
        pixels = clip_pixels(images.to(self.device), self._vision_encoder.config.image_size)
        states = self._vision_encoder(pixels, output_hidden_states=True).hidden_states
        return [states[level] for level in levels]

    @property
    def _vision_encoder(self) -> Any:
        if self.vision_encoder is None:
            raise DiffPrivacyError("MSI needs a CLIP vision model; load one.", "clip_vision")
        return self.vision_encoder

    @property
    def _text_widths(self) -> list[int]:
        return [encoder.config.hidden_size for encoder in self.text_encoders]

    @property
    def text_encoder_identity(self) -> EncoderIdentity:
        tables = [encoder.get_input_embeddings().weight for encoder in self.text_encoders]
        return EncoderIdentity.of(self._text_widths, self.text_encoders[0].config.num_hidden_layers, tables)

    @property
    def image_encoder_identity(self) -> EncoderIdentity:
        config = self._vision_encoder.config
        patches = self._vision_encoder.get_input_embeddings().weight
        return EncoderIdentity.of([config.hidden_size], config.num_hidden_layers, [patches])

    @torch.no_grad()
    def word_embedding(self, word: str) -> Tensor:
        """Token embedding (D,) of a word; with two text encoders (SDXL) both, one after the other."""
        tokens = tokenize(word)
        ids = torch.tensor(tokens[1 : tokens.index(END_TOKEN)], device=self.device)
        return torch.cat([encoder.get_input_embeddings()(ids).mean(0).float() for encoder in self.text_encoders])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> DiffusersModel:
        """Move all networks; dtype changes the UNet and the text encoders, the autoencoder stays float32."""
        for module in (self.unet, *self.text_encoders):
            module.to(device, dtype)
        for module in (self.autoencoder, self.vision_encoder):
            if module is not None:
                module.to(device)
        return self


class DiffusersAutoencoder(nn.Module):
    """A diffusers autoencoder between plain tensors; a distribution of latents is represented by its mode.

    checkpointing: gradients through it need half the memory and a quarter more time.
    """

    def __init__(self, model: Any, checkpointing: bool = False):
        super().__init__()
        self.model = model
        if checkpointing:
            model.enable_gradient_checkpointing()

    def encode(self, images: Tensor) -> Tensor:
        encoded = self.model.encode(images)
        return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents).sample


def clip_pixels(images: Tensor, size: int) -> Tensor:
    """CLIP's preprocessing of images (B,3,H,W) in [0,1]: shorter side to ``size``, centre crop, 8 bits, normalise."""
    height, width = images.shape[-2:]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        shape = (round(scale * height), round(scale * width))
        images = F.interpolate(images, shape, mode="bicubic", antialias=True)
        top, left = ((side - size) // 2 for side in shape)
        images = images[..., top : top + size, left : left + size]
    images = (images * 255).clamp(0, 255).round() / 255
    mean, std = (torch.tensor(v).to(images).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std


def load_diffusion_model(path: Path) -> DiffusersModel:
    """The checkpoint at ``path``: a single .safetensors file (SD 1.x) or a diffusers folder (SD 1.x, 2.x, XL).

    Raises DiffPrivacyError for a missing path, a file that is no checkpoint and a flow model.
    """
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise DiffPrivacyError(f"Checkpoint {path} does not exist; give a .safetensors file or a diffusers folder.")
    return _load_single_file(path)


def _load_single_file(path: Path) -> DiffusersModel:
    state = single_file.read_checkpoint(path)
    scale, shift = single_file.tiny_autoencoder_scale(state)
    return DiffusersModel(
        unet=single_file.load_unet(state),
        autoencoder=DiffusersAutoencoder(single_file.load_autoencoder(state), checkpointing=True),
        text_encoders=[single_file.load_text_encoder(state)],
        pad_tokens=[END_TOKEN],
        latent_scale=0.18215 / scale,
        latent_shift=0.18215 * shift,
        velocity=single_file.predicts_velocity(state),
    )


def _load_folder(path: Path) -> DiffusersModel:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    index_file = path / "model_index.json"
    if not index_file.is_file():
        raise DiffPrivacyError(f"Folder {path} is no diffusers model: it has no model_index.json.")
    index = json.loads(index_file.read_text())
    if "unet" not in index:
        raise DiffPrivacyError(
            f"Model {path} ({index.get('_class_name')}) has no UNet: flow models (SD3, Flux) have no noise map to "
            "invert; use a Stable Diffusion 1.x, 2.x or XL model."
        )
    autoencoder_class = {"AutoencoderTiny": AutoencoderTiny}.get(index["vae"][1], AutoencoderKL)
    arguments: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    try:
        unet = UNet2DConditionModel.from_pretrained(path / "unet", **arguments)
        autoencoder = autoencoder_class.from_pretrained(path / "vae", **arguments)
        text_encoders: list[Any] = [CLIPTextModel.from_pretrained(path / "text_encoder", **arguments)]
        if "text_encoder_2" in index:
            text_encoders.append(CLIPTextModelWithProjection.from_pretrained(path / "text_encoder_2", **arguments))
        scheduler = json.loads((path / "scheduler" / "scheduler_config.json").read_text())
    except OSError as error:
        raise DiffPrivacyError(f"Model {path} is incomplete ({error}); download it again as safetensors.") from error
    narrow = len(text_encoders) == 1 and text_encoders[0].config.hidden_size == 768
    return DiffusersModel(
        unet=unet.float().eval(),
        autoencoder=DiffusersAutoencoder(autoencoder.float().eval(), checkpointing=True),
        text_encoders=[encoder.float().eval() for encoder in text_encoders],
        pad_tokens=[END_TOKEN] if narrow else [END_TOKEN, 0][-len(text_encoders) :],
        latent_scale=autoencoder.config["scaling_factor"],
        downscale=2 ** (len(autoencoder.config["block_out_channels"]) - 1),
        velocity=scheduler.get("prediction_type") == "v_prediction",
    )
