"""Networks under ComfyUI's memory management: copies that autograd can use, and giving their memory back."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
import torch.utils.checkpoint
from torch import Tensor

from ...diffprivacy.identity.recognizers import Embeddings, FaceMatcher


class ManagedRecognizer(FaceMatcher):
    """A recognizer that ComfyUI's memory management brings to the GPU when it is used."""

    def __init__(self, recognizer: FaceMatcher):
        super().__init__()
        self.recognizer = recognizer
        self.weights = recognizer.weights
        self.strangers = recognizer.strangers
        self.thresholds = recognizer.thresholds
        self.patcher = managed(
            recognizer, comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
        )

    def embed(self, images: Tensor, landmarks: Tensor, mirrored: bool = False) -> Embeddings:
        comfy.model_management.load_models_gpu([self.patcher])
        device = self.patcher.load_device
        embeddings = self.recognizer.embed(images.to(device), landmarks.to(device), mirrored)
        return tuple(embedding.to(images.device) for embedding in embeddings)


def private_patcher(patcher: Any) -> Any:
    """A model's patcher with the same LoRAs on a frozen copy of the network, which autograd can use inside a prompt.

    The model is taken off the GPU first: only then are its weights those of the file, and there is room for the copy.
    """
    comfy.model_management.unload_model_and_clones(patcher)
    untouched = ({}, {}, {}, set())
    return patcher.clone(disable_dynamic=True, model_override=(private_copy(patcher.model), untouched))


def release() -> None:
    """Give back the memory of private copies that nobody uses any more."""
    gc.collect()
    comfy.model_management.cleanup_models()
    comfy.model_management.soft_empty_cache()


def private_copy(network: torch.nn.Module) -> Any:
    """A frozen copy of a network that autograd can use, even of one that was loaded in inference mode."""
    configuration = getattr(network, "model_config", None)  # Shared: a UNet's cannot be copied.
    with torch.inference_mode(False):
        return copy.deepcopy(network, {id(configuration): configuration}).requires_grad_(False)


def managed(network: torch.nn.Module, device: torch.device, offload_device: torch.device) -> Any:
    """The network under ComfyUI's memory management; load it with load_models_gpu before use."""
    return comfy.model_patcher.CoreModelPatcher(network, load_device=device, offload_device=offload_device)


def checkpointed(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """A layer's forward whose activations are computed again in the backward pass, with the options it saw then."""
    inputs = tuple(dict(value) if isinstance(value, dict) else value for value in inputs)
    options = {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}
    return torch.utils.checkpoint.checkpoint(forward, *inputs, use_reentrant=False, **options)
