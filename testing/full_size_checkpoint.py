"""A seeded checkpoint of SD 1.5's size that stock ComfyUI loads: good for memory and time, not for pictures.

python -m testing.full_size_checkpoint COMFYUI FILE writes 2.1 GB in float16.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from testing.checkpoints import TEXT_CONFIG, text_model

UNET: dict[str, Any] = {
    **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "channel_mult": [1, 2, 4, 4]},
    **{"num_res_blocks": [2, 2, 2, 2], "num_heads": 8, "use_spatial_transformer": True, "context_dim": 768},
    **{"transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1, "legacy": False},
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
AUTOENCODER: dict[str, Any] = {
    **{"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128},
    **{"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0},
}


def shapes() -> Iterator[tuple[str, Tensor]]:
    """Names and tensors without data."""
    import comfy.ops
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from transformers import CLIPTextConfig, CLIPTextModel

    bare: dict[str, Any] = {"device": "meta", "dtype": torch.float16, "operations": comfy.ops.disable_weight_init}
    layers: dict[str, Any] = {**TEXT_CONFIG["l"], "num_hidden_layers": 12}
    with torch.device("meta"):
        unet = UNetModel(**UNET, **bare).state_dict()
        autoencoder = AutoencoderKL(embed_dim=4, ddconfig=AUTOENCODER).state_dict()
        text = CLIPTextModel(CLIPTextConfig(**layers)).state_dict()
    parts = {
        "model.diffusion_model.": unet,
        "first_stage_model.": autoencoder,
        "cond_stage_model.transformer.": text_model(text),
    }
    for prefix, state in parts.items():
        yield from ((prefix + name, tensor) for name, tensor in state.items())


def filled(name: str, like: Tensor, noise: Tensor) -> Tensor:
    """Ones for the scale of a norm, zeros for a bias, else the same noise over and over, by fan-in."""
    if like.ndim < 2:
        return torch.full(like.shape, float(name.endswith("weight")), dtype=torch.float16)
    repeated = noise.repeat(-(-like.numel() // len(noise)))[: like.numel()].view(like.shape)
    return (repeated / (3 * like.shape[1:].numel()) ** 0.5).half()


def main() -> None:
    comfyui, file = map(Path, sys.argv[1:])
    sys.argv[1:] = ["--cpu"]
    sys.path.insert(0, str(comfyui))
    import comfy.options

    comfy.options.enable_args_parsing()
    noise = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    save_file({name: filled(name, like, noise) for name, like in shapes() if like.is_floating_point()}, file)


if __name__ == "__main__":
    main()
