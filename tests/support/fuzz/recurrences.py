"""Calls of a recurrence: forward and backward over time, one step of one sequence, and a whole layer."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from fastcells import functional
from fastcells.autograd import unroll
from fastcells.backends.base import Steps
from fastcells.backends.cpu import native
from fastcells.backends.cpu.step_in_place import StepInPlace
from fastcells.spec import RNN_RELU, CellSpec, RecurrentWeights
from tests.support.fuzz.call import CELLS, Arguments, Call, double, ids_of, size
from tests.support.fuzz.changes import FAULTS, resized


def lengths_of(T: int, B: int) -> Tensor:
    """Below 0 and above T, too."""
    return torch.randint(-1, T + 2, (B,)).to(random.choice([torch.int8, torch.int16, torch.int32, torch.int64]))


class Forward(Call):
    tied = {  # noqa: RUF012
        "x": (2,),
        "w": (0, 1),
        "b": (0,),
        "lengths": (0,),
        "resets": (0, 1),
        "h0": (0, 1),
        "c0": (0, 1),
    }
    optional = ("b", "lengths", "resets")

    def __init__(self, grad: bool = False) -> None:
        super().__init__()
        self.spec: CellSpec = random.choice(CELLS)
        T, B, H, G = size(5), size(9), size(34), self.spec.num_gates
        self.reverse, self.save = random.random() < 0.5, grad or random.random() < 0.5
        self.arguments = {
            "x": torch.randn(T, B, G * H),
            "w": torch.randn(G * H, H) * max(H, 1) ** -0.5,
            "b": torch.randn(G * H) if random.random() < 0.7 else None,
            "lengths": None if random.random() < 0.5 else lengths_of(T, B),
            "resets": None if random.random() < 0.5 else torch.rand(T, B) < 0.3,
            "h0": torch.randn(B, H),
        }
        if self.spec.num_states == 2:
            self.arguments["c0"] = torch.randn(B, H)
        if not grad and random.random() < 0.1 and T * B * H:
            self.arguments["x"].view(-1)[random.randrange(T * B * G * H)] = random.choice([float("nan"), float("inf")])
        if self.arguments["resets"] is not None and random.random() < 0.5:
            self.arguments["resets"] = self.arguments["resets"].unsqueeze(-1)

    def state(self, a: Arguments) -> tuple[Any, ...]:
        return (a["h0"], a["c0"])[: self.spec.num_states] if "c0" in a else (a["h0"],)

    def forward(self, a: Arguments) -> native.Forward:
        options = {"resets": a["resets"], "reverse": self.reverse, "save": self.save}
        return native.forward(self.spec.name, a["x"], self.state(a), a["w"], a["b"], a["lengths"], **options)

    def run(self, a: Arguments) -> dict[str, Tensor | None]:
        out = self.forward(a)
        return {"out": out.out, "hidden": out.hidden, "h_n": out.last[0], "c_n": out.last[-1]}

    def in_float64(self, a: Arguments) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Every state and the last one; the output of `unroll` is 0 past a row's length, ours holds the state."""
        if not len(a["x"]):
            return a["x"].new_zeros(0, *a["h0"].shape), self.state(a)
        resets = None if a["resets"] is None else a["resets"].bool().view(*a["x"].shape[:2])
        steps = Steps(self.reverse, a["lengths"], resets)
        out, last = unroll(self.spec, a["x"], self.state(a), RecurrentWeights(a["w"], a["b"]), steps)
        return out, last

    @staticmethod
    def mask(a: Arguments) -> Tensor | None:
        """bool [T, B, 1]"""
        return None if a["lengths"] is None else torch.arange(len(a["x"])).view(-1, 1, 1) < a["lengths"].view(1, -1, 1)

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        out, last = self.in_float64(a)
        held, h, mask = out.clone(), a["h0"], self.mask(a)
        for t in range(len(out))[:: -1 if self.reverse else 1]:
            if mask is not None:
                held[t] = torch.where(mask[t], out[t], h)
            h = held[t]
        return {"out": out, "hidden": held, "h_n": last[0]} | ({"c_n": last[1]} if len(last) == 2 else {})


