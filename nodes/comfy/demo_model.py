"""The embedded demo model as MODEL, CLIP, VAE and CLIP_VISION of the stock types."""

from __future__ import annotations

from functools import partial
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
from comfy.conds import CONDCrossAttn
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...diffprivacy import demo
from ...diffprivacy.backends.tokenizer import tokenize
from ...diffprivacy.diffusion.sharpening import sharpening
from .guiding import RUN
from .memory import Resident

VERSION = "diffprivacy_version"
"""Option of a conditioning that names the version of the UNet that it was made for."""


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
    """The MODEL, which brings along what sharpens it and what older versions were."""
    config, state = config_and_state(demo.NEWEST)
    model = config.get_model(state, "")
    management = comfy.model_management
    patcher = comfy.model_patcher.CoreModelPatcher(
        model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )
    model.load_model_weights(state, "", assign=patcher.is_dynamic())
    with torch.no_grad():
        spoilt = demo.load_text_encoder()(input_ids=torch.tensor([tokenize(demo.SPOILT)])).last_hidden_state
    patcher.set_model_sampler_post_cfg_function(partial(_sharpened, spoilt))
    patcher.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, VERSION, _as_it_was)
    return patcher


def config_and_state(version: demo.Version) -> tuple[DemoModel, dict[str, Tensor]]:
    """A version's UNet in ComfyUI's terms."""
    config = DemoModel(_unet_config())
    config.set_inference_dtype(torch.float32, None)
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    return config, {names[name]: tensor for name, tensor in demo.weights(demo.UNETS[version]).items()}


def _as_it_was(executor: Any, guider: Any, *arguments: Any, **options: Any) -> Any:
    """A sampling run; one whose conditioning names an older version, as Open Recovery Key's does, is that UNet's."""
    named = {entry[VERSION] for entries in guider.conds.values() for entry in entries if VERSION in entry}
    if not named:
        return executor(guider, *arguments, **options)
    config, state = config_and_state(named.pop())
    model = config.get_model(state, "")
    model.load_model_weights(state, "")
    newest = guider.inner_model.diffusion_model
    guider.inner_model.diffusion_model = model.diffusion_model.to(guider.model_patcher.load_device)
    try:
        return executor(guider, *arguments, **options)
    finally:
        guider.inner_model.diffusion_model = newest


def _sharpened(spoilt: Tensor, step: dict[str, Any]) -> Tensor:
    """See diffprivacy.diffusion.sharpening. Only in runs that an energy guides: what inverts and replays is never guided."""
    options, denoised = step["model_options"], step["denoised"]
    run = options["transformer_options"].get(RUN)
    if run is None or not run.guides:
        return denoised
    conditioning = [
        entry | {"model_conds": entry["model_conds"] | {"c_crossattn": CONDCrossAttn(spoilt)}} for entry in step["cond"]
    ]
    (worse,) = comfy.samplers.calc_cond_batch(step["model"], [conditioning], step["input"], step["sigma"], options)
    return denoised + sharpening(step["cond_denoised"], worse)


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
