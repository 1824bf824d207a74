"""Networks under ComfyUI's memory management: private copies that autograd can use, and giving their memory back."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
import torch.utils.checkpoint
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from ...diffprivacy.errors import DiffPrivacyError
from ...diffprivacy.identity.recognizers import Embeddings, Ensemble, FaceMatcher

STATE = (
    "dynamic_",
    "_v",
    "_pin",
    "_prefetch",
    "comfy_",
    "prev_comfy_",
    "weight_lowvram_function",
    "bias_lowvram_function",
    "weight_function",
    "bias_function",
    "model_lowvram",
    "model_loaded_weight_memory",
    "model_offload_buffer_memory",
    "lowvram_patch_counter",
    "current_weight_patches_uuid",
)
"""How the attributes begin that ComfyUI's patchers hang on a network: they say where its weights are, and own memory."""


class Resident(comfy.model_patcher.ModelPatcher):
    """A network on its device as a whole or not at all, its weights ordinary tensors that autograd can save.

    ComfyUI's other patchers move weights in inference mode, cast what does not fit into one buffer that all layers
    share, and move only layers of its own: under autograd each of these is a wrong gradient or an error.
    """

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> int:
        before = self.loaded_size()
        self._move(device_to, self.model_size())
        return self.loaded_size() - before

    def partially_unload(
        self, device_to: torch.device, memory_to_free: float = 0, force_patch_weights: bool = False
    ) -> int:
        freed = self.loaded_size()
        self._move(device_to, 0)
        return freed

    def detach(self, unpatch_all: bool = True) -> None:
        if unpatch_all:
            self._move(self.offload_device, 0)

    def _move(self, device: torch.device, loaded: int) -> None:
        with torch.inference_mode(False):
            self.model.to(device)
        self.model.device = device
        self.model.model_loaded_weight_memory = loaded


class ManagedRecognizer(FaceMatcher):
    """A recognizer that ComfyUI's memory management brings to the GPU when it is used."""

    def __init__(self, recognizer: FaceMatcher):
        super().__init__()
        self.recognizer = recognizer
        self.weights = recognizer.weights
        self.strangers = recognizer.strangers
        self.thresholds = recognizer.thresholds
        management = comfy.model_management
        patcher = Resident(recognizer, management.get_torch_device(), management.unet_offload_device())
        self.patchers = (patcher,)

    def embed(self, images: Tensor, landmarks: Tensor, mirrored: bool = False) -> Embeddings:
        load(self.patchers)
        device = self.patchers[0].load_device
        embeddings = self.recognizer.embed(images.to(device), landmarks, mirrored)
        return tuple(embedding.to(images.device) for embedding in embeddings)


class ManagedEnsemble(Ensemble):
    """Managed recognizers, equally heavy, each brought to the GPU by itself."""

    def __init__(self, members: Sequence[ManagedRecognizer | ManagedEnsemble]):
        super().__init__([(member, 1.0) for member in members])
        self.patchers: tuple[Any, ...] = tuple(patcher for member in members for patcher in member.patchers)


def load(patchers: Sequence[Any], memory_required: float = 0) -> None:
    """Bring networks to their devices; free when they are there, so that it can stand in a loop."""
    if not all(patcher.loaded_size() for patcher in patchers):
        with torch.inference_mode(False):
            comfy.model_management.load_models_gpu(patchers, memory_required, force_full_load=True)


def private_patcher(patcher: Any) -> Any:
    """A model's patcher with the same LoRAs on a frozen copy of the network, which autograd can use inside a prompt.

    The model is taken off the GPU first: only then are its weights those of the file, and there is room for the copy.
    """
    if comfy.model_management.vram_state == comfy.model_management.VRAMState.NO_VRAM:
        raise DiffPrivacyError("ComfyUI was started with --novram, which leaves no room to train; start it without.")
    comfy.model_management.unload_model_and_clones(patcher)
    untouched = ({}, {}, {}, set())
    private = patcher.clone(disable_dynamic=True, model_override=(private_copy(patcher.model), untouched))
    private.parent = None
    return private


def private_copy(network: torch.nn.Module, without: Sequence[str] = ()) -> Any:
    """A frozen copy of a network that shares nothing with ComfyUI's memory management, for autograd inside a prompt.

    without: children that are left out, None in the copy.
    What ComfyUI hangs on modules is never copied, not even to be dropped: a copy of a page of the card's memory frees
    that page with it. Weights are in the precision that the model computes in; ComfyUI may hold the file's.
    Raises DiffPrivacyError for quantized weights, which have no gradients.
    """
    for name, weight in network.named_parameters():
        if isinstance(weight, QuantizedTensor) or isinstance(weight.data, QuantizedTensor) or weight.dtype.itemsize < 2:
            raise DiffPrivacyError(
                f"{type(network).__name__} has quantized weights ({name}), through which no gradient goes; "
                "load the model's file in float16, bfloat16 or float32."
            )
    configuration = getattr(network, "model_config", None)  # Shared: a UNet's cannot be copied.
    memo: dict[int, Any] = {id(configuration): configuration, id(getattr(network, "current_patcher", None)): None}
    left_out = [child for name, child in network.named_children() if name in without]
    memo |= {id(child): None for child in left_out}
    unseen = set(itertools.chain.from_iterable(child.modules() for child in left_out))
    modules = [module for _, module in network.named_modules(unseen)]
    memo |= {id(module): object.__new__(type(module)) for module in modules}
    with torch.inference_mode(False):
        for module in modules:
            memo |= _weights(module)
        for module in modules:
            own = {name: value for name, value in vars(module).items() if not name.startswith(STATE)}
            vars(memo[id(module)]).update(copy.deepcopy(own, memo))
    private = memo[id(network)]
    vars(private).pop("device", None)
    return private


def _weights(module: torch.nn.Module) -> dict[int, Tensor]:
    """By the identity of each weight and buffer of a module itself: a copy of it in the precision computed in."""
    copies: dict[int, Tensor] = {}
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        precision = getattr(module, f"{name}_comfy_model_dtype", None) or tensor.dtype
        copied = tensor.detach().to(precision, copy=True)
        copies[id(tensor)] = torch.nn.Parameter(copied, False) if isinstance(tensor, torch.nn.Parameter) else copied
    return copies


def release() -> None:
    """Give back the memory of private copies that nobody uses any more."""
    gc.collect()
    comfy.model_management.cleanup_models()
    comfy.model_management.soft_empty_cache()


def replace_forward(layer: torch.nn.Module, function: Callable[..., Any]) -> None:
    """Let a layer's forward be ``function(layer, ...)``, without a reference cycle that would outlive the network."""
    reference = weakref.ref(layer)
    layer.forward = lambda *inputs, **options: function(reference(), *inputs, **options)


def checkpoint_layer(layer: torch.nn.Module) -> None:
    """Compute a layer's activations again in the backward pass instead of keeping them."""
    replace_forward(layer, functools.partial(checkpointed, type(layer).forward))


def checkpointed(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """A layer's forward whose activations are computed again in the backward pass, with the options it saw then."""
    inputs = tuple(dict(value) if isinstance(value, dict) else value for value in inputs)
    options = {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}
    return torch.utils.checkpoint.checkpoint(forward, *inputs, use_reentrant=False, **options)