class Backward(Forward):
    tied = {  # noqa: RUF012
        **Forward.tied,
        "d_hidden": (0, 1, 2),
        "d_h_n": (0, 1),
        "d_c_n": (0, 1),
        "hidden": (0, 1, 2),
        "cells": (0, 1, 2),
        "saved": (0, 1, 2, 3),
    }
    del tied["x"], tied["b"]  # the backward does not see them

    def __init__(self) -> None:
        super().__init__(grad=True)
        a = self.arguments
        self.x, self.b = a.pop("x"), a.pop("b")
        out = self.forward({**a, "x": self.x, "b": self.b})
        a |= {"hidden": out.hidden, "cells": out.cells, "saved": out.saved}
        a["d_hidden"], a["d_h_n"] = torch.randn_like(out.hidden), torch.randn_like(a["h0"])
        if self.spec.num_states == 2:
            a["d_c_n"] = torch.randn_like(a["h0"])
        self.given = dict(a)

    def spoil(self, wrong: bool) -> None:
        super().spoil(wrong)
        a = self.arguments
        # What the forward left behind belongs to its inputs: other values would be another derivative.
        for name in ("hidden", "cells", "saved", "w", "h0", "c0", "lengths", "resets"):
            t = a.get(name)
            if any(c.startswith((f"{name} zeros", f"{name} expanded", f"{name} flipped")) for c in self.changes) and (
                not any(c.startswith(f"{name} WRONG") for c in self.changes)
            ):
                a[name] = self.given[name]
            assert t is None or name in a

    def run(self, a: Arguments) -> dict[str, Tensor | None]:
        d_last = (a["d_h_n"], a["d_c_n"]) if "d_c_n" in a else (a["d_h_n"],)
        rest = (a["w"], a["lengths"], a["hidden"], a["cells"], a["saved"])
        options = {"resets": a["resets"], "reverse": self.reverse}
        out = native.backward(self.spec.name, a["d_hidden"], d_last, self.state(a), *rest, **options)
        d_b = torch.cat([piece.sum(0) for piece in out.columns()])
        return {"d_x": out.d_x, "d_b": d_b, "d_h0": out.d_state[0], "d_c0": out.d_state[-1]}

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        b = self.x.new_zeros(len(a["w"])) if self.b is None else self.b
        inputs = {"x": self.x.to(a["w"]), "b": b.to(a["w"]), "h0": a["h0"]} | ({"c0": a["c0"]} if "c0" in a else {})
        a = a | {n: t.requires_grad_() for n, t in inputs.items()}
        with torch.enable_grad():
            out, last = self.in_float64(a)
            d_last = [a["d_h_n"], *([a["d_c_n"]] if "d_c_n" in a else [])]
            wanted, values = [out, *last], [a["d_hidden"], *d_last]
            loss = sum((o * d).sum() for o, d in zip(wanted, values, strict=True))
            gradients = torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True)
        if self.spec is RNN_RELU and not torch.equal(out > 0, (self.given["hidden"] > 0) & (out != 0)):
            return {}  # a rounding across relu's kink changes the slope
        return dict(zip((f"d_{n}" for n in inputs), gradients, strict=True))


class Step(Call):
    """One step of one sequence; the state, which changes in place, is a copy."""

    tied = {"x": (0,), "w_ih": (0, 1), "w_hh": (0, 1), "b_ih": (0,), "b_hh": (0,), "h": (0,), "c": (0,)}  # noqa: RUF012
    optional = ("b_ih", "b_hh")

    def __init__(self) -> None:
        super().__init__()
        self.spec: CellSpec = random.choice(CELLS)
        H, I, G = size(34), size(20), self.spec.num_gates  # noqa: E741
        bias = random.random() < 0.7
        self.arguments = {
            "x": random.randrange(I) if I and random.random() < 0.5 else torch.randn(I),
            "w_ih": torch.randn(G * H, I),
            "w_hh": torch.randn(G * H, H) * max(H, 1) ** -0.5,
            "b_ih": torch.randn(G * H) if bias else None,
            "b_hh": torch.randn(G * H) if bias else None,
            "h": torch.randn(H),
        }
        if self.spec.num_states == 2:
            self.arguments["c"] = torch.randn(H)
        if isinstance(self.arguments["x"], int):  # then W_ih alone says how many there are
            self.tied = {**self.tied, "w_ih": (0,)}

    def spoil(self, wrong: bool) -> None:
        super().spoil(wrong)
        for name in ("h", "c"):  # in place: where the values lie is what a right call is about
            if not any(change.startswith(f"{name} WRONG") for change in self.changes) and name in self.arguments:
                self.arguments[name] = double(self.arguments[name]).float()

    def run(self, a: Arguments) -> dict[str, Tensor | None]:
        state = tuple(s.clone() if isinstance(s, Tensor) else s for s in (a["h"], a.get("c"))[: self.spec.num_states])
        StepInPlace(self.spec.name, state, (a["w_ih"], a["w_hh"], a["b_ih"], a["b_hh"]))(a["x"])
        return {"h": state[0], "c": state[-1]}

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        x = a["w_ih"][:, a["x"]] if isinstance(a["x"], int) else a["w_ih"] @ a["x"]
        x = x if a["b_ih"] is None else x + a["b_ih"]
        state = tuple(a[name][None] for name in ("h", "c")[: self.spec.num_states])
        new = self.spec.step(x[None], state, RecurrentWeights(a["w_hh"], a["b_hh"]))
        return {name: s[0] for name, s in zip(("h", "c"), new, strict=False)}


