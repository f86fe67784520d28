"""What a cell multiplies its state with: a full matrix for each gate, one number a unit, or a block for each head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear


class RecurrentProduct(ABC):
    """`W_hh h + b_hh` for all gates, and its adjoint. G gates, H units; N any number of rows."""

    gate_dim: ClassVar[int] = 0  # along which W_hh's gates follow one another

    @abstractmethod
    def shape(self, G: int, H: int) -> tuple[int, ...]:
        """Of W_hh."""

    @abstractmethod
    def gates(self, w_hh: Tensor, G: int, first: int, last: int) -> Tensor:
        """W_hh of the gates from `first` to before `last`, as a view; G: how many gates w_hh has."""

    @abstractmethod
    def product(self, h: Tensor, w_hh: Tensor, b_hh: Tensor | None = None) -> Tensor:
        """[..., G*H] of h [..., H], differentiable."""

    def factor(self, w_hh: Tensor) -> Tensor:
        """W_hh as `add_product` takes it: what is the same at each step is done once."""
        return w_hh

    def flat(self, d_gates: Tensor) -> Tensor:
        """[T, B, G, H] as `add_adjoint` takes a step of it."""
        return d_gates

    @abstractmethod
    def add_product(self, base: Tensor | None, h: Tensor, factor: Tensor, out: Tensor) -> None:
        """out [B, G*H] = base + W_hh h, without autograd. base: [B, G*H] or [G*H], which may be `out`; None for 0."""

    @abstractmethod
    def add_adjoint(self, base: Tensor | None, d_gates: Tensor, w_hh: Tensor, out: Tensor) -> None:
        """out [B, H] = base + W_hh^T d_gates, without autograd. d_gates: a step of `flat`; base as above."""

    @abstractmethod
    def weight_gradient(self, d_gates: Tensor, h: Tensor) -> Tensor:
        """dW_hh of d_gates [N, G*H] and h [N, H]."""

    def check(self, w_hh: Tensor, G: int, H: int) -> None:
        """RuntimeError unless W_hh has the shape that belongs to so many gates and units."""
        if w_hh.shape != self.shape(G, H):
            raise RuntimeError(f"w_hh must be {list(self.shape(G, H))}, got {list(w_hh.shape)}")


class Dense(RecurrentProduct):
    """W_hh [G*H, H], the usual one."""

    def shape(self, G: int, H: int) -> tuple[int, ...]:
        return G * H, H

    def gates(self, w_hh: Tensor, G: int, first: int, last: int) -> Tensor:
        H = len(w_hh) // G
        return w_hh[first * H : last * H]

    def product(self, h: Tensor, w_hh: Tensor, b_hh: Tensor | None = None) -> Tensor:
        return linear(h, w_hh, b_hh)

    def factor(self, w_hh: Tensor) -> Tensor:
        return w_hh.t()

    def flat(self, d_gates: Tensor) -> Tensor:
        return d_gates.flatten(2)

    def add_product(self, base: Tensor | None, h: Tensor, factor: Tensor, out: Tensor) -> None:
        if base is None:
            torch.mm(h, factor, out=out)
        else:
            torch.addmm(base, h, factor, out=out)

    def add_adjoint(self, base: Tensor | None, d_gates: Tensor, w_hh: Tensor, out: Tensor) -> None:
        self.add_product(base, d_gates, w_hh, out)

    def weight_gradient(self, d_gates: Tensor, h: Tensor) -> Tensor:
        return d_gates.t() @ h


class Diagonal(RecurrentProduct):
    """W_hh [G*H]: each unit reads itself alone, as in IndRNN (Li et al. 2018, arXiv 1803.04831)."""

    def shape(self, G: int, H: int) -> tuple[int, ...]:
        return (G * H,)

    def gates(self, w_hh: Tensor, G: int, first: int, last: int) -> Tensor:
        H = len(w_hh) // G
        return w_hh[first * H : last * H]

    def product(self, h: Tensor, w_hh: Tensor, b_hh: Tensor | None = None) -> Tensor:
        H = h.shape[-1]
        each = (h.unsqueeze(-2) * w_hh.unflatten(0, (-1, H))).flatten(-2)
        return each if b_hh is None else each + b_hh

    def add_product(self, base: Tensor | None, h: Tensor, factor: Tensor, out: Tensor) -> None:
        H = h.shape[1]
        h, w, out = h.unsqueeze(1), factor.view(-1, H), out.unflatten(1, (-1, H))
        if base is None:
            torch.mul(h, w, out=out)
        else:
            torch.addcmul(base.unflatten(-1, (-1, H)), h, w, out=out)

    def add_adjoint(self, base: Tensor | None, d_gates: Tensor, w_hh: Tensor, out: Tensor) -> None:
        _write_sum(base, torch.einsum("bgh,gh->bh", d_gates, w_hh.view(d_gates.shape[1:])), out)

    def weight_gradient(self, d_gates: Tensor, h: Tensor) -> Tensor:
        N, H = h.shape
        return torch.einsum("ngh,nh->gh", d_gates.view(N, -1, H), h).flatten()


@dataclass(frozen=True)
class Heads(RecurrentProduct):
    """W_hh [heads, G*D, D]: the D = H / heads units of a head read each other alone, as in xLSTM (arXiv 2405.04517)."""

    heads: int
    gate_dim: ClassVar[int] = 1

    def shape(self, G: int, H: int) -> tuple[int, ...]:
        if H % self.heads:
            raise ValueError(f"hidden_size must be a multiple of {self.heads} heads, got {H}")
        return self.heads, G * (H // self.heads), H // self.heads

    def gates(self, w_hh: Tensor, G: int, first: int, last: int) -> Tensor:
        return w_hh.unflatten(1, (G, -1))[:, first:last].flatten(1, 2)

    def product(self, h: Tensor, w_hh: Tensor, b_hh: Tensor | None = None) -> Tensor:
        if self.heads == 1:
            return DENSE.product(h, w_hh[0], b_hh)
        each = torch.einsum("...kd,kged->...gke", self._split(h), self._by_gate(w_hh)).flatten(-3)
        return each if b_hh is None else each + b_hh

    def factor(self, w_hh: Tensor) -> Tensor:
        return DENSE.factor(w_hh[0]) if self.heads == 1 else w_hh

    def flat(self, d_gates: Tensor) -> Tensor:
        return DENSE.flat(d_gates) if self.heads == 1 else d_gates

    def add_product(self, base: Tensor | None, h: Tensor, factor: Tensor, out: Tensor) -> None:
        if self.heads == 1:
            DENSE.add_product(base, h, factor, out)
            return
        _write_sum(base, self.product(h, factor), out)

    def add_adjoint(self, base: Tensor | None, d_gates: Tensor, w_hh: Tensor, out: Tensor) -> None:
        if self.heads == 1:
            DENSE.add_adjoint(base, d_gates, w_hh[0], out)
            return
        own = torch.einsum("bgke,kged->bkd", self._split(d_gates), self._by_gate(w_hh)).flatten(1)
        _write_sum(base, own, out)

    def weight_gradient(self, d_gates: Tensor, h: Tensor) -> Tensor:
        heads, each = self._split(h).transpose(0, 1), self._split(d_gates.unflatten(1, (-1, h.shape[1])))
        # Gate by gate: einsum would copy all of d_gates first.
        return torch.cat([torch.bmm(gate.permute(1, 2, 0), heads) for gate in each.unbind(1)], 1)

    def _split(self, h: Tensor) -> Tensor:
        return h.unflatten(-1, (self.heads, -1))

    def _by_gate(self, w_hh: Tensor) -> Tensor:
        return w_hh.unflatten(1, (-1, w_hh.shape[2]))


def _write_sum(base: Tensor | None, product: Tensor, out: Tensor) -> None:
    if base is None:
        out.copy_(product)
    else:
        torch.add(base, product, out=out)


DENSE = Dense()
DIAGONAL = Diagonal()
