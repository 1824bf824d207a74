"""Seeded tiny checkpoints that stock ComfyUI and the diffusers host load like any Stable Diffusion file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

TEXT_CONFIG = {
    1: {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
}


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
    text = CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG[1]))
    state = {
        **{f"model.diffusion_model.{key}": value for key, value in ldm_unet(unet.state_dict()).items()},
        **{f"first_stage_model.{key}": value for key, value in taesd(AutoencoderTiny().state_dict()).items()},
        **{f"cond_stage_model.transformer.{key}": value for key, value in text_model(text.state_dict()).items()},
    }
    save_file({key: value.half().contiguous() for key, value in state.items()}, path)
    return path


def ldm_unet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A one-level diffusers UNet under LDM's names."""
    prefixes = {
        "conv_in.": "input_blocks.0.0.",
        "time_embedding.linear_1.": "time_embed.0.",
        "time_embedding.linear_2.": "time_embed.2.",
        "down_blocks.0.resnets.0.": "input_blocks.1.0.",
        "down_blocks.0.attentions.0.": "input_blocks.1.1.",
        "mid_block.resnets.0.": "middle_block.0.",
        "mid_block.attentions.0.": "middle_block.1.",
        "mid_block.resnets.1.": "middle_block.2.",
        "up_blocks.0.resnets.0.": "output_blocks.0.0.",
        "up_blocks.0.attentions.0.": "output_blocks.0.1.",
        "up_blocks.0.resnets.1.": "output_blocks.1.0.",
        "up_blocks.0.attentions.1.": "output_blocks.1.1.",
        "conv_norm_out.": "out.0.",
        "conv_out.": "out.2.",
    }
    resnet = {
        ".norm1.": ".in_layers.0.",
        ".conv1.": ".in_layers.2.",
        ".time_emb_proj.": ".emb_layers.1.",
        ".norm2.": ".out_layers.0.",
        ".conv2.": ".out_layers.3.",
        ".conv_shortcut.": ".skip_connection.",
    }
    renamed = {}
    for key, value in state.items():
        old = next(prefix for prefix in prefixes if key.startswith(prefix))
        name = prefixes[old] + key.removeprefix(old)
        if "resnets" in old:
            part = next(part for part in resnet if part in f".{key.removeprefix(old)}")
            name = prefixes[old] + f".{key.removeprefix(old)}".replace(part, resnet[part], 1).removeprefix(".")
        renamed[name] = value
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
    return {key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in state.items()}


def write_tiny_folder(path: Path, kind: str, seed: int = 0) -> Path:
    """A seeded diffusers folder shaped like SD 2.x ("sd2": v-prediction) or SDXL ("sdxl": two text encoders)."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
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
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction" if kind == "sd2" else "epsilon",
        clip_sample=False,
    )
    unet.save_pretrained(path / "unet")
    vae.save_pretrained(path / "vae")
    scheduler.save_pretrained(path / "scheduler")
    index: dict[str, Any] = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    for name, encoder in zip(("text_encoder", "text_encoder_2"), encoders, strict=False):
        encoder.save_pretrained(path / name)
        index[name] = ["transformers", type(encoder).__name__]
    (path / "model_index.json").write_text(json.dumps(index))
    return path
