"""A device that computes like the CPU and whose memory is apart, for machines without a graphics card.

install() registers it with PyTorch as "card", through PyTorch's own door for backends in Python. Its tensors hold the
CPU's and hide them: an operation that mixes them with tensors of the CPU raises, as on CUDA, and so does reading one as
an array. Autograd, modules and optimizers are PyTorch's own, so nothing here names anything of this project.
Registering is for the life of a process: use it in one of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

MOVES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from")
"""Operations that may see tensors of both devices."""
MADE = ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "randperm", "randperm.generator")
"""Operations that PyTorch would make by resizing an empty tensor, which a tensor around another one cannot follow."""
READ = ("aten::_local_scalar_dense", "aten::nonzero")
"""Operations whose results the CPU waits for."""
WAITS: list[str] = []
"""Names of the operations so far at which a program would have waited for a card."""
KEPT: list[torch.library.Library] = []


class CardTensor(torch.Tensor):
    """A tensor on the pretended card."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> CardTensor:
        layout: dict[str, Any] = {"strides": raw.stride(), "storage_offset": raw.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(cls, raw.shape, dtype=raw.dtype, device="card:0", **layout)
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _composed(function):  # Comes whole in inference mode.
            return function.decompose(*args, **kwargs or {})
        return computed(function, *args, **kwargs or {})

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"CardTensor({self.raw})"


def computed(function: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation of the card, computed by the CPU. Numbers without dimensions may come from the CPU, as on CUDA."""
    name = function.name()
    tensors: list[torch.Tensor] = []
    inside = _mapped((args, kwargs), functools.partial(_inside, tensors))
    mixed = [tensor for tensor in tensors if not isinstance(tensor, CardTensor) and tensor.ndim > 0]
    indexed = name.startswith(("aten::index.", "aten::index_put", "aten::_index_put"))  # By the CPU's: allowed on CUDA.
    if mixed and not name.startswith(MOVES) and not (indexed and isinstance(args[0], CardTensor)):
        raise RuntimeError(f"{name} expects all tensors on one device, but found some on the card and some on the CPU")
    if name.startswith(READ) or (name.startswith(MOVES) and not _queued(args, kwargs)):
        WAITS.append(name)
    there = kwargs.get("device")
    result = function(*inside[0], **inside[1])
    if name.startswith("aten::_to_copy") and there is not None and torch.device(there).type != "card":
        return result
    same = {id(tensor.raw): tensor for tensor in tensors if isinstance(tensor, CardTensor)}
    inference = torch.is_inference_mode_enabled()
    if function.is_view and isinstance(args[0], CardTensor):
        inference = args[0].is_inference()  # As PyTorch's own views: what their base is.
    with torch.inference_mode(inference):
        return _mapped(result, lambda x: _card(x, same) if isinstance(x, torch.Tensor) else x)


def _queued(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a copy is one within a device, or need not be over when it returns."""
    device = kwargs.get("device") or args[0].device
    between = any(torch.device(device).type != each.device.type for each in args if isinstance(each, torch.Tensor))
    return not between or bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """What an operation takes or gives with a function applied to each leaf; PyTorch's own way takes longer than the
    operations."""
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(each, function) for each in value)
    if isinstance(value, dict):
        return {name: _mapped(each, function) for name, each in value.items()}
    return function(value)


@functools.cache
def _composed(function: Any) -> bool:
    """Whether an operation is made of others alone."""
    return function._can_decompose()


def _card(raw: torch.Tensor, same: dict[int, CardTensor]) -> CardTensor:
    """The card's tensor of the CPU's: the one that an operation in place gave back, or a new one."""
    return same[id(raw)] if id(raw) in same else CardTensor(raw)


def _inside(seen: list[torch.Tensor], value: Any) -> Any:
    """What the CPU computes with; tensors are noted as seen."""
    if isinstance(value, torch.Tensor):
        seen.append(value)
        return value.raw if isinstance(value, CardTensor) else value
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "card" else value


def install() -> torch.device:
    """Register the device; returns it. PyTorch's own constructor knows no backends in Python: hence another."""
    _setup_privateuseone_for_python_backend("card")
    torch.get_device_module("card").get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    library = torch.library.Library("_", "IMPL")
    library.fallback(computed, "PrivateUse1")
    made = torch.library.Library("aten", "IMPL")
    for name in MADE:
        packet, _, overload = name.partition(".")
        function = getattr(getattr(torch.ops.aten, packet), overload or "default")
        made.impl(name, functools.partial(computed, function), "PrivateUse1")
    KEPT.extend([library, made])
    plain = torch.tensor
    torch.tensor = lambda data, *, device=None, **options: plain(data, **options).to(device or "cpu")
    return torch.device("card", 0)