class Functional(Call):
    """A layer as users call it, with its gradients."""

    tied = {  # noqa: RUF012
        "x": (2,),
        "h0": (0, 1),
        "c0": (0, 1),
        "w_ih": (0, 1),
        "w_hh": (0, 1),
        "b_ih": (0,),
        "b_hh": (0,),
    }
    without = ("inference",)  # autograd refuses them
    FAULTS = ("float64", "bfloat16", "complex64", "meta", "two dimensions more")

    def __init__(self) -> None:
        super().__init__()
        self.form = random.choice(["rnn", "gru", "lstm"])
        gates = {"rnn": 1, "gru": 3, "lstm": 4}[self.form]
        self.options = {"gru": {"reset_after": random.random() < 0.5}}.get(self.form, {})
        T, B, H, I = random.randint(1, 5), size(9), random.randint(1, 34), random.randint(1, 9)  # noqa: E741
        x = ids_of(T * B, I).view(T, B) if random.random() < 0.4 else torch.randn(T, B, I)
        sizes = {"h0": (B, H), "c0": (B, H), "w_ih": (gates * H, I), "w_hh": (gates * H, H)}
        sizes |= {"b_ih": (gates * H,), "b_hh": (gates * H,)}
        self.arguments = {"x": x} | {n: torch.randn(s) * H**-0.5 for n, s in sizes.items()}
        if self.form != "lstm":
            del self.arguments["c0"]
        if random.random() < 0.5:
            self.options["lengths"] = torch.randint(-1, T + 2, (B,))
        self.options["reverse"] = random.random() < 0.5

    def spoil(self, wrong: bool) -> None:
        super().spoil(False)
        if not wrong:
            return
        a, dense = self.arguments, self.arguments["x"].dim() == 3
        names = [n for n in a if n != "x" or dense]
        name = random.choice(names)
        dim = random.choice(self.tied[name])
        kind = random.choice([*self.FAULTS, "size"])
        plain = double(a[name]).to(a[name].dtype)
        a[name] = resized(plain, dim) if kind == "size" else FAULTS[kind](plain)
        if name == "w_ih" and not dense and kind == "size":  # its width is free where there are ids
            a[name] = resized(plain, 0)
        self.changes.append(f"{name} WRONG: {kind}")

    def run(self, a: Arguments, impl: str = "cpu") -> dict[str, Tensor | None]:
        # As fresh leaves, which keep strides, the negative bit and the address.
        leaves = {n: t.detach().requires_grad_() for n, t in a.items() if t.is_floating_point()}
        outputs = getattr(functional, self.form)(**(a | leaves), **self.options, impl=impl)
        torch.manual_seed(0)
        d_outputs = [torch.randn(o.shape).bfloat16().to(o.dtype) for o in outputs]  # the same in any of them
        gradients = torch.autograd.grad(outputs, list(leaves.values()), d_outputs, materialize_grads=True)
        return dict(enumerate(outputs)) | dict(zip(leaves, gradients, strict=True))  # type: ignore[arg-type]

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        x = a["x"] if self.arguments["x"].is_floating_point() else self.arguments["x"]
        out = self.run(a | {"x": x}, impl="torch")
        return {n: t.detach() for n, t in out.items() if t is not None}
