"""A CLIP vision model from the one file that ComfyUI's users have of it, or from a transformers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import DiffPrivacyError

PREFIX = "vision_model."


def load_vision_encoder(path: Path) -> Any:
    """transformers' CLIPVisionModel of ViT-L/14, ViT-H/14, ViT-bigG/14 or the like; its shape is read from the weights.

    path: a .safetensors file with transformers' names (as in models/clip_vision), or a folder with a config.json.
    Raises DiffPrivacyError that names the path when it is no CLIP vision model.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    if path.is_dir():
        try:
            return CLIPVisionModel.from_pretrained(path, local_files_only=True, use_safetensors=True).float().eval()
        except (OSError, ValueError) as error:
            raise DiffPrivacyError(f"Folder {path} holds no CLIP vision model ({error}).") from error
    state = _read(path)
    patches = state.get(PREFIX + "embeddings.patch_embedding.weight")
    positions = state.get(PREFIX + "embeddings.position_embedding.weight")
    if patches is None or positions is None or PREFIX + "embeddings.class_embedding" not in state:
        raise DiffPrivacyError(
            f"{path} is no CLIP vision model with transformers' names; give the file of ViT-L/14 or ViT-H/14 that "
            "ComfyUI keeps in models/clip_vision."
        )
    width, _, patch, _ = patches.shape
    depth = 1 + max(int(name.split(".layers.")[1].split(".")[0]) for name in state if ".layers." in name)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=state[PREFIX + "encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=depth,
        num_attention_heads=16 if width >= 1024 else width // 64,
        patch_size=patch,
        image_size=patch * round((len(positions) - 1) ** 0.5),
        hidden_act="quick_gelu" if width <= 1024 else "gelu",
    )
    model = CLIPVisionModel(config)
    names = set(model.state_dict())
    plain = {name if name in names else name.removeprefix(PREFIX): tensor.float() for name, tensor in state.items()}
    try:
        model.load_state_dict({name: tensor for name, tensor in plain.items() if name in names})
    except RuntimeError as error:
        raise DiffPrivacyError(f"CLIP vision model {path} is incomplete: {error}") from error
    return model.eval()


def _read(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise DiffPrivacyError(f"CLIP vision model {path} does not exist.") from None
    except (SafetensorError, OSError) as error:
        raise DiffPrivacyError(f"CLIP vision model {path} is not a readable safetensors file ({error}).") from error
