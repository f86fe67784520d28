"""What is done to a right argument: the same values in another place, or something that no right call has."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor


class Subclass(Tensor):
    """Of no use: behaves as a tensor."""


# ---- the same values in another place, or other values that are as good ----


def misaligned(t: Tensor) -> Tensor:
    size = t.element_size()
    memory = bytearray(t.numel() * size + size)
    return (
        torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=random.randrange(1, size)).view_as(t).copy_(t)
    )


def every_second(t: Tensor) -> Tensor:
    return torch.stack([t, t], -1)[..., 0]


def turned(t: Tensor) -> Tensor:
    return t.movedim(0, -1).contiguous().movedim(-1, 0)


def frozen(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


DISGUISES: dict[str, Callable[[Tensor], Tensor]] = {
    "misaligned": misaligned,
    "strided": every_second,
    "turned": turned,
    "negative": lambda t: torch._neg_view(-t),
    "imaginary": lambda t: torch.complex(t, -t).conj().imag,
    "flipped": lambda t: t.flip(0),
    "expanded": lambda t: t[:1].expand_as(t),
    "offset": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view_as(t),
    "zeros": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "parameter": lambda t: nn.Parameter(t.clone()),
    "non-leaf": lambda t: t.clone().requires_grad_() * 1,
    "subclass": lambda t: t.as_subclass(Subclass),
    "inference": frozen,
}
FLOAT_DISGUISES = {"negative", "imaginary", "parameter", "non-leaf"}


def disguised(t: Tensor, without: tuple[str, ...]) -> tuple[str, Tensor]:
    names = [n for n in DISGUISES if n not in without and (t.dtype.is_floating_point or n not in FLOAT_DISGUISES)]
    if t.numel() == 0 or t.dtype.itemsize == 1:
        names.remove("misaligned")
    name = random.choice(names)
    return name, DISGUISES[name](t)


# ---- what does not fit ----


def resized(t: Tensor, dim: int) -> Tensor:
    """One more or one less along a dimension."""
    shape = list(t.shape)
    shape[dim] += random.choice([-1, 1]) if shape[dim] else 1
    return t.new_zeros(shape)


def fake(t: Tensor) -> Tensor:
    return FakeTensorMode().from_tensor(t)


FAULTS: dict[str, Callable[[Tensor], Any]] = {
    "float64": lambda t: t.double(),
    "float32": lambda t: t.float(),
    "bfloat16": lambda t: t.bfloat16(),
    "complex64": lambda t: t.to(torch.complex64),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "two dimensions more": lambda t: t[None, None],
    "number": lambda t: 3.0,
    "list": lambda t: t.tolist(),
    "array": lambda t: t.detach().numpy(),
    "text": lambda t: "tensor",
}
NO_MEMORY: dict[str, Callable[[Tensor], Any]] = {  # harmless where there is nothing to read
    "fake": fake,
    "wrapper": lambda t: TwoTensor(t, t.clone()),
    "functional": lambda t: torch._to_functional_tensor(t),
    "oneDNN": lambda t: t.to_mkldnn(),
}


def broken(t: Tensor, dims: tuple[int, ...], optional: bool) -> tuple[str, Any]:
    """t, so that no right call has it. dims: along which its size is not free."""
    own = str(t.dtype).removeprefix("torch.")
    faults = {name: f for name, f in FAULTS.items() if name != own}
    if t.dtype == torch.bfloat16:
        del faults["array"]  # numpy does not have it
    if t.numel():
        # Ids of another dtype are converted, which reads a functional tensor; oneDNN has float32 alone.
        faults |= {n: f for n, f in NO_MEMORY.items() if n in ("fake", "wrapper") or t.dtype == torch.float32}
    if not optional:
        faults["None"] = lambda t: None
    for dim in dims:
        faults[f"size {dim}"] = lambda t, dim=dim: resized(t, dim)
    name = random.choice(list(faults))
    return name, faults[name](t)
