"""Integer input: `ids` stands for `one_hot(ids, input_size)`, which is never built.

The product of a one-hot vector with W_ih^T is a row of W_ih^T, so the input projection is a row gather, and its
backward a scatter-add into the gradient of W_ih.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells.modes import traced, transformed

ID_DTYPES = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


def is_token_ids(x: Tensor) -> bool:
    """Whether a layer takes `x` as token ids: any integer dtype, but not bool."""
    return x.dtype in ID_DTYPES


def check_range(ids: Tensor, input_size: int) -> None:
    """Raise IndexError, as torch.nn.Embedding does, for an id outside `[0, input_size)`.

    Only on the CPU: elsewhere the check would make the host wait for the device. Under a transform that hides the
    values, torch.nn.functional.embedding checks when it runs.
    """
    if ids.device.type != "cpu" or ids.numel() == 0:
        return
    if traced() or transformed():
        return
    low, high = ids.aminmax()
    if low < 0 or high >= input_size:
        position = ((ids < 0) | (ids >= input_size)).nonzero()[0].tolist()
        raise IndexError(
            f"token id {int(ids[tuple(position)])} at position {position} of ids of shape {list(ids.shape)} "
            f"is outside [0, {input_size}), input_size being {input_size}"
        )


class _Transposed(torch.autograd.Function):
    """`w.t().contiguous()`, whose gradient is contiguous too: `grad.view(-1)` is everyday code."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor) -> Tensor:
        return w.t().contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        return transposed(d)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return transposed(tangent)


def transposed(w: Tensor) -> Tensor:
    """W^T as a copy, differentiable any number of times."""
    if torch.compiler.is_compiling():  # Dynamo knows no Function with a jvp
        return w.t().contiguous()
    out: Tensor = _Transposed.apply(w)
    return out


def gather_rows(ids: Tensor, w_ih: Tensor, b_ih: Tensor | None) -> Tensor:
    """`F.linear(F.one_hot(ids, I).to(w_ih), w_ih, b_ih)` without the one-hot.

    ids: any shape and integer dtype. w_ih: [G*H, I]. b_ih: [G*H]. Returns [*ids.shape, G*H] in w_ih's dtype.

    `check_range` comes first on the CPU. On another device an id outside `[0, I)` acts as an all-zero input; it is
    never read out of bounds.
    """
    if b_ih is not None and b_ih.dtype != w_ih.dtype:  # where x were dense, the matmul would say so
        raise RuntimeError(f"expected w_ih and b_ih to have the same dtype, got {w_ih.dtype} and {b_ih.dtype}")
    ids = ids.long()
    if ids.device.type == "cpu":
        if not torch.compiler.is_compiling() and 2 * ids.numel() <= w_ih.shape[1]:  # few are gathered where they lie
            rows = w_ih.index_select(1, ids.reshape(-1)).t().contiguous().view(*ids.shape, len(w_ih))
        else:
            rows = F.embedding(ids, transposed(w_ih))
    else:
        known = (ids >= 0) & (ids < w_ih.shape[1])
        rows = F.embedding(torch.where(known, ids, 0), transposed(w_ih)) * known.unsqueeze(-1)
    return rows if b_ih is None else rows + b_ih


def one_hot(ids: Tensor, input_size: int, like: Tensor) -> Tensor:
    """`F.one_hot(ids, input_size).to(like.dtype)`: [*ids.shape, input_size], of like's dtype and device.

    Raises:
        IndexError: as `check_range`, without a look at the ids beforehand. On another device than the CPU an id outside
        `[0, input_size)` is an all-zero row, as `gather_rows` has it: an error there would end the process's CUDA.
    """
    if ids.device.type != "cpu":
        return (ids.unsqueeze(-1) == torch.arange(input_size, device=ids.device)).to(like.dtype)
    zeros = like.new_zeros(*ids.shape, input_size)
    try:
        return zeros.scatter_(-1, ids.long().unsqueeze(-1), 1)
    except RuntimeError:
        check_range(ids, input_size)
        raise
