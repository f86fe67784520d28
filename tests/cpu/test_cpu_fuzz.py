"""The boundary between Python and C under random calls, right ones and wrong ones mixed.

C believes what it is told, so `backends.cpu.native` has to turn away whatever does not fit, and to bring into memory
what fits but lies elsewhere. A right call gives the right numbers, a wrong one an exception, and none may end the
process: the calls run in one of their own. `python -m tests.cpu.test_cpu_fuzz N` repeats call N.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from fastcells import functional
from fastcells.autograd import unroll
from fastcells.backends.base import Steps
from fastcells.backends.cpu import native, products
from fastcells.spec import GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM, RNN_RELU, RNN_TANH, CellSpec, RecurrentWeights
from tests.support.accuracy import ROUNDINGS

CALLS = 10_000
CELLS = (RNN_TANH, RNN_RELU, GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM)
EXPECTED = (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError)
Arguments = dict[str, Any]


class Subclass(Tensor):
    """Of no use: behaves as a tensor."""


class Wrong(Exception):
    """What a call did is not what it has to do."""


# ---- the same values in another place, or other values that are as good ----


def misaligned(t: Tensor) -> Tensor:
    size = t.element_size()
    memory = bytearray(t.numel() * size + size)
    return (
        torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=random.randrange(1, size)).view_as(t).copy_(t)
    )


def every_second(t: Tensor) -> Tensor:
    return torch.stack([t, t], -1)[..., 0]


def turned(t: Tensor) -> Tensor:
    return t.movedim(0, -1).contiguous().movedim(-1, 0)


def frozen(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


DISGUISES: dict[str, Callable[[Tensor], Tensor]] = {
    "misaligned": misaligned,
    "strided": every_second,
    "turned": turned,
    "negative": lambda t: torch._neg_view(-t),
    "imaginary": lambda t: torch.complex(t, -t).conj().imag,
    "flipped": lambda t: t.flip(0),
    "expanded": lambda t: t[:1].expand_as(t),
    "offset": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view_as(t),
    "zeros": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "parameter": lambda t: nn.Parameter(t.clone()),
    "non-leaf": lambda t: t.clone().requires_grad_() * 1,
    "subclass": lambda t: t.as_subclass(Subclass),
    "inference": frozen,
}
FLOAT_DISGUISES = {"negative", "imaginary", "parameter", "non-leaf"}


def disguised(t: Tensor, without: tuple[str, ...]) -> tuple[str, Tensor]:
    names = [n for n in DISGUISES if n not in without and (t.dtype.is_floating_point or n not in FLOAT_DISGUISES)]
    if t.numel() == 0 or t.dtype.itemsize == 1:
        names.remove("misaligned")
    name = random.choice(names)
    return name, DISGUISES[name](t)


# ---- what does not fit ----


def resized(t: Tensor, dim: int) -> Tensor:
    """One more or one less along a dimension."""
    shape = list(t.shape)
    shape[dim] += random.choice([-1, 1]) if shape[dim] else 1
    return t.new_zeros(shape)


def fake(t: Tensor) -> Tensor:
    return FakeTensorMode().from_tensor(t)


FAULTS: dict[str, Callable[[Tensor], Any]] = {
    "float64": lambda t: t.double(),
    "bfloat16": lambda t: t.bfloat16(),
    "complex64": lambda t: t.to(torch.complex64),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "two dimensions more": lambda t: t[None, None],
    "number": lambda t: 3.0,
    "list": lambda t: t.tolist(),
    "array": lambda t: t.detach().numpy(),
    "text": lambda t: "tensor",
}
NO_MEMORY: dict[str, Callable[[Tensor], Any]] = {  # harmless where there is nothing to read
    "fake": fake,
    "wrapper": lambda t: TwoTensor(t, t.clone()),
    "functional": lambda t: torch._to_functional_tensor(t),
    "oneDNN": lambda t: t.to_mkldnn(),
}


def broken(t: Tensor, dims: tuple[int, ...], optional: bool) -> tuple[str, Any]:
    """t, so that no right call has it. dims: along which its size is not free."""
    faults = dict(FAULTS)
    if t.numel():
        # Ids of another dtype are converted, which reads a functional tensor; oneDNN has float32 alone.
        faults |= {n: f for n, f in NO_MEMORY.items() if n in ("fake", "wrapper") or t.dtype == torch.float32}
    if not optional:
        faults["None"] = lambda t: None
    for dim in dims:
        faults[f"size {dim}"] = lambda t, dim=dim: resized(t, dim)
    name = random.choice(list(faults))
    return name, faults[name](t)


# ---- the calls ----


def size(most: int) -> int:
    """0 now and then, and whatever fills no vector."""
    return random.choice([0, 1, 1, 2, 3, most]) if random.random() < 0.4 else random.randint(1, most)


def ids_of(count: int, vocabulary: int) -> Tensor:
    dtype = random.choice([torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
    return torch.randint(vocabulary, (count,)).to(dtype) if vocabulary else torch.zeros(0, dtype=dtype)


def lengths_of(T: int, B: int) -> Tensor:
    """Below 0 and above T, too."""
    return torch.randint(-1, T + 2, (B,)).to(random.choice([torch.int8, torch.int16, torch.int32, torch.int64]))


def double(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(double, value))
    return value.detach().as_subclass(Tensor).clone().double() if isinstance(value, Tensor) else value


def compare(actual: dict[str, Tensor | None], expected: dict[str, Tensor]) -> None:
    for name, e in expected.items():
        a = actual[name]
        if a is None or a.shape != e.shape or a.dtype != torch.float32:
            raise Wrong(f"{name} is {'None' if a is None else (a.dtype, a.shape)} instead of {e.shape}")
        if not e.numel():
            continue
        special = ~e.isfinite()
        if not torch.equal(a[special].double().nan_to_num(7.0), e[special].nan_to_num(7.0)):
            raise Wrong(f"{name}: NaN or infinity in another place")
        a, e = a.detach().double()[~special], e[~special]
        scale = max(1.0, e.abs().max().item()) if e.numel() else 1.0
        error = (a - e).abs().max().item() if e.numel() else 0.0
        if not error <= ROUNDINGS * torch.finfo(torch.float32).eps * scale:
            raise Wrong(f"{name} is off by {error:.2e}")


class Call:
    """One call of `function`: right arguments by name, which `spoil` changes."""

    # Arguments whose sizes are given by the others', with the dimensions; and those that may be None.
    tied: dict[str, tuple[int, ...]] = {}  # noqa: RUF012
    optional: tuple[str, ...] = ()
    without: tuple[str, ...] = ()  # disguises

    def __init__(self) -> None:
        self.arguments: Arguments = {}
        self.changes: list[str] = []

    def run(self, a: Arguments) -> dict[str, Tensor | None]:
        raise NotImplementedError

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        """The same in float64."""
        raise NotImplementedError

    def spoil(self, wrong: bool) -> None:
        tensors = [name for name, value in self.arguments.items() if isinstance(value, Tensor)]
        for name in tensors:
            if random.random() < 0.3:
                how, self.arguments[name] = disguised(self.arguments[name], self.without)
                self.changes.append(f"{name} {how}")
        if wrong:
            name = random.choice([n for n in tensors if n in self.tied])
            plain = double(self.arguments[name]).to(self.arguments[name].dtype)
            how, self.arguments[name] = broken(plain, self.tied[name], name in self.optional)
            self.changes.append(f"{name} WRONG: {how}")


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
        d_b = out.d_gates.sum((0, 1))
        return {"d_x": out.d_x, "d_b": d_b, "d_h0": out.d_state[0], "d_c0": out.d_state[-1]}

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        b = self.x.new_zeros(len(a["w"])) if self.b is None else self.b
        inputs = {"x": self.x.double(), "b": b.double(), "h0": a["h0"]} | ({"c0": a["c0"]} if "c0" in a else {})
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


class WeightGradients(Call):
    tied = {"d": (0,), "x": (0,), "rest": (0, 1)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        N, columns = size(300), size(60)
        self.arguments = {"d": torch.randn(N, size(40)), "x": torch.randn(N, columns)}
        if random.random() < 0.5:  # in two pieces
            first = random.randint(0, N)
            self.arguments |= {"x": torch.randn(first, columns), "rest": torch.randn(N - first, columns)}
        if random.random() < 0.3:  # some columns of a wider matrix
            self.arguments["d"] = torch.cat([self.arguments["d"]] * 2, 1)[:, : self.arguments["d"].shape[1]]

    def run(self, a: Arguments) -> dict[str, Tensor | None]:
        out, sums = native.weight_gradients(a["d"], *self.pieces(a))
        return {"out": out, "sums": sums}

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        return {"out": a["d"].t() @ torch.cat(self.pieces(a)), "sums": a["d"].sum(0)}

    @staticmethod
    def pieces(a: Arguments) -> list[Tensor]:
        return [a[name] for name in ("x", "rest") if name in a]


class Linear(Call):
    tied = {"x": (1,), "w": (0, 1), "b": (0,)}  # noqa: RUF012
    optional = ("b",)

    def __init__(self) -> None:
        super().__init__()
        N, K, M = size(80), size(90), size(60)
        self.transposed = random.random() < 0.5
        b = torch.randn(M) if random.random() < 0.5 else None
        self.arguments = {"x": torch.randn(N, K), "w": torch.randn(K, M) if self.transposed else torch.randn(M, K)}
        if b is None:
            self.tied = {**self.tied, "w": (0,) if self.transposed else (1,)}  # w alone says how many columns
        else:
            self.arguments["b"] = b
        if random.random() < 0.3:  # some columns of a wider matrix
            self.arguments["x"] = torch.cat([self.arguments["x"]] * 2, 1)[:, :K]

    def run(self, a: Arguments) -> dict[str, Tensor | None]:
        return {"out": native.linear(a["x"], a["w"], a.get("b"), transposed=self.transposed)}

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        w = a["w"] if self.transposed else a["w"].t()
        return {"out": a["x"] @ w + (0.0 if a.get("b") is None else a["b"])}


class Matvec(Call):
    tied = {"w": (1,), "x": (0,), "b": (0,)}  # noqa: RUF012
    optional = ("b",)

    def __init__(self) -> None:
        super().__init__()
        rows, columns = size(40), size(60)
        b = torch.randn(rows) if random.random() < 0.5 else None
        self.arguments = {"w": torch.randn(rows, columns), "x": torch.randn(columns), "b": b}

    def run(self, a: Arguments) -> dict[str, Tensor | None]:
        return {"out": native.matvec(a["w"], a["x"], a["b"])}

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        out = a["w"] @ a["x"]
        return {"out": out if a["b"] is None else out + a["b"]}


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
        native.step_in_place(self.spec.name, a["x"], state, (a["w_ih"], a["w_hh"], a["b_ih"], a["b_hh"]))
        return {"h": state[0], "c": state[-1]}

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        x = a["w_ih"][:, a["x"]] if isinstance(a["x"], int) else a["w_ih"] @ a["x"]
        x = x if a["b_ih"] is None else x + a["b_ih"]
        state = tuple(a[name][None] for name in ("h", "c")[: self.spec.num_states])
        new = self.spec.step(x[None], state, RecurrentWeights(a["w_hh"], a["b_hh"]))
        return {name: s[0] for name, s in zip(("h", "c"), new, strict=False)}


class Gather(Call):
    tied = {"ids": (), "w": (), "b": (0,)}  # noqa: RUF012
    optional = ("b",)

    def __init__(self) -> None:
        super().__init__()
        G, V = size(40), size(50)
        self.arguments = {"ids": ids_of(size(30), V), "w": torch.randn(G, V), "b": torch.randn(G)}
        if random.random() < 0.5:
            self.arguments["b"] = None

    def spoil(self, wrong: bool) -> None:
        super().spoil(wrong and random.random() < 0.5)
        if wrong and not any("WRONG" in change for change in self.changes):
            outside = [-1, self.vocabulary(), -(2**63), 2**63 - 1]
            ids = double(self.arguments["ids"]).long().tolist() or [0]
            ids[random.randrange(len(ids))] = random.choice(outside)
            self.arguments["ids"] = torch.tensor(ids)
            if "d" in self.arguments:
                self.arguments["d"] = torch.randn(len(ids), self.arguments["d"].shape[1])
            self.changes.append(f"ids WRONG: {ids}")

    def vocabulary(self) -> int:
        return int(self.arguments["w"].shape[1])

    def run(self, a: Arguments) -> dict[str, Tensor | None]:
        return {"out": native.gather(a["ids"], a["w"], a["b"])}

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        rows = a["w"].t()[a["ids"].long()]
        return {"out": rows if a["b"] is None else rows + a["b"]}


class Scatter(Gather):
    tied = {"ids": (0,), "d": (0,)}  # noqa: RUF012
    optional = ()

    def __init__(self) -> None:
        Call.__init__(self)
        V = size(50)
        ids = ids_of(size(30), V)
        self.arguments = {"ids": ids, "d": torch.randn(len(ids), size(40)), "V": V}

    def spoil(self, wrong: bool) -> None:
        if wrong and random.random() < 0.2:
            self.arguments["V"] = random.choice([-1, 2.5, None, "3", 2**62, [3]])
            self.changes.append(f"V WRONG: {self.arguments['V']}")
            if self.arguments["V"] == 2**62:  # without a row it would fit
                self.arguments["d"] = torch.randn(len(self.arguments["ids"]), 3)
            return
        super().spoil(wrong)

    def vocabulary(self) -> int:
        return int(self.arguments["V"])

    def run(self, a: Arguments) -> dict[str, Tensor | None]:
        out, sums = native.scatter(a["ids"], a["d"], a["V"])
        return {"out": out, "sums": sums}

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        out = a["d"].new_zeros(a["V"], a["d"].shape[1]).index_add(0, a["ids"].long(), a["d"])
        return {"out": out.t(), "sums": a["d"].sum(0)}


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
        d_outputs = [torch.randn(o.shape, dtype=torch.float64).to(o.dtype) for o in outputs]
        gradients = torch.autograd.grad(outputs, list(leaves.values()), d_outputs, materialize_grads=True)
        return dict(enumerate(outputs)) | dict(zip(leaves, gradients, strict=True))  # type: ignore[arg-type]

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        x = a["x"] if self.arguments["x"].is_floating_point() else self.arguments["x"]
        out = self.run(a | {"x": x}, impl="torch")
        return {n: t.detach() for n, t in out.items() if t is not None}


KINDS = (Forward,) * 6 + (Backward,) * 5 + (WeightGradients,) * 3 + (Gather,) * 3 + (Scatter,) * 3
KINDS += (Functional,) * 4 + (Matvec,) * 2 + (Step,) * 3 + (Linear,) * 3


def one(number: int) -> str:
    """Make call `number`. What it was and what it led to; raises Wrong."""
    random.seed(number)
    torch.manual_seed(number)
    torch.set_num_threads(1 + number // 100 % 4)  # libgomp starts and ends threads when it changes
    call = random.choice(KINDS)()
    wrong = random.random() < 0.45
    call.spoil(wrong)
    kind = type(call).__name__
    try:
        actual = call.run(call.arguments)
    except EXPECTED as error:
        if not wrong:
            raise Wrong(f"{kind} {call.changes}: a right call raises {type(error).__name__}: {error}") from error
        return f"{kind} {type(error).__name__}"
    except Exception as error:
        raise Wrong(f"{kind} {call.changes}: {type(error).__name__}: {error}") from error
    if wrong:
        raise Wrong(f"{kind} {call.changes}: a wrong call raises nothing")
    try:
        compare(actual, call.expect({n: double(v) for n, v in call.arguments.items()}))
    except Wrong as error:
        raise Wrong(f"{kind} {call.changes}: {error}") from error
    return f"{kind} right"


def main(first: int, count: int, progress: int) -> None:
    """`count` calls; the number of the one that is running stands in the file `progress`."""
    faulthandler.enable()
    warnings.simplefilter("ignore")  # a fake tensor warns of its address
    native.WORK_OF_A_THREAD = 1  # a team for the smallest shapes too
    native._few_threads = lambda touched: torch.get_num_threads()
    products.LARGE_PRODUCT = products.MANY_ROWS = 1
    seen: Counter[str] = Counter()
    for number in range(first, first + count):
        os.pwrite(progress, b"%-9d" % number, 0)
        seen[one(number)] += 1
    for what, times in sorted(seen.items()):
        print(times, what)


# The subprocess has libgomp's threads give way: more threads than cores, on a machine that others use too.
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def fuzz(first: int, count: int, where: Path, code: str = "") -> subprocess.CompletedProcess[str]:
    """Calls in a process of their own, after `code`. Its output ends with the call that it ended in, if it did."""
    path = where / "progress"
    with path.open("w") as file:
        start = f"import tests.cpu.test_cpu_fuzz as fuzz\n{code}\nfuzz.main({first}, {count}, {file.fileno()})"
        command = [sys.executable, "-c", start]
        done = subprocess.run(
            command, capture_output=True, text=True, env=ENVIRONMENT, pass_fds=[file.fileno()], timeout=600
        )
    done.stderr += f"\nrepeat with: python -m tests.cpu.test_cpu_fuzz {path.read_text()}" if done.returncode else ""
    return done


needs_c = pytest.mark.skipif(native.obstacle() is not None, reason=str(native.obstacle()))


@needs_c
@pytest.mark.slow
def test_random_calls(tmp_path: Path) -> None:
    done = fuzz(0, CALLS, tmp_path)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    seen = {what: int(times) for times, what in (line.split(" ", 1) for line in done.stdout.splitlines())}
    assert sum(seen.values()) == CALLS >= 10_000
    for kind in {kind.__name__ for kind in KINDS}:  # neither kind of call is rare
        assert seen[f"{kind} right"] > 300 and seen[f"{kind} RuntimeError"] > 100, seen


FAULTY = {
    "a crash": (
        "import types; c = fuzz.native._cpu; wrong = {'gather': lambda *a, **k: c.gather(*a, **{**k, 'w': 8})}\n"
        "fuzz.native._cpu = types.SimpleNamespace(**{**vars(c), **wrong})",
        -signal.SIGSEGV,
    ),
    "a check too few": ("fuzz.native.check.matrix = lambda name, t: t.shape[-2:]", 1),
    "a wrong number": ("f = fuzz.native.gather; fuzz.native.gather = lambda *a: f(*a) * 1.01", 1),
    "a right call refused": ("fuzz.native._cpu = None", 1),
}


@needs_c
@pytest.mark.parametrize("fault", FAULTY)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path) -> None:
    code, status = FAULTY[fault]
    done = fuzz(0, 500, tmp_path, code)
    assert done.returncode == status and "repeat with: python -m tests.cpu.test_cpu_fuzz" in done.stderr, done


if __name__ == "__main__":
    faulthandler.enable()
    print(one(int(sys.argv[1])))
