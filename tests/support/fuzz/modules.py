"""Layers in inference: one call of C for each layer and direction, with packed weights or not."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import fastcells
from tests.support.fuzz.call import Arguments, Call, double
from tests.support.fuzz.changes import FAULTS, resized

FORMS = {"RNN": 1, "GRU": 3, "LSTM": 4}


class Layer(Call):
    """With weights that lie anywhere; a packed layer is called twice, and has them packed then."""

    FAULTS = ("float64", "bfloat16", "complex64", "meta", "two dimensions more")

    def __init__(self) -> None:
        super().__init__()
        self.form, T, B = random.choice(list(FORMS)), random.randint(1, 6), random.randint(1, 12)
        I, H = random.randint(1, 40), random.randint(1, 40)  # noqa: E741
        options: dict[str, Any] = {name: random.random() < 0.5 for name in ("bias", "batch_first", "bidirectional")}
        options["num_layers"] = random.choice([1, 1, 2])
        if self.form == "RNN":
            options["nonlinearity"] = random.choice(["tanh", "relu"])
        self.layer = getattr(fastcells, self.form)(I, H, impl="cpu", **options)
        self.twin = getattr(nn, self.form)(I, H, **options)
        self.packed = random.random() < 0.4
        rows = self.layer.num_layers * (1 + self.layer.bidirectional)
        self.arguments = {"x": torch.randn((B, T, I) if options["batch_first"] else (T, B, I))}
        if random.random() < 0.6:
            self.arguments |= {name: torch.randn(rows, B, H) for name in ("h0", "c0")[: 1 + (self.form == "LSTM")]}
        self.arguments |= {name: torch.randn_like(w) * H**-0.5 for name, w in self.layer.named_parameters()}
        self.tied = {name: tuple(range(value.dim())) for name, value in self.arguments.items()}
        self.tied["x"] = (2,) if "h0" not in self.arguments else (1 - options["batch_first"], 2)

    def spoil(self, wrong: bool) -> None:
        super().spoil(False)
        if not wrong:
            return
        name = random.choice([n for n in self.arguments if n != "x"] if random.random() < 0.7 else ["x"])
        kind = random.choice([*self.FAULTS, "size"])
        plain = double(self.arguments[name]).to(self.arguments[name].dtype)
        self.arguments[name] = resized(plain, random.choice(self.tied[name])) if kind == "size" else FAULTS[kind](plain)
        self.changes.append(f"{name} WRONG: {kind}")

    def run(self, a: Arguments) -> dict[str, Tensor | None]:
        return self.called(self.layer.pack() if self.packed else self.layer, a)

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        return {n: t for n, t in self.called(copy.deepcopy(self.twin).double(), a).items() if t is not None}

    def called(self, layer: nn.Module, a: Arguments) -> dict[str, Tensor | None]:
        x, *state = (a[name] for name in ("x", "h0", "c0") if name in a)
        hx = None if not state else state[0] if len(state) == 1 else tuple(state)
        weights = {name: value for name, value in a.items() if name not in ("x", "h0", "c0")}
        with torch.no_grad():
            if self.packed:
                functional_call(layer, weights, (x, hx))
            out, last = functional_call(layer, weights, (x, hx))
        return {"out": out} | dict(zip(("h", "c"), last if isinstance(last, tuple) else (last,), strict=False))
