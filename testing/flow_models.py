"""Seeded flow models of the families that people use, so small that a CPU samples them, which stock loaders take.

python -m testing.flow_models COMFYUI FOLDER writes diffusion_models/, vae/, vae_approx/ and text_encoders/. ComfyUI tells a
family by the shapes in a file; those that are free are small here. Families whose widths are fixed (Z-Image, Chroma,
HiDream) cannot be made small.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GAINS = {"qwen_image": ("proj_out.", 1 / 150), "cosmos": ("final_layer.linear.", 1 / 25000)}
"""By what a family's last layer is multiplied, so that velocities have the size that they have in real models."""


def networks() -> Iterator[tuple[str, Any]]:
    """Each family's transformer, without data."""
    import comfy.ops
    import torch
    from comfy.ldm.cosmos.predict2 import MiniTrainDIT
    from comfy.ldm.flux.model import Flux
    from comfy.ldm.krea2.model import SingleStreamDiT
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
    from comfy.ldm.wan.model import WanModel

    bare: dict[str, Any] = {"device": "meta", "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}}
    yield (
        "sd3",
        MMDiT(
            input_size=None,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            depth=2,
            adm_in_channels=2048,
            context_embedder_config=embedder,
            num_patches=1024,
            pos_embed_max_size=32,
            qk_norm="rms",
            **bare,
        ),
    )
    flux: dict[str, Any] = {
        "context_in_dim": 768,
        "hidden_size": 128,
        "num_heads": 1,
        "depth": 1,
        "depth_single_blocks": 1,
        "guidance_embed": True,
    }
    first = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "mlp_ratio": 4.0}
    first |= {"axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True, "txt_ids_dims": []}
    yield "flux", Flux(**flux, **first, **bare)
    second = {"image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "mlp_ratio": 3.0}
    second |= {"axes_dim": [32] * 4, "theta": 2000, "patch_size": 1, "qkv_bias": False, "txt_ids_dims": [3]}
    second |= {"global_modulation": True, "mlp_silu_act": True, "ops_bias": False}
    second |= {"default_ref_method": "index", "ref_index_scale": 10.0}
    yield "flux2", Flux(**flux, **second, **bare)
    krea2: dict[str, Any] = {"features": 128, "heads": 1, "kvheads": 1, "layers": 1, "channels": 16}
    yield "krea2", SingleStreamDiT(txtlayers=2, txtdim=40, **krea2, **bare)
    yield "wan", WanModel(model_type="t2v", dim=128, ffn_dim=256, num_heads=1, num_layers=1, **bare)
    yield "qwen_image", QwenImageTransformer2DModel(num_layers=0, **bare)
    cosmos: dict[str, Any] = {"max_img_h": 240, "max_img_w": 240, "max_frames": 128, "patch_spatial": 2}
    cosmos |= {"in_channels": 16, "out_channels": 16, "patch_temporal": 1, "concat_padding_mask": True}
    cosmos |= {"model_channels": 384, "num_blocks": 1, "num_heads": 16, "crossattn_emb_channels": 1024}
    cosmos |= {"pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop"}
    cosmos |= {"min_fps": 1, "max_fps": 30, "use_adaln_lora": True, "adaln_lora_dim": 256}
    cosmos |= {f"rope_{axis}_extrapolation_ratio": ratio for axis, ratio in (("h", 4.0), ("w", 4.0), ("t", 1.0))}
    cosmos |= {f"extra_{axis}_extrapolation_ratio": 1.0 for axis in "hwt"}
    cosmos |= {"extra_per_block_abs_pos_emb": False, "rope_enable_fps_modulation": False}
    yield "cosmos", MiniTrainDIT(**cosmos, **bare)


def autoencoders() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(folder, name, weights without data) of VAEs and tiny decoders."""
    import torch
    from comfy.ldm.wan.vae import WanVAE
    from comfy.taesd.taehv import TAEHV
    from comfy.taesd.taesd import TAESD

    with torch.device("meta"):
        sixteen, flux2 = TAESD(latent_channels=16).state_dict(), TAESD(latent_channels=128).state_dict()
        wan = WanVAE(
            dim=8,
            z_dim=16,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=2,
            attn_scales=[],
            temperal_downsample=[False, True, True],
        )
        video = TAEHV(latent_channels=16)
    yield "vae", "tae16", sixteen
    for name in ("taesd3", "taef1"):
        yield "vae_approx", f"{name}_decoder", _part(sixteen, "taesd_decoder.")
    yield "vae_approx", "taef2_encoder", _part(flux2, "taesd_encoder.")
    yield "vae_approx", "taef2_decoder", _part(flux2, "taesd_decoder.")
    yield "vae", "wan_vae", wan.state_dict()
    yield "vae_approx", "lighttaew2_1", video.state_dict()


def filled(state: dict[str, Any], seed: int, gain: float = 1.0) -> dict[str, Any]:
    """The same with numbers that keep a signal's size from layer to layer."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, tensor in state.items():
        last = name.rsplit(".", 1)[-1]
        scales = any(part in name for part in ("norm", "ln_", "head.0")) or last in ("scale", "gamma", "vae_scale")
        if tensor.ndim < 2:
            made[name] = torch.ones(tensor.shape) if scales and last != "bias" else torch.zeros(tensor.shape)
            if last == "bias":
                made[name] = torch.randn(tensor.shape, generator=generator) * 0.02
        elif scales and last in ("weight", "scale", "gamma", "g"):
            made[name] = torch.ones(tensor.shape)
        else:
            width = max(1, math.prod(tensor.shape[1:]))
            made[name] = torch.randn(tensor.shape, generator=generator) * gain / width**0.5
    return made


def write(folder: Path) -> None:
    """All files; imports ComfyUI, which must be on the path."""
    import torch
    from safetensors.torch import save_file

    def save(kind: str, name: str, state: dict[str, Any], dtype: torch.dtype) -> None:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        tensors = {key: tensor.to(dtype).contiguous() for key, tensor in state.items()}
        save_file(tensors, folder / kind / f"{name}.safetensors")

    for name, network in networks():
        state = filled(network.state_dict(), 1)
        layer, gain = GAINS.get(name, ("", 1.0))
        state = {key: tensor * gain if key.startswith(layer) else tensor for key, tensor in state.items()}
        if name == "krea2":  # Its norms are stored as what they add to 1.
            state = {key: tensor - 1 if key.endswith(".scale") else tensor for key, tensor in state.items()}
        save("diffusion_models", name, state, torch.float16)
    for kind, name, state in autoencoders():
        save(kind, name, filled(state, 2, 1.4 if "wan" in name else 0.9), torch.float32)


def _part(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


if __name__ == "__main__":
    comfyui, target = sys.argv[1:]
    sys.argv = ["main.py", "--cpu"]
    sys.path.insert(0, comfyui)
    import comfy.options

    comfy.options.enable_args_parsing()
    write(Path(target))
