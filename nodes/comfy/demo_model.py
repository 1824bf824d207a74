"""The embedded demo model as MODEL, CLIP, VAE and CLIP_VISION of the stock types."""

from __future__ import annotations

from typing import Any, ClassVar

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...diffprivacy import demo
from ...diffprivacy.diffusion.sharpening import acts_at, sharpening
from .guiding import RUN
from .memory import Resident


class DemoLatent(comfy.latent_formats.LatentFormat):
    """The demo autoencoder's latents are in the UNet's units already."""

    latent_channels = demo.LATENT_CHANNELS
    scale_factor = 1.0


class DemoModel(comfy.supported_models.SD15):
    unet_extra_config: ClassVar = {"num_heads": demo.config("unet")["attention_head_dim"], "num_head_channels": -1}
    latent_format = DemoLatent
    supported_inference_dtypes: ClassVar = [torch.float32]

    def inpaint_model(self) -> bool:
        return False


def _unet_config() -> dict[str, Any]:
    """The demo UNet's configuration in ComfyUI's terms."""
    config = demo.config("unet")
    base, layers = config["block_out_channels"][0], config["layers_per_block"]
    down = [int("CrossAttn" in name) for name in config["down_block_types"]]
    up = [int("CrossAttn" in name) for name in reversed(config["up_block_types"])]
    return {
        "image_size": 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": base,
        "num_res_blocks": [layers] * len(down),
        "channel_mult": [width // base for width in config["block_out_channels"]],
        "transformer_depth": [depth for depth in down for _ in range(layers)],
        "transformer_depth_output": [depth for depth in up for _ in range(layers + 1)],
        "transformer_depth_middle": 1,
        "context_dim": config["cross_attention_dim"],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "legacy": False,
    }


def load_model() -> Any:
    config = DemoModel(_unet_config())
    config.set_inference_dtype(torch.float32, None)
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    state = {names[name]: tensor for name, tensor in demo.weights("unet").items()}
    model = config.get_model(state, "")
    management = comfy.model_management
    patcher = comfy.model_patcher.CoreModelPatcher(
        model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )
    model.load_model_weights(state, "", assign=patcher.is_dynamic())
    patcher.set_model_sampler_post_cfg_function(_sharpened)
    return patcher


def _sharpened(step: dict[str, Any]) -> Tensor:
    """See diffprivacy.diffusion.sharpening. Only where Energy Guidance guides: what inverts and replays is never guided."""
    options, denoised = step["model_options"], step["denoised"]
    run = options["transformer_options"].get(RUN)
    if run is None:
        return denoised
    sigma = run.border.sigma(step["sigma"].max().cpu())
    if not run.guides_at(sigma) or not acts_at(sigma, run.levels):
        return denoised
    without = _without_middle(options)
    (weaker,) = comfy.samplers.calc_cond_batch(step["model"], [step["cond"]], step["input"], step["sigma"], without)
    return denoised + sharpening(step["cond_denoised"], weaker)


def _without_middle(options: dict[str, Any]) -> dict[str, Any]:
    """A model's options under which what goes into its middle block comes out of it."""
    kept: list[Tensor] = []

    def keep(h: Tensor, _: dict[str, Any]) -> Tensor:
        kept[:] = [h]
        return h

    def give_back(_: dict[str, Any]) -> dict[str, Tensor]:
        return {"h": kept.pop()}

    patches = dict(options["transformer_options"].get("patches", {}))
    for name, patch in (("input_block_patch", keep), ("middle_block_after_patch", give_back)):
        patches[name] = [*patches.get(name, []), patch]
    return options | {"transformer_options": options["transformer_options"] | {"patches": patches}}


def load_clip() -> Any:
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    config = demo.config("text_encoder")
    state = {f"clip_l.transformer.text_model.{name}": t for name, t in demo.weights("text_encoder").items()}
    state["clip_l.transformer.text_projection.weight"] = torch.eye(config["hidden_size"])
    return comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        state_dict=state,
        tokenizer_data={"clip_l_embedding_size": config["hidden_size"]},
        model_options={"clip_l_model_config": config},
    )


def load_vae() -> Any:
    """A stock VAE around the demo autoencoder; the one it is built with is of the least size and replaced."""
    least = {"double_z": True, "z_channels": 4, "resolution": 8, "in_channels": 3, "out_ch": 3, "ch": 32}
    least |= {"ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    vae = comfy.sd.VAE(sd={}, config={"params": {"embed_dim": 4, "ddconfig": least}}, dtype=torch.float32)
    vae.first_stage_model = demo.load_autoencoder()
    vae.latent_channels = demo.LATENT_CHANNELS
    vae.size = None
    vae.patcher = Resident(vae.first_stage_model, vae.device, comfy.model_management.vae_offload_device())
    return vae


def load_clip_vision() -> Any:
    vision = comfy.clip_vision.ClipVisionModel(demo.config("image_encoder") | {"model_type": "clip_vision_model"})
    vision.load_sd({f"vision_model.{name}": t for name, t in demo.weights("image_encoder").items()})
    return vision
