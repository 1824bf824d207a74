"""Stable Diffusion 1.x single-file checkpoints as diffusers and transformers modules.

The architecture is read from the weights' own shapes, so no configuration is looked up anywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DiffPrivacyError

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."
FLOW_MARKS = ("joint_blocks.", "double_blocks.", "double_stream_blocks.", "context_refiner.")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors checkpoint; raises DiffPrivacyError for any other kind of file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise DiffPrivacyError(
            f"Checkpoint {path}: only .safetensors files are read, as a .ckpt or .pt can run code; convert it first."
        )
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DiffPrivacyError(
            f"Checkpoint {path} is not a readable safetensors file ({error}); download it again."
        ) from error
    if any(mark in key for key in state for mark in FLOW_MARKS):
        raise DiffPrivacyError(
            f"Checkpoint {path} is a flow model (SD3, Flux or the like), which has no noise map to invert; "
            "use a Stable Diffusion 1.x, 2.x or XL checkpoint."
        )
    if UNET_PREFIX + "input_blocks.0.0.weight" not in state:
        raise DiffPrivacyError(
            f"Checkpoint {path} holds no Stable Diffusion UNet; give a full checkpoint, not a LoRA, VAE or ControlNet."
        )
    if TEXT_PREFIX + "text_model.embeddings.token_embedding.weight" not in state:
        raise DiffPrivacyError(
            f"Checkpoint {path} holds no Stable Diffusion 1.x text encoder; "
            "give SD 2.x and SDXL models as a diffusers folder."
        )
    return state


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, float32, without the prefix."""
    return {key.removeprefix(prefix): value.float() for key, value in state.items() if key.startswith(prefix)}


def load_unet(state: dict[str, Tensor]) -> Any:
    """diffusers' UNet2DConditionModel of a checkpoint with any number of levels."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = unet_config(part(state, UNET_PREFIX))
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    unet.load_state_dict(convert_ldm_unet_checkpoint(state, config), assign=True)
    return unet.float().eval()


def unet_config(weights: dict[str, Tensor]) -> dict[str, Any]:
    """UNet2DConditionModel's arguments, read from LDM weights of the SD 1.x and 2.x kind."""
    channels: list[int] = []
    attention: list[bool] = []
    blocks_of_level = 0
    new_level = True
    blocks = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("input_blocks."))
    for i in range(1, blocks):
        if f"input_blocks.{i}.0.op.weight" in weights:
            new_level = True
            continue
        if new_level:
            channels.append(weights[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0])
            attention.append(f"input_blocks.{i}.1.norm.weight" in weights)
            blocks_of_level = 0
            new_level = False
        blocks_of_level += 1
    context = next(value for key, value in weights.items() if key.endswith("attn2.to_k.weight"))
    linear = weights["middle_block.1.proj_in.weight"].ndim == 2
    return {
        "in_channels": weights["input_blocks.0.0.weight"].shape[1],
        "out_channels": weights["out.2.weight"].shape[0],
        "block_out_channels": tuple(channels),
        "layers_per_block": blocks_of_level,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        "cross_attention_dim": context.shape[1],
        "attention_head_dim": tuple(c // 64 for c in channels) if linear else 8,
        "use_linear_projection": linear,
    }


def load_autoencoder(state: dict[str, Tensor]) -> Any:
    """diffusers' AutoencoderTiny (a TAESD baked into the checkpoint) or AutoencoderKL."""
    from diffusers import AutoencoderKL, AutoencoderTiny
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    weights = part(state, VAE_PREFIX)
    if "taesd_encoder.0.weight" in weights:
        autoencoder = AutoencoderTiny(latent_channels=weights["taesd_decoder.1.weight"].shape[1])
        autoencoder.load_state_dict(
            {
                _autoencoder_tiny_name(key): value
                for key, value in weights.items()
                if key.startswith(("taesd_encoder.", "taesd_decoder."))
            }
        )
        return autoencoder.eval()
    config = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    }
    with torch.device("meta"):
        autoencoder = AutoencoderKL(**config)
    autoencoder.load_state_dict(convert_ldm_vae_checkpoint(state, config), assign=True)
    return autoencoder.float().eval()


def _autoencoder_tiny_name(key: str) -> str:
    """TAESD counts the decoder's clamp as layer 0, diffusers does not."""
    side, index, rest = key.removeprefix("taesd_").split(".", 2)
    return f"{side}.layers.{int(index) - (side == 'decoder')}.{rest}"


def load_text_encoder(state: dict[str, Tensor]) -> Any:
    """transformers' CLIPTextModel of an SD 1.x checkpoint."""
    from transformers import CLIPTextConfig, CLIPTextModel

    weights = part(state, TEXT_PREFIX)
    width = weights["text_model.embeddings.token_embedding.weight"].shape[1]
    layers = 1 + max(int(key.split(".")[3]) for key in weights if key.startswith("text_model.encoder.layers."))
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=weights["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_attention_heads=width // 64,
        num_hidden_layers=layers,
    )
    return CLIPTextModel.from_pretrained(None, config=config, state_dict=weights).eval()


def predicts_velocity(state: dict[str, Tensor]) -> bool:
    """Whether the checkpoint says that its network predicts v (Salimans & Ho, arXiv 2202.00512)."""
    return "v_pred" in state


def tiny_autoencoder_scale(state: dict[str, Tensor]) -> tuple[float, float]:
    """Scale and shift that a checkpoint states for its TAESD, z = encoder / scale + shift; (1, 0) for other VAEs."""
    return (
        float(state.get(VAE_PREFIX + "vae_scale", torch.tensor(1.0))),
        float(state.get(VAE_PREFIX + "vae_shift", torch.tensor(0.0))),
    )
