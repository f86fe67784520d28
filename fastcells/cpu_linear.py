"""`torch.nn.functional.linear` in float32 on a CPU: two products through oneDNN, the weights' gradient in C.

torch's own float32 matmul goes to MKL, which does not use AVX-512 on AMD's processors: half of their speed. oneDNN,
which torch carries too, does, but it copies both factors of a product along T * B. Measurements of all of them:
bench/results/matmul-cpu.csv.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells import cpu_ops, token_ids
from fastcells.kernels.plan import LARGE_PRODUCT
from fastcells.transforms import traced, transformed


def _onednn_works() -> bool:
    """Whether torch has the operator, and it does what its name says: it is not part of torch's public interface."""
    try:
        a, w, b = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3), torch.ones(4)
        return torch.equal(_onednn(a, w, b), F.linear(a, w, b)) and torch.equal(_onednn(a, w.t().t(), None), a @ w.t())
    except (AttributeError, RuntimeError, TypeError):
        return False


def _onednn(a: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    b = None if b is None else b.clone(memory_format=torch.contiguous_format)  # the operator ignores its strides
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, w, b, "none", [], "")
    return out


ONEDNN = torch.backends.mkldnn.is_available() and _onednn_works()


def matmul(a: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """`a @ w.t() + b` for a [M, K], w [N, K] and b [N], without autograd."""
    if ONEDNN and a.shape[0] * a.shape[1] * w.shape[0] >= LARGE_PRODUCT:
        return _onednn(a, w, b)
    return a @ w.t() if b is None else torch.addmm(b, a, w.t())


class Linear(torch.autograd.Function):
    """`F.linear` of [N, I], differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, w)
        return matmul(x, w, b)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        needs_x, needs_w, needs_b = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph=True
            return (
                d_out @ w if needs_x else None,
                d_out.t() @ x if needs_w else None,
                d_out.sum(0) if needs_b else None,
            )
        d_x = matmul(d_out, w.t()) if needs_x else None
        d_w, d_b = cpu_ops.weight_gradients(d_out, x) if needs_w else (None, d_out.sum(0))
        return d_x, d_w, d_b if needs_b else None


class Gather(torch.autograd.Function):
    """`F.linear(one_hot(ids), w, b)` for ids [N], differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.vocabulary = w.shape[1]
        return cpu_ops.gather(ids, w, b)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        (ids,) = ctx.saved_tensors
        _, needs_w, needs_b = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph=True
            d_w = d_out.new_zeros(ctx.vocabulary, d_out.shape[1]).index_add(0, ids.long(), d_out).t()
            return None, d_w if needs_w else None, d_out.sum(0) if needs_b else None
        if not needs_w:
            return None, None, d_out.sum(0) if needs_b else None
        d_w, d_b = cpu_ops.scatter(ids, d_out, ctx.vocabulary)
        return None, d_w, d_b if needs_b else None


def gather_rows(ids: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """`fastcells.token_ids.gather_rows` in C: ids of any shape, w [G, V], b [G]; [*ids.shape, G]."""
    if traced() or transformed():
        return token_ids.gather_rows(ids, w, b)
    flat: Tensor = Gather.apply(ids.reshape(-1), w, b)
    return flat.view(*ids.shape, len(w))


def linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """`F.linear(x, w, b)` for x [..., I], w [G, I] and b [G], float32 on a CPU."""
    if traced() or transformed():
        return F.linear(x, w, b)
    flat: Tensor = Linear.apply(x.reshape(-1, x.shape[-1]), w, b)
    return flat.view(*x.shape[:-1], len(w))
