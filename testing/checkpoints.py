"""Seeded tiny checkpoints that stock ComfyUI and the diffusers backend load like any Stable Diffusion file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

TEXT_CONFIG = {
    "l": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "h": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16},
    "g": {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "projection_dim": 1280},
}
"""Text encoders of full width."""


def write_tiny_sd1(path: Path, seed: int = 0) -> Path:
    """SD 1.x single file: a one-level UNet of 320 channels, a TAESD and a full-size CLIP-L text model, in float16."""
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(320,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    text = CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG["l"], num_hidden_layers=12))
    state = {
        **{f"model.diffusion_model.{key}": value for key, value in ldm_unet(unet.state_dict()).items()},
        **{f"first_stage_model.{key}": value for key, value in taesd(AutoencoderTiny().state_dict()).items()},
        **{f"cond_stage_model.transformer.{key}": value for key, value in text_model(text.state_dict()).items()},
    }
    save_file({key: value.half().contiguous() for key, value in state.items()}, path)
    return path


def write_tiny_single_file(path: Path, kind: str, seed: int = 0) -> Path:
    """A single file that ComfyUI takes for SD 2.x ("sd2") or SDXL ("sdxl", in KOALA's layout), in float16.

    Narrow UNets, a TAESD, and text encoders of full width and three layers, of which the loader must be told.
    """
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    attention = {"attention_head_dim": 5, "use_linear_projection": True, "layers_per_block": 1}
    if kind == "sd2":
        unet = {
            "block_out_channels": (320,),
            "down_block_types": ("CrossAttnDownBlock2D",),
            "up_block_types": ("CrossAttnUpBlock2D",),
            "cross_attention_dim": 1024,
        }
        encoders = {"cond_stage_model.model.transformer.": (CLIPTextModel, "h")}
    else:
        unet = {
            "block_out_channels": (320, 320, 320),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 5),
            "cross_attention_dim": 2048,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 1280 + 6 * 256,
        }
        encoders = {
            "conditioner.embedders.0.transformer.": (CLIPTextModel, "l"),
            "conditioner.embedders.1.model.transformer.": (CLIPTextModelWithProjection, "g"),
        }
    with torch.device("meta"):
        networks = {"": UNet2DConditionModel(in_channels=4, out_channels=4, **attention, **unet)}
        for prefix, (network, size) in encoders.items():
            networks[prefix] = network(CLIPTextConfig(**TEXT_CONFIG[size], num_hidden_layers=3))
    torch.manual_seed(seed)
    state = {f"first_stage_model.{key}": value for key, value in taesd(AutoencoderTiny().state_dict()).items()}
    noise = torch.randn(1_000_003).half()
    for prefix, network in networks.items():
        weights = {key: _filled(key, value.shape, noise) for key, value in network.state_dict().items()}
        if prefix:
            state |= {prefix + key: value for key, value in text_model(weights).items()}
        else:
            state |= {f"model.diffusion_model.{key}": value for key, value in ldm_unet(weights).items()}
    save_file({key: value.half().contiguous() for key, value in state.items()}, path)
    return path


def _filled(name: str, shape: torch.Size, noise: Tensor) -> Tensor:
    """Weights of any size at once: ones for the scale of a norm, else the same noise over and over, by fan-in."""
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape, dtype=noise.dtype)
    repeated = noise.repeat(-(-shape.numel() // len(noise)))[: shape.numel()].view(shape)
    return repeated / (12 * shape[1:].numel()) ** 0.5 if len(shape) > 1 else repeated * 0.02


def ldm_unet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers UNet of one layer a block under LDM's names."""
    outer = {
        "conv_in.": "input_blocks.0.0.",
        "time_embedding.linear_1.": "time_embed.0.",
        "time_embedding.linear_2.": "time_embed.2.",
        "add_embedding.linear_1.": "label_emb.0.0.",
        "add_embedding.linear_2.": "label_emb.0.2.",
        "mid_block.resnets.0.": "middle_block.0.",
        "mid_block.attentions.0.": "middle_block.1.",
        "mid_block.resnets.1.": "middle_block.2.",
        "conv_norm_out.": "out.0.",
        "conv_out.": "out.2.",
    }
    for level in range(3):
        outer |= {
            f"down_blocks.{level}.resnets.0.": f"input_blocks.{2 * level + 1}.0.",
            f"down_blocks.{level}.attentions.0.": f"input_blocks.{2 * level + 1}.1.",
            f"down_blocks.{level}.downsamplers.0.conv.": f"input_blocks.{2 * level + 2}.0.op.",
            f"up_blocks.{level}.upsamplers.0.conv.": f"output_blocks.{2 * level + 1}.2.conv.",
        }
        for layer in range(2):
            outer |= {
                f"up_blocks.{level}.resnets.{layer}.": f"output_blocks.{2 * level + layer}.0.",
                f"up_blocks.{level}.attentions.{layer}.": f"output_blocks.{2 * level + layer}.1.",
            }
    resnet = {
        "norm1.": "in_layers.0.",
        "conv1.": "in_layers.2.",
        "time_emb_proj.": "emb_layers.1.",
        "norm2.": "out_layers.0.",
        "conv2.": "out_layers.3.",
        "conv_shortcut.": "skip_connection.",
    }
    renamed = {}
    for key, value in state.items():
        old = next(prefix for prefix in outer if key.startswith(prefix))
        inner = key.removeprefix(old)
        if "resnets" in old:
            part = next(part for part in resnet if inner.startswith(part))
            inner = resnet[part] + inner.removeprefix(part)
        renamed[outer[old] + inner] = value
    return renamed


def taesd(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers AutoencoderTiny under TAESD's names; its decoder counts the clamp as layer 0."""
    renamed = {"vae_scale": torch.tensor(0.18215)}
    for key, value in state.items():
        side, _, index, rest = key.split(".", 3)
        renamed[f"taesd_{side}.{int(index) + (side == 'decoder')}.{rest}"] = value
    return renamed


def text_model(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP text weights under the names that checkpoints use, whichever transformers version made them."""
    outside = ("text_model.", "text_projection.")
    return {key if key.startswith(outside) else f"text_model.{key}": value for key, value in state.items()}


def write_full_size_folder(path: Path, seed: int = 0) -> Path:
    """A seeded diffusers folder of SD 1.5's size, 4 GB: good for time and memory, not for pictures."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    autoencoder = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    text = CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG["l"], num_hidden_layers=12, eos_token_id=49407))
    _save_folder(path, unet, autoencoder, [text], "epsilon")
    return path


def write_tiny_folder(path: Path, kind: str, seed: int = 0) -> Path:
    """A seeded diffusers folder shaped like SD 2.x ("sd2": v-prediction) or SDXL ("sdxl": two text encoders)."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)

    def text(width: int) -> CLIPTextConfig:
        small = {"intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "projection_dim": 24}
        return CLIPTextConfig(hidden_size=width, eos_token_id=49407, **small)

    encoders: list[Any] = [CLIPTextModel(text(48))]
    extra: dict[str, Any] = {}
    if kind == "sdxl":
        encoders = [CLIPTextModel(text(32)), CLIPTextModelWithProjection(text(48))]
        extra = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 6 * 8,
        }
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=sum(encoder.config.hidden_size for encoder in encoders),
        attention_head_dim=8,
        use_linear_projection=True,
        **extra,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.13025,
    )
    _save_folder(path, unet, vae, encoders, "v_prediction" if kind == "sd2" else "epsilon")
    return path


def _save_folder(path: Path, unet: Any, autoencoder: Any, encoders: list[Any], prediction: str) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        clip_sample=False,
    )
    unet.save_pretrained(path / "unet")
    autoencoder.save_pretrained(path / "vae")
    scheduler.save_pretrained(path / "scheduler")
    index: dict[str, Any] = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    for name, encoder in zip(("text_encoder", "text_encoder_2"), encoders, strict=False):
        encoder.save_pretrained(path / name)
        index[name] = ["transformers", type(encoder).__name__]
    (path / "model_index.json").write_text(json.dumps(index))
