"""Step functions of cells that several tests derive rules from, among them the five built-in ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells.defined.definition import derive
from fastcells.defined.rule import Rule


def gru(r: Tensor, z: Tensor, x_n: Tensor, h_n: Tensor, h: Tensor) -> Tensor:
    r, z = torch.sigmoid(r), torch.sigmoid(z)
    n = torch.tanh(x_n + r * h_n)
    return n + z * (h - n)


def gru_reset_before(z: Tensor, n: Tensor, h: Tensor) -> Tensor:
    z, n = torch.sigmoid(z), torch.tanh(n)
    return n + z * (h - n)


def lstm(i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return o * torch.tanh(c), c


def nine_gates(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor, g: Tensor, x_k: Tensor, h_k: Tensor, i: Tensor
) -> Tensor:
    """More than a tile of the C kernels multiplies at once."""
    return torch.tanh(a * b + c) * torch.sigmoid(d - e) + torch.tanh(f + g * x_k) * torch.sigmoid(h_k * i)


def six_gates(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, h: Tensor) -> Tensor:
    """Five of them ahead of the second product."""
    return torch.tanh(a * b + e) * torch.sigmoid(c) + torch.tanh(d) * h


def peephole(i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    i, f = torch.sigmoid(i + p * c), torch.sigmoid(f + q * c)
    c = f * c + i * torch.tanh(g)
    return torch.sigmoid(o + p * c) * torch.tanh(c), c


def four_states(
    a: Tensor, x_b: Tensor, h_b: Tensor, h: Tensor, c: Tensor, m: Tensor, k: Tensor, p: Tensor, q: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two parameters, one of them also in a function of its own, and gates whose halves are apart."""
    c = torch.sigmoid(a + p * c) * c + torch.tanh(h_b) * m
    m = torch.tanh(x_b * torch.sigmoid(h_b) - q * h)
    return torch.tanh(c + k * m), c, m, torch.tanh(p) * k


def everything(a: Tensor, b: Tensor, h: Tensor, s: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Each operator, none of which is near a point where it has no derivative too often."""
    a = torch.exp(torch.clamp(a, -2, 2)) / (1 + b**2) - torch.log1p(abs(h)) + F.softplus(b) * torch.relu(s)
    b = torch.sqrt(b * b + 0.5) + torch.log(a.square() + 1) - torch.reciprocal(2 + torch.sigmoid(h))
    return torch.where(a > b, torch.minimum(a, b) * p, torch.maximum(s, h)), torch.tanh(b) ** -1 + F.logsigmoid(a)


def every_operator(a: Tensor, b: Tensor, h: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Each operator of a kernel, in states that neither vanish nor grow: without extra parameters."""
    a = torch.exp(torch.clamp(a, -2, 2)) / (1 + b**2) - torch.log1p(abs(h)) + F.softplus(b) * torch.relu(s)
    b = torch.sqrt(b * b + 0.5) + torch.log(a.square() + 1) - torch.reciprocal(2 + torch.sigmoid(h))
    chosen = torch.where((a > b) & ~(a <= -1) | (b != s), torch.minimum(a, b), torch.maximum(s, h))
    return torch.tanh(chosen), torch.where((a >= h) | (h < s) & (a == a), b / (1 + b * b), -s)


RULES: dict[str, tuple[Any, ...]] = {
    "gru": ("rzn", "h", "", gru),
    "gru_reset_before": ("rzn", "h", "", gru_reset_before, {"n": lambda r, h: torch.sigmoid(r) * h}),
    "operand of parts": (
        "rn",
        "h",
        "",
        lambda x_r, h_r, n, h: torch.tanh(n) * torch.sigmoid(x_r) + h_r * h,
        {"n": lambda x_r, h_r, h: torch.sigmoid(x_r - h_r) * h},
    ),
    "operand and parts": (
        "rn",
        "h",
        "",
        lambda r, x_n, h_n, h: torch.tanh(x_n) * torch.sigmoid(h_n) + torch.tanh(r) * h,
        {"n": lambda r, h: torch.sigmoid(r) * h},
    ),
    "lstm": ("ifgo", "hc", "", lstm),
    "rnn_tanh": ("a", "h", "", lambda a: torch.tanh(a)),
    "rnn_relu": ("a", "h", "", lambda a: torch.relu(a)),
    "peephole": ("ifgo", "hc", "pq", peephole),
    "everything": ("ab", "hs", "p", everything),
    "alike": ("ab", "h", "", lambda a, b: torch.tanh(a + b)),  # both gates have one factor
    "four states": ("ab", "hcmk", "pq", four_states),
}


def rule(name: str) -> Rule:
    return derive(name, *RULES[name])
