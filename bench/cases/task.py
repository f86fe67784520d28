"""What every contender of a case is given: the same weights, input and gradients to propagate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from bench.cases.case import Case

Input = Tensor | PackedSequence


class Task:
    """A case with numbers in it. `layer` is torch.nn's, and the weights are its own; nobody may train them.

    x: [T, B, I], ids [T, B], or a PackedSequence. leaves: what of x takes a gradient. targets: ids [T, B].
    state: of the cell, each [B, H]. head: the linear layer of the language model. lengths: [B], where packed.
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        self.dtype: torch.dtype = getattr(torch, case.dtype)
        options = {"device": device, "dtype": self.dtype}
        width = case.H * (2 if case.bidirectional else 1)
        self.layer: nn.RNNBase = getattr(nn, case.cell)(
            case.I, case.H, num_layers=case.layers, bidirectional=case.bidirectional, **options
        )
        self.head = nn.Linear(width, case.I, **options)
        self.targets = torch.randint(case.I, (case.T, case.B), device=device)
        self.state = tuple(torch.randn(case.B, case.H, **options) for _ in range(2 if case.cell == "LSTM" else 1))
        self.leaves: list[Tensor] = []
        self.x: Input
        if case.ids:
            self.x = torch.randint(case.I, (case.T, case.B), device=device)
        else:
            dense = torch.randn(case.T, case.B, case.I, **options)
            packed = pack_padded_sequence(dense, self._lengths(), enforce_sorted=False) if case.packed else None
            self.leaves = [(dense if packed is None else packed.data).detach().requires_grad_()]
            self.x = self.leaves[0] if packed is None else packed._replace(data=self.leaves[0])
        rows = self.x.data.shape[:1] if isinstance(self.x, PackedSequence) else (case.T, case.B)
        self.d_out = torch.randn(*rows, width, **options)

    def _lengths(self) -> Tensor:
        """From 1 to T, evenly."""
        return torch.linspace(1, self.case.T, self.case.B).round().long()

    def weights(self) -> list[Tensor]:
        """A copy of the layer's parameters to train, in torch.nn's order."""
        return [p.detach().clone().requires_grad_() for p in self.layer.parameters()]

    def one_hot(self, x: Input) -> Input:
        """Ids as the vectors they mean, for a contender that takes no ids; anything else as it is."""
        if isinstance(x, PackedSequence) or x.is_floating_point():
            return x
        return F.one_hot(x, self.case.I).to(self.dtype)


@contextmanager
def matmul_precision(case: Case) -> Iterator[None]:
    """Float32 matmuls in TF32 or not, for every contender alike: cuDNN, cuBLAS and what follows their switches."""
    if not case.precision:
        yield
        return
    allowed, before = case.precision == "tf32", torch.backends.cuda.matmul.allow_tf32
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
