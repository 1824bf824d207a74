"""Run by inside.py: ComfyUI's weights as they are, in the file's precision or made in inference mode, and what the pack makes of them.

weights.py PACK prints what each scenario found as one line of JSON.
"""

import json
import sys
import tempfile
from unittest.mock import patch

import comfy.latent_formats
import comfy.model_management as management
import comfy.model_patcher as patchers
import comfy.sd
import folder_paths
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.taesd.taehv import TAEHV
from safetensors.torch import save_file

prefix = sys.argv[1].replace(".", "_x_") + "."
decoders, demo_model, model = (
    sys.modules[f"{prefix}nodes.comfy.{name}"] for name in ("decoders", "demo_model", "model")
)
CARD, CPU = torch.device("meta"), torch.device("cpu")
NARROW = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32}
NARROW |= {"ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}


def seeded(network):
    """A network of ordinary weights, exact in float16."""
    for weight in network.requires_grad_(False).parameters():
        bound = weight.shape[1:].numel() ** -0.5 if weight.ndim > 1 else 0.1
        weight.copy_((torch.randn(weight.shape) * bound + float(weight.ndim == 1)).half())
    return network


def precisions() -> dict:
    """Errors of gradients through decoders of files in another precision than ComfyUI computes in."""
    found = {}

    def error(decoder, exact, latents):
        gradients = []
        for decode in (decoder, exact):
            with torch.inference_mode(False), torch.enable_grad():
                z = latents.clone().requires_grad_()
                gradients.append(torch.autograd.grad(decode(z).square().sum(), z)[0])
        return float((gradients[0] - gradients[1]).norm() / gradients[1].norm())

    torch.manual_seed(0)
    config = {"params": {"embed_dim": 4, "ddconfig": NARROW}}
    plain, video = seeded(AutoencoderKL(**config["params"])), seeded(TAEHV(16, None))

    def plain_images(z):
        return (plain.decode(z / comfy.latent_formats.SDXL().scale_factor) / 2 + 0.5).clamp(0, 1)

    dynamic = patch.object(patchers, "CoreModelPatcher", patchers.ModelPatcherDynamic)
    with dynamic, patch.object(management, "get_torch_device", lambda: CARD), torch.inference_mode():
        for precision in (torch.bfloat16, torch.float32):
            file = {name: tensor.half() for name, tensor in plain.state_dict().items()}
            vae = comfy.sd.VAE(sd=file, config=config, dtype=precision)
            vae.device = CPU
            vae.first_stage_model.decoder.conv_in.weight_comfy_model_dtype = None  # As of layers made lazily.
            decoder = decoders.differentiable_decoder(vae, comfy.latent_formats.SDXL())
            found[str(precision)] = error(decoder, plain_images, torch.randn(1, 4, 8, 8))
            found["held"] = str(vae.first_stage_model.decoder.conv_in.weight.dtype)
    with tempfile.TemporaryDirectory() as folder, patch.object(management, "vae_dtype", lambda *_: torch.bfloat16):
        save_file(video.state_dict(), f"{folder}/lighttaew2_1.safetensors")
        folder_paths.add_model_folder_path("vae_approx", folder)
        decoder = decoders.tiny_decoder(comfy.latent_formats.Wan21(), CPU)
        video.parallel, video.show_progress_bar = True, False
        found["video"] = error(decoder, lambda z: video.decode(z)[:, :, 0].clamp(0, 1), torch.randn(1, 16, 1, 4, 4))
    return found


def moved() -> dict:
    """What is read of networks made in inference mode and moved outside it."""
    with torch.inference_mode():
        clip, vision = demo_model.load_clip(), demo_model.load_clip_vision()
        whole = model.ComfyModel(clip=clip, clip_vision=vision)
        before = [str(whole.text_encoder_identity), str(whole.image_encoder_identity), whole.word_embedding("face")]
    for network in (clip.cond_stage_model, vision.model):
        network.double().float()
    words = whole.word_embedding("face")
    encode = whole.differentiable_text_encoder()
    with torch.enable_grad():
        word = words[None].requires_grad_()
        gradient = torch.autograd.grad(encode("a photo of *", word).context.square().sum(), word)[0]
    return {
        "same": [str(whole.text_encoder_identity), str(whole.image_encoder_identity)] == before[:2],
        "word": float((words - before[2]).detach().abs().max()),
        "gradient": float(gradient.abs().sum()),
    }


print(json.dumps({"precisions": precisions(), "moved": moved()}))
