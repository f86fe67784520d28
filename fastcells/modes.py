"""What torch is doing around a call: autocast, recording, compiling, transforming, tensors that are no plain ones."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active as _transforms_active
from torch._C import _is_any_autocast_enabled as _any_autocast
from torch._C import _is_tracing as _tracing
from torch._C import _len_torch_dispatch_stack as _dispatch_modes
from torch.autograd import forward_ad

# Asked once: torch.compile of torch 2.11 traces no such question. Of a device of somebody else's it is asked each time.
_HAS_AUTOCAST = {name: torch.amp.is_autocast_available(name) for name in ("cpu", "cuda", "xpu", "mps")}


def _has_autocast(device: str) -> bool:
    known = _HAS_AUTOCAST.get(device)
    return torch.amp.is_autocast_available(device) if known is None else known


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast would compute a matmul of x in, or None where it is off. It leaves float64 alone."""
    if not torch._C._is_any_autocast_enabled():  # the question that costs the least
        return None
    device = x.device.type
    if x.dtype == torch.float64 or not _has_autocast(device):
        return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context in which operators on x's device keep their dtypes."""
    if not _has_autocast(x.device.type):
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def compiling() -> bool:
    """Under torch.compile and not torch.export, which wants torch's own operators."""
    # The flag itself: asked by `is_exporting` while it compiles, torch 2.11 always says yes.
    return torch.compiler.is_compiling() and not torch.compiler._is_exporting_flag


def traced() -> bool:
    """Under torch.compile or a dispatch mode: fake tensors, make_fx, a counter of operations."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def transformed() -> bool:
    """Under torch.jit.trace, a torch.func transform, or forward-mode differentiation."""
    return recording() or mapped() or forward_ad._current_level >= 0


def watched() -> bool:
    """Under any of `traced` and `transformed`, or autocast of any device: asked at once, where a microsecond counts."""
    return (
        torch.compiler.is_compiling()
        or _dispatch_modes() > 0
        or _tracing()
        or _transforms_active()
        or forward_ad._current_level >= 0
        or _any_autocast()
    )


def mapped() -> bool:
    """Under a torch.func transform: vmap, grad, jvp and the others."""
    return torch._C._are_functorch_transforms_active()


def recording() -> bool:
    """Under torch.jit.trace."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined]


def any_batched(*tensors: Tensor) -> bool:
    """Whether a backward runs for several gradients at once, `is_grads_batched=True`: such tensors have no memory."""
    return any(torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors)


def is_plain_tensor(kind: type) -> bool:
    """Whether a class keeps its values as torch.Tensor does; another subclass may keep them elsewhere."""
    return kind is Tensor or kind is nn.Parameter
