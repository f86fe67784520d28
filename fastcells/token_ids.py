"""Integer input: `ids` stands for `one_hot(ids, input_size)`, which is never built.

The product of a one-hot vector with W_ih^T is a row of W_ih^T, so the input projection is a row gather, and its
backward a scatter-add into the gradient of W_ih.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def is_token_ids(x: Tensor) -> bool:
    """Whether a layer takes `x` as token ids: any integer dtype, but not bool."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def gather_rows(ids: Tensor, w_ih: Tensor, b_ih: Tensor | None, valid: Tensor | None = None) -> Tensor:
    """`F.linear(F.one_hot(ids, I).to(w_ih), w_ih, b_ih)` without the one-hot.

    ids: any shape and integer dtype. w_ih: [G*H, I]. b_ih: [G*H]. valid: bool like ids, false where an id does not
    count (the padding of a ragged batch). Returns [*ids.shape, G*H] in w_ih's dtype.

    An id outside `[0, I)` raises IndexError on the CPU, as torch.nn.Embedding does. On another device the check
    would make the host wait, so there such an id acts as an all-zero input; it is never read out of bounds.
    """
    size = w_ih.shape[1]
    ids = ids.long()
    if ids.device.type == "cpu":
        if valid is not None:
            ids = torch.where(valid, ids, 0)
        _check_range(ids, size)
        rows = F.embedding(ids, w_ih.t().contiguous())
    else:
        known = (ids >= 0) & (ids < size)
        rows = F.embedding(torch.where(known, ids, 0), w_ih.t().contiguous()) * known.unsqueeze(-1)
    return rows if b_ih is None else rows + b_ih


def _check_range(ids: Tensor, size: int) -> None:
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return  # a value cannot be looked at here; F.embedding checks while it runs
    wrong = (ids < 0) | (ids >= size)
    if wrong.any():
        position = wrong.nonzero()[0].tolist()
        raise IndexError(
            f"token id {int(ids[tuple(position)])} at position {position} of ids of shape {list(ids.shape)} "
            f"is outside [0, {size}), input_size being {size}"
        )
