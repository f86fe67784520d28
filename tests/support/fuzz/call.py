"""One random call: its arguments, how they are changed, and the same in float64 to compare with."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from fastcells.spec import GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM, RNN_RELU, RNN_TANH
from tests.support.accuracy import ROUNDINGS
from tests.support.fuzz.changes import broken, disguised

CELLS = (RNN_TANH, RNN_RELU, GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM)
Arguments = dict[str, Any]


class Wrong(Exception):
    """What a call did is not what it has to do."""


def size(most: int) -> int:
    """0 now and then, and whatever fills no vector."""
    return random.choice([0, 1, 1, 2, 3, most]) if random.random() < 0.4 else random.randint(1, most)


def ids_of(count: int, vocabulary: int) -> Tensor:
    dtype = random.choice([torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
    return torch.randint(vocabulary, (count,)).to(dtype) if vocabulary else torch.zeros(0, dtype=dtype)


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

    def check(self, actual: dict[str, Tensor | None]) -> None:
        """Raises Wrong if a right call has given something else than it has to."""
        compare(actual, self.expect({name: double(value) for name, value in self.arguments.items()}))

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
