"""What only tests need, beside the pack in the ComfyUI of the tests: nodes, and passphrases that cost nothing."""

import runpy
from pathlib import Path

import comfy.model_management
import comfy.sd
import folder_paths
import pyrage
import torch

cheap = runpy.run_path(str(Path(__file__).resolve().parents[2] / "testing" / "cheap_passphrase.py"))
pyrage.passphrase.encrypt = cheap["encrypt"]


class LoadedModels:
    """Counts what ComfyUI's memory management holds."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"when": ("INT",)}})
    RETURN_TYPES = ("INT",)
    FUNCTION = "count"
    CATEGORY = "tests"

    def count(self, when):
        comfy.model_management.cleanup_models_gc()
        return (len(comfy.model_management.current_loaded_models),)


class LoadThinCheckpoint:
    """Load Checkpoint for files whose text encoders have the width of their family and three layers."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"ckpt_name": (folder_paths.get_filename_list("checkpoints"),)}})
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"
    CATEGORY = "tests"

    def load(self, ckpt_name):
        thin = {f"clip_{encoder}_model_config": {"num_hidden_layers": 3} for encoder in "lgh"}
        file = folder_paths.get_full_path("checkpoints", ckpt_name)
        return comfy.sd.load_checkpoint_guess_config(file, te_model_options=thin)[:3]


class TextOfWidth:
    """CLIP Text Encode for small models whose text encoders cannot be small: seeded numbers of a width."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"text": ("STRING",), "width": ("INT",), "pooled": ("INT",)}})
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "tests"

    def encode(self, text, width, pooled):
        generator = torch.Generator().manual_seed(len(text))
        tokens = torch.randn(1, 8, width, generator=generator)
        return ([[tokens, {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}]],)


NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in (LoadedModels, LoadThinCheckpoint, TextOfWidth)}
