"""Whether what lies at a tensor's address is its values, as kernels read them."""

from __future__ import annotations

from torch import Tensor

SKIPPED = 1 << 40  # bytes, more than a view has before it; memory that the system hands out lies above, mostly


def has_memory(t: Tensor, address: int) -> bool:
    """Whether there is memory at a tensor's address: without any, that is what a view has before it, 0 or more.

    Autograd's zeros have none, and neither has what FSDP has freed.
    """
    return address >= SKIPPED or address != t.storage_offset() * t.element_size()
