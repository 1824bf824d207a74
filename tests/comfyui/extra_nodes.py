"""What only tests need, beside the pack in the ComfyUI of the tests: nodes, and passphrases and validations that cost little."""

import gc
import runpy
import sys
from dataclasses import make_dataclass
from pathlib import Path

import comfy.model_management
import comfy.sd
import folder_paths
import pyrage
import torch
from server import PromptServer

VALIDATION = 4
"""Pairs in each validation of Train MSI, which are most of a short training's time."""
cheap = runpy.run_path(str(Path(__file__).resolve().parents[2] / "testing" / "cheap_passphrase.py"))
pyrage.passphrase.encrypt = cheap["encrypt"]


async def validate_little(_) -> None:
    """Once all nodes are loaded, whose order is the file system's."""
    (msi,) = (module for name, module in sys.modules.items() if name.endswith("diff-privacy.nodes.msi"))
    msi.Settings = make_dataclass("Settings", [("validation", int, VALIDATION)], bases=(msi.Settings,), frozen=True)


PromptServer.instance.app.on_startup.append(validate_little)


class Held:
    """Counts the models that ComfyUI's memory management holds, and the bytes of all tensors that are alive."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"when": ("INT",)}})
    RETURN_TYPES = ("INT", "INT")
    FUNCTION = "count"
    CATEGORY = "tests"

    def count(self, when):
        comfy.model_management.cleanup_models_gc()
        gc.collect()
        tensors = (each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter))
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
        return (len(comfy.model_management.current_loaded_models), sum(storages.values()))


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


NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in (Held, LoadThinCheckpoint, TextOfWidth)}
