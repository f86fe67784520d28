"""Whether torch's operators are being looked through: then a kernel or a hand-written backward would hide them."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def compiling() -> bool:
    """Under torch.compile and not torch.export, which wants torch's own operators."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def traced() -> bool:
    """Under torch.compile or a dispatch mode: fake tensors, make_fx, a counter of operations."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def transformed() -> bool:
    """Under torch.jit.trace, a torch.func transform, or forward-mode differentiation."""
    return (
        torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def any_batched(*tensors: torch.Tensor) -> bool:
    """Whether a backward runs for several gradients at once, `is_grads_batched=True`: such tensors have no memory."""
    return any(torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors)
