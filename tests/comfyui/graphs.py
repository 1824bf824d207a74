"""Small prompts in API format, and the latents that go in and come out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from diffprivacy import demo
from tests.comfyui.server import ComfyServer


class Graph(dict):
    """A prompt; add() returns the new node's first output."""

    def add(self, class_type: str, /, **inputs: Any) -> list:
        name = str(len(self) + 1)
        self[name] = {"class_type": class_type, "inputs": inputs}
        return [name, 0]


def demo_crops(graph: Graph, variants: int) -> tuple[list, list, list]:
    """astronaut.png and its face as the demo model takes it: its loader, the photo, and the crops."""
    loader = graph.add("DiffPrivacyLoadDemoModel")
    image = graph.add("LoadImage", image="astronaut.png")
    detector = graph.add("DiffPrivacyLoadDetector", file="built-in (no file needed)")
    faces = graph.add("DiffPrivacyDetectFaces", image=image, detector=detector, select="all", without_face="error")
    geometry = {"size": demo.IMAGE_SIZE, "margin": demo.MARGIN, "variants": variants}
    return loader, image, graph.add("DiffPrivacyCropFaces", image=image, faces=faces, **geometry)


def slot(output: list, index: int) -> list:
    """Another output of the node that a first output belongs to."""
    return [output[0], index]


def write_latent(server: ComfyServer, name: str, samples: Tensor) -> None:
    """A latent file for LoadLatent."""
    file = server.base / "input" / name
    save_file({"latent_tensor": samples.contiguous(), "latent_format_version_0": torch.tensor([])}, file)


def saved_latent(server: ComfyServer, outputs: dict, node: list) -> Tensor:
    """What a SaveLatent node wrote."""
    reference = outputs[node[0]]["latents"][0]
    folder = Path(server.base) / "output" / reference["subfolder"]
    return load((folder / reference["filename"]).read_bytes())["latent_tensor"]


def write_lora(path: Path, seed: int = 3) -> Path:
    """A LoRA on the middle block's attention of a UNet of 320 channels."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, width in (("attn1.to_q", 320), ("attn2.to_k", 768), ("attn2.to_v", 768)):
        key = f"diffusion_model.middle_block.1.transformer_blocks.0.{name}"
        state[f"{key}.lora_up.weight"] = torch.randn(320, 4, generator=generator) * 0.3
        state[f"{key}.lora_down.weight"] = torch.randn(4, width, generator=generator) * 0.3
    save_file(state, path)
    return path


def write_text_lora(path: Path, seed: int = 5) -> Path:
    """A LoRA on the first layer of CLIP-L's text encoder."""
    generator = torch.Generator().manual_seed(seed)
    key = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    shapes = {"lora_up": (3072, 4), "lora_down": (4, 768)}
    save_file({f"{key}.{n}.weight": torch.randn(s, generator=generator) * 0.3 for n, s in shapes.items()}, path)
    return path


def write_controlnet(path: Path, unet: dict[str, Tensor], seed: int = 4) -> Path:
    """A ControlNet around the encoder of a one-level UNet (LDM names), its zero convolutions made non-zero."""
    torch.manual_seed(seed)
    state = {
        key: value for key, value in unet.items() if key.startswith(("time_embed.", "input_blocks.", "middle_block."))
    }
    hint = [(3, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 96, 2), (96, 96, 1), (96, 256, 2), (256, 320, 1)]
    convolutions = {
        f"input_hint_block.{2 * i}": torch.nn.Conv2d(a, b, 3, s, padding=1) for i, (a, b, s) in enumerate(hint)
    }
    for name in ("zero_convs.0.0", "zero_convs.1.0", "middle_block_out.0"):
        convolutions[name] = torch.nn.Conv2d(320, 320, 1)
    for name, convolution in convolutions.items():
        state.update({f"{name}.{key}": value for key, value in convolution.state_dict().items()})
    save_file({f"control_model.{key}": value.half().contiguous() for key, value in state.items()}, path)
    return path
