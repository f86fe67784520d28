"""What torch.autocast means for a recurrence."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast would compute a matmul of x in, or None where it is off. It leaves float64 alone."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context in which operators on x's device keep their dtypes."""
    if not torch.amp.is_autocast_available(x.device.type):
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)
