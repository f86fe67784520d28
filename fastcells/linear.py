"""A linear layer that runs as the recurrent layers' products do."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fastcells.backends.cpu import products
from fastcells.backends.cpu.policy import LARGE_PRODUCT


def linear(x: Tensor, w: Tensor, b: Tensor | None = None, *, impl: str = "auto") -> Tensor:
    """`torch.nn.functional.linear(x, w, b)`, in C where that is faster: float32 on a CPU, a large product.

    x: [..., I]. w: [O, I]. b: [O] or None. impl: that of the recurrent layer beside it; only "auto" and "cpu" use C.
    Differentiable any number of times.
    """
    return products.linear(x, w, b) if uses_cpu_kernel(impl, x, w) else F.linear(x, w, b)


def uses_cpu_kernel(impl: str, x: Tensor, w: Tensor) -> bool:
    """Whether `linear` runs in C."""
    large = x.numel() * len(w) >= LARGE_PRODUCT
    return impl in ("auto", "cpu") and large and products.serves(x) and products.serves(w)
