"""Runs inside a Python process of ComfyUI's own, on the CPU: what its host layer computes for given tensors.

python probe.py COMFYUI PACK CHECKPOINT INPUTS.safetensors OUTPUTS.safetensors
"""

import asyncio
import sys
from pathlib import Path

comfyui, pack, checkpoint, inputs_file, outputs_file = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import torch  # noqa: E402
from comfy.clip_vision import ClipVisionModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import nodes  # noqa: E402

assert asyncio.run(nodes.load_custom_node(pack))
host = sys.modules[pack.replace(".", "_x_") + ".nodes.host"]
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
    backbone = host.ComfyBackbone(model, clip, vae, vision)
    words = backbone.text_conditioning("a photo of *, smiling", inputs["pseudo_words"])
    empty = backbone.text_conditioning("")
    latents = backbone.encode(inputs["images"])
    decoded = backbone.decode(inputs["latents"])
    features = backbone.image_features(inputs["images"], [1, 4])
    outputs = {
        "text": words[0][0],
        "empty": empty[0][0],
        "encoded": latents,
        "decoded": decoded,
        "sigmas": backbone.noise_levels.sigmas,
        "features_1": features[0],
        "features_4": features[1],
        "denoised_text": backbone.denoise(inputs["x"], inputs["sigma"], words),
        "denoised_empty": backbone.denoise(inputs["x"], inputs["sigma"], empty),
    }
    outputs["facts"] = torch.tensor([backbone.latent_channels, backbone.downscale])
    with torch.inference_mode(False), torch.enable_grad():
        z = inputs["latents"].clone().requires_grad_()
        images = backbone.differentiable_decoder()(z)
        (outputs["gradient"],) = torch.autograd.grad(images.square().sum(), z)
        outputs["differentiable"] = images.detach()

save_file({key: value.contiguous().clone() for key, value in outputs.items()}, Path(outputs_file))
