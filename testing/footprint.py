"""Counts the bytes of all tensors alive while code runs, without running it: memory at full size, on any machine.

    with torch.device("meta"):
        network = ...
    without_data(network)
    with Footprint(network) as footprint:
        network(x).sum().backward()          # nothing is computed, nothing is allocated
    print(footprint.peak)

It counts tensors only. A GPU adds the allocator's rounding and fragmentation, the workspaces of cuDNN and cuBLAS, and
0.3 to 0.5 GB for CUDA itself.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_NO_DATA = FakeTensorMode(allow_non_fake_inputs=True)


class Footprint(TorchDispatchMode):
    """Bytes of the storages that operations in its block read or made: ``live`` now and ``peak`` at most.

    Works on real tensors and on fake ones. A storage counts once, however many views it has, until it is freed.
    Every element read from a fake tensor is 1: fine for checks and logs, wrong for code that branches on its data.
    """

    def __init__(self, *modules: nn.Module):
        """modules: networks whose weights count from the start, all of them, used or not."""
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[weakref.ref, int] = {}
        for module in modules:
            self._count([*module.parameters(), *module.buffers()])

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1
        result = func(*args, **(kwargs or {}))
        self._count(tree_leaves((args, kwargs, result)))
        return result

    def _count(self, values: list[Any]) -> None:
        for tensor in values:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = weakref.ref(storage, self._freed)
                if reference not in self._sizes:
                    self._sizes[reference] = storage.nbytes()
                    self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _freed(self, reference: weakref.ref) -> None:
        self.live -= self._sizes.pop(reference)


def without_data(*modules: nn.Module) -> None:
    """Make the networks' weights fake tensors on the CPU; all that is computed from them then is one, too."""
    with _NO_DATA:
        for module in modules:
            module.to_empty(device="cpu")


@contextlib.contextmanager
def cuda_autocast() -> Iterator[None]:
    """CUDA's bfloat16 autocast for tensors on a CPU, whose own keeps other operations in float32."""
    low, high = torch.bfloat16, torch.float32
    with contextlib.ExitStack() as stack:
        for namespace, name, dtype in (
            (F, "conv2d", low),
            (F, "linear", low),
            (F, "scaled_dot_product_attention", low),
            (torch, "matmul", low),
            (torch, "bmm", low),
            (F, "group_norm", high),
            (F, "layer_norm", high),
            (F, "softmax", high),
        ):
            stack.enter_context(patch.object(namespace, name, partial(_cast, getattr(namespace, name), dtype)))
        yield


def _cast(function: Callable[..., Tensor], dtype: torch.dtype, *args: Any, **kwargs: Any) -> Tensor:
    """The function of its floating-point arguments in another precision."""
    args, kwargs = tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, (args, kwargs))
    return function(*args, **kwargs)
