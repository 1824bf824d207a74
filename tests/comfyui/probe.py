"""Run by inside.py: what the host layer computes for given tensors.

probe.py PACK CHECKPOINT INPUTS.safetensors OUTPUTS.safetensors
"""

import sys
from pathlib import Path

import comfy.sd
import torch
from comfy.clip_vision import ClipVisionModel
from safetensors.torch import load_file, save_file

pack, checkpoint, inputs_file, outputs_file = sys.argv[1:]
comfy_model, decoders, memory = (
    sys.modules[pack.replace(".", "_x_") + f".nodes.comfy.{name}"] for name in ("model", "decoders", "memory")
)
inputs = load_file(inputs_file)

with torch.inference_mode():
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(checkpoint)
    vision = ClipVisionModel(
        {
            "model_type": "clip_vision_model",
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 256,
            "hidden_act": "quick_gelu",
            "image_size": 224,
            "patch_size": 32,
            "num_channels": 3,
        }
    )
    vision.load_sd({key.removeprefix("vision."): value for key, value in inputs.items() if key.startswith("vision.")})
    diffusion_model = comfy_model.ComfyModel(model, clip, vae, vision)
    words = diffusion_model.text_conditioning("a photo of *, smiling", inputs["pseudo_words"])
    empty = diffusion_model.text_conditioning("")
    latents = diffusion_model.encode(inputs["images"])
    decoded = diffusion_model.decode(inputs["latents"])
    features = diffusion_model.image_features(inputs["images"], [1, 4])
    outputs = {
        "text": words[0][0],
        "empty": empty[0][0],
        "encoded": latents,
        "decoded": decoded,
        "sigmas": diffusion_model.noise_levels.sigmas,
        "features_1": features[0],
        "features_4": features[1],
        "denoised_text": diffusion_model.denoise(inputs["x"], inputs["sigma"], words),
        "denoised_empty": diffusion_model.denoise(inputs["x"], inputs["sigma"], empty),
    }
    outputs["facts"] = torch.tensor([diffusion_model.latent_channels, diffusion_model.downscale])
    narrow = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32}
    narrow |= {"ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    kl = comfy.sd.VAE(sd={}, config={"params": {"embed_dim": 4, "ddconfig": narrow}}, dtype=torch.float32)
    for weight in kl.first_stage_model.parameters():
        weight.normal_(std=0.1)
    with torch.inference_mode(False), torch.enable_grad():
        z = inputs["latents"].clone().requires_grad_()
        images = diffusion_model.differentiable_decoder()(z)
        (outputs["gradient"],) = torch.autograd.grad(images.square().sum(), z)
        outputs["differentiable"] = images.detach()

        latent_format = model.get_model_object("latent_format")
        images = decoders.differentiable_decoder(kl, latent_format)(z)
        (outputs["kl_gradient"],) = torch.autograd.grad(images.square().sum(), z)
        plain = memory.private_copy(kl.first_stage_model).decode(latent_format.process_out(z))
        images = (plain / 2 + 0.5).clamp(0, 1)
        (outputs["kl_plain_gradient"],) = torch.autograd.grad(images.square().sum(), z)

save_file({key: value.contiguous().clone() for key, value in outputs.items()}, Path(outputs_file))
