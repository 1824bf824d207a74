"""Run by inside.py: pseudo-words under the text encoders of SD 2.x and SDXL.

probe_text.py PACK FOLDER; FOLDER gets the textual inversions, and results.safetensors with what is said.
"""

import sys
from pathlib import Path

import comfy.sd
import comfy.sdxl_clip
import comfy.text_encoders.sd2_clip
import torch
from comfy.supported_models_base import ClipTarget
from safetensors.torch import save_file

pack, folder = sys.argv[1:]
host, msi = (sys.modules[pack.replace(".", "_x_") + name] for name in (".nodes.comfy.model", ".diffprivacy.msi.module"))


def config(width: int, activation: str) -> dict:
    """A text model of full width and three layers."""
    shape = {"hidden_size": width, "num_attention_heads": width // 64, "hidden_act": activation}
    return shape | {"intermediate_size": 64, "num_hidden_layers": 3, "eos_token_id": 49407}


sd2, sdxl = comfy.text_encoders.sd2_clip, comfy.sdxl_clip
FAMILIES = {
    "sd2": (ClipTarget(sd2.SD2Tokenizer, sd2.SD2ClipModel), {"h": config(1024, "gelu")}),
    "sdxl": (
        ClipTarget(sdxl.SDXLTokenizer, sdxl.SDXLClipModel),
        {"l": config(768, "quick_gelu"), "g": config(1280, "gelu")},
    ),
}
results = {}
for kind, (target, configs) in FAMILIES.items():
    options = {f"clip_{name}_model_config": value for name, value in configs.items()}
    with torch.inference_mode():
        torch.manual_seed(0)
        clip = comfy.sd.CLIP(target, embedding_directory=[folder], state_dict={}, model_options=options)
        for name, weight in clip.cond_stage_model.named_parameters():
            is_scale = "norm" in name and name.endswith("weight")
            weight.copy_(torch.ones(weight.shape) if is_scale else torch.randn(weight.shape) * 0.05)
        diffusion_model = host.ComfyModel(clip=clip)
        word = torch.randn(1, sum(diffusion_model.text_encoder_identity.widths)) * 0.05
        (file,) = msi.textual_inversions(word, diffusion_model.text_encoder_identity)
        save_file(file, Path(folder) / f"{kind}.safetensors")
        said = diffusion_model.text_conditioning("a photo of *, smiling", word)
        written = clip.encode_from_tokens_scheduled(clip.tokenize(f"a photo of embedding:{kind}, smiling"))
        plain = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of face, smiling"))
        face = diffusion_model.text_conditioning("a photo of *, smiling", diffusion_model.word_embedding("face")[None])
    with torch.inference_mode(False), torch.enable_grad():
        learnt = word.clone().requires_grad_()
        differentiable = diffusion_model.differentiable_text_encoder()("a photo of *, smiling", learnt)
        (results[f"{kind}.gradient"],) = torch.autograd.grad(differentiable.context.square().sum(), learnt)
    for name, ((context, extra), *_) in {"said": said, "written": written, "plain": plain, "face": face}.items():
        results |= {f"{kind}.{name}": context, f"{kind}.{name}.pooled": extra["pooled_output"]}
    results[f"{kind}.differentiable"] = differentiable.context.detach()

save_file(
    {name: tensor.float().contiguous().clone() for name, tensor in results.items()},
    Path(folder) / "results.safetensors",
)
