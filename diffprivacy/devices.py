"""Giving small tensors to a device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor

QUEUING = ["cuda"]
"""Devices that have read ordinary memory when a copy from it returns, so that it may be queued behind other work.

Everywhere else a copy waits for all that the device was asked for before.
"""


def upload(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on a device, in another type if there is one."""
    return tensor.to(device, dtype or tensor.dtype, non_blocking=tensor.device.type == "cpu" and device.type in QUEUING)
