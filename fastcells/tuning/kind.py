"""A kind of call: what a verdict is for. Calls of one kind run the same implementation."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastcells.backends.base import Call
from fastcells.backends.triton.backend import matmul_precision


class Kind(NamedTuple):
    """Sizes but H are buckets: the smallest power of 2 that is not below."""

    cell: str  # `CellSpec.key`
    dtype: str  # that the recurrence computes in, without "torch."
    precision: str  # of its matmuls in float32: `matmul_precision`
    hidden: int  # columns of W_hh: H, or of a projected LSTM P
    rows: int  # of W_hh, G*H
    inputs: int  # I, or the number of tokens
    T: int
    B: int
    token_ids: bool
    training: bool  # whether a backward follows
    directions: int
    options: str  # `Call.options`, in the order of the alphabet

    def __str__(self) -> str:
        """As it stands in the memory: "gru bfloat16 dense training H=256 I<=256 T<=64 B<=32"."""
        return f"{self.but_for_time_and_batch} T<={self.T} B<={self.B}"

    @property
    def but_for_time_and_batch(self) -> str:
        """What `str` begins with."""
        precision = "" if self.precision == "ieee" else f" {self.precision}"
        words = f"{'ids' if self.token_ids else 'dense'} {'training' if self.training else 'inference'}"
        both = " both directions" if self.directions == 2 else ""
        options = f" {self.options}" if self.options else ""
        size = f"H={self.hidden}" if "proj_size" not in self.options else f"P={self.hidden} rows={self.rows}"
        return f"{self.cell} {self.dtype}{precision} {words}{both}{options} {size} I<={self.inputs}"


def kind_of(call: Call) -> Kind:
    """The kind of a call as things stand: grad mode, autocast and torch's switches for matmuls are asked."""
    w = call.w_hh
    dtype = call.dtype
    rows, hidden = call.w_ih.shape[0], w.shape[-1]
    return Kind(
        call.spec.key,
        str(dtype).removeprefix("torch."),
        matmul_precision(dtype, w.device),
        hidden,
        rows,
        bucket(call.w_ih.shape[1]),
        bucket(call.T),
        bucket(call.B),
        call.token_ids,
        w.requires_grad and torch.is_grad_enabled(),
        call.directions,
        " ".join(sorted(call.options)),
    )


def bucket(n: int) -> int:
    """The smallest power of 2 that is not below n."""
    return 1 << (n - 1).bit_length()


def in_bucket(n: int, size: int) -> bool:
    """Whether `bucket(n) == size`, in comparisons: of these torch.compile makes guards, where n may be any number."""
    return size < 2 * n and n <= size
