"""Linear layers and the rows that token ids name on a CPU: in C where the product is large.

torch's own float32 matmul goes to MKL, which does not use AVX-512 on AMD's processors: half of their speed. oneDNN,
which torch carries too, does, but its operator is wrong where OpenMP gives fewer threads than torch asked for
(OMP_THREAD_LIMIT, OMP_DYNAMIC), and keeps memory for every shape that it has seen. Measurements of all of them:
bench/results/matmul-cpu.csv. bfloat16, which torch gives to oneDNN, runs in C where the processor multiplies it: the
bias, and the gradient of it, come with the product, and the gradient of W needs no copy of the states.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells import token_ids
from fastcells.backends.cpu import buffers, native, policy
from fastcells.backends.cpu.instructions import BF16_INSTRUCTIONS
from fastcells.backends.cpu.policy import AMX_TERMS, LARGE_PRODUCT, MANY_ROWS
from fastcells.modes import any_batched, autocast_dtype, is_plain_tensor, traced, transformed


def serves(t: Tensor) -> bool:
    """Whether C may read a tensor, and nobody looks through torch's operators."""
    return (
        t.device.type == "cpu"
        and t.dtype == torch.float32
        and is_plain_tensor(type(t))
        and autocast_dtype(t) is None
        and native.obstacle() is None
        and not (traced() or transformed())
    )


def multiplies(dtype: torch.dtype) -> bool:
    """Whether C has the products of a dtype on this machine."""
    if dtype == torch.bfloat16:
        return native.bf16_obstacle() is None
    return dtype == torch.float32 and native.obstacle() is None


def weights_in_c(d: Tensor, x: Tensor) -> bool:
    """Whether C computes `d.t() @ x` for d [N, rows] and x, whose last dimension are the columns."""
    small = len(d) >= policy.BF16_ROWS_FROM and x.shape[-1] <= policy.BF16_WEIGHT_COLUMNS
    return multiplies(d.dtype) and (d.dtype == torch.float32 or small)


def matmul(a: Tensor, w: Tensor, b: Tensor | None = None, *, inner: bool = False) -> Tensor:
    """`a @ w.t() + b` for a [N, K], w [M, K] and b [M], without autograd. inner: no user gets to see the result."""
    (N, K), M = a.shape, len(w)
    out = buffers.empty(N, M, dtype=w.dtype) if inner else None
    amx = w.dtype == torch.bfloat16 and bool(BF16_INSTRUCTIONS.get("amx_bf16"))  # what oneDNN has is as fast as C's
    if amx or not multiplies(w.dtype) or not _pays(N, K, M, w.dtype):
        a = _by_whole_tiles(a) if amx and K % AMX_TERMS else a
        return torch.mm(a, w.t(), out=out) if b is None else torch.addmm(b, a, w.t(), out=out)
    if w.stride(0) == 1 and not w.is_contiguous():  # the gradient of an input multiplies by W^T
        return native.linear(a, w.t(), b, transposed=True)
    return native.linear(a, w, b, out=out)


def _pays(N: int, K: int, M: int, dtype: torch.dtype) -> bool:
    """Whether a product runs in C, for which there are instructions."""
    large = N >= MANY_ROWS and N * K * M >= LARGE_PRODUCT
    if dtype == torch.bfloat16:
        return large and N >= policy.BF16_ROWS_FROM and K >= policy.BF16_TERMS_FROM
    return large


def _by_whole_tiles(a: Tensor) -> Tensor:
    """The same numbers, with zeros between a row's end and the next row's beginning.

    What oneDNN's products of bfloat16 with AMX read there, and multiply by 0, in torch 2.13: a NaN or infinity at the
    beginning of a row made the row before it NaN.
    """
    N, K = a.shape
    rows = buffers.empty(N, -(-K // AMX_TERMS) * AMX_TERMS, dtype=a.dtype)
    rows[:, K:].zero_()
    rows[:, :K] = a
    return rows[:, :K]


class Linear(torch.autograd.Function):
    """`F.linear` of [..., I], differentiable any number of times. inner: as in `matmul`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, inner: bool) -> Tensor:
        ctx.save_for_backward(x, w)
        return _shaped(matmul(_flat(x), w, b, inner=inner), x.shape)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        needs_x, needs_w, needs_b, _ = ctx.needs_input_grad
        d, flat = _flat(d_out), _flat(x)
        if torch.is_grad_enabled() or any_batched(d_out):  # create_graph=True, is_grads_batched=True
            return (
                d_out @ w if needs_x else None,
                d.t() @ flat if needs_w else None,
                d.sum(0) if needs_b else None,
                None,
            )
        d_x = _shaped(matmul(d, w.t()), x.shape) if needs_x else None
        d_w: Tensor | None
        d_b: Tensor | None
        if needs_w and weights_in_c(d, flat):
            d_w, d_b = native.weight_gradients(d, flat)
        else:
            d_w, d_b = d.t() @ flat if needs_w else None, d.sum(0) if needs_b else None
        return d_x, d_w, d_b if needs_b else None, None


def _flat(t: Tensor) -> Tensor:
    return t.reshape(-1, t.shape[-1])


def _shaped(rows: Tensor, shape: torch.Size) -> Tensor:
    """Rows in the leading dimensions of a shape: no view, since what a user gets has to be a tensor of its own."""
    out: Tensor = torch.ops.aten._unsafe_view.default(rows, [*shape[:-1], rows.shape[1]])
    return out


class Gather(torch.autograd.Function):
    """`F.linear(one_hot(ids), w, b)` for ids [N], differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.vocabulary = w.shape[1]
        return native.gather(ids, w, b)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        (ids,) = ctx.saved_tensors
        _, needs_w, needs_b = ctx.needs_input_grad
        if torch.is_grad_enabled() or any_batched(d_out):  # create_graph=True, is_grads_batched=True
            d_w = d_out.new_zeros(ctx.vocabulary, d_out.shape[1]).index_add(0, ids.long(), d_out).t().contiguous()
            return None, d_w if needs_w else None, d_out.sum(0) if needs_b else None
        if not needs_w:
            return None, None, d_out.sum(0) if needs_b else None
        d_w, d_b = native.scatter(ids, d_out, ctx.vocabulary)
        return None, d_w, d_b if needs_b else None


def gather_rows(ids: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """`fastcells.token_ids.gather_rows` in C: ids of any shape, w [G, V], b [G]; [*ids.shape, G]."""
    if traced() or transformed():
        return token_ids.gather_rows(ids, w, b)
    flat: Tensor = Gather.apply(ids.reshape(-1), w, b)
    return flat.view(*ids.shape, len(w))


def linear(x: Tensor, w: Tensor, b: Tensor | None, *, inner: bool = False) -> Tensor:
    """`F.linear(x, w, b)` for x [..., I], w [G, I] and b [G] on a CPU, all of one dtype that C multiplies.

    inner: as in `matmul`.
    """
    if traced() or transformed():
        return F.linear(x, w, b)
    out: Tensor = Linear.apply(x, w, b, inner)
    return out
