"""Stand-ins for trials: a clock that says what it is told, and implementations that are wrong in a given way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastcells.backends import BACKENDS
from fastcells.backends.base import Backend, Call, Choice, Gradients, Trace
from fastcells.spec import SPECS
from fastcells.tuning.clock import Clock


def call_of(
    cell: str = "gru",
    T: int = 6,
    B: int = 3,
    H: int = 8,
    I: int = 5,  # noqa: E741
    *,
    ids: bool = False,
    dtype: torch.dtype = torch.float32,
    options: frozenset[str] = frozenset(),
    proj: int = 0,
    training: bool = True,
    impl: str = "auto",
) -> Call:
    """A call of one layer and direction, by its sizes."""
    spec = SPECS[cell]
    rows = spec.num_gates * H
    w_ih, w_hh = torch.zeros(rows, I, dtype=dtype), torch.zeros(rows, proj or H, dtype=dtype)
    w_hh.requires_grad_(training)
    return Call(impl, spec, ids, T, B, w_ih, w_hh, options | ({"proj_size"} if proj else frozenset()))


class ToldClock(Clock):
    """Runs what it times, and says what it was told: microseconds of a candidate by its name."""

    def __init__(self, times: Mapping[str, float], default: float = 100.0) -> None:
        self.times, self.default = dict(times), default
        self.timed: list[str] = []
        self.device: dict[str, float] = {}  # microseconds of the device alone
        self.captures = False

    def microseconds(self, run: Callable[[], object], calls: int) -> float:
        name = run.args[0].name  # type: ignore[attr-defined]  # partial(Problem.run, choice)
        self.timed.append(name)
        return self.times.get(name, self.default)

    def device_microseconds(self, run: Callable[[], object], host: float) -> float | None:
        return self.device.get(run.args[0].name)  # type: ignore[attr-defined]

    def wait(self) -> None:
        pass

    def capturing(self) -> bool:
        return self.captures

    def free_memory(self) -> int:
        return 1 << 32


class StandIn(Backend):
    """torch's own loop under another name, in so many variants, with something wrong with it."""

    def __init__(self, name: str, variants: tuple[str, ...] = ("",), *, path: str = "made up") -> None:
        self.name, self.variants, self.path = name, variants, path
        self.cells, self.dtypes = frozenset(SPECS), frozenset({torch.float32, torch.bfloat16})
        self.options = frozenset({"lengths"})
        self.devices = frozenset({"cpu"})
        self.calls = 0

    def choose(self, call: Call, reason: str) -> Choice:
        return Choice(self.name, self.path, reason, backend=self, variant=self.variants[0])

    def candidates(self, call: Call) -> list[Choice]:
        return [replace(self.choose(call, ""), variant=variant) for variant in self.variants]

    def forward(self, choice: Choice, spec: Any, inputs: Any, save: bool) -> Trace:
        self.calls += 1
        return BACKENDS["torch"].forward(choice, spec, inputs, save)

    def backward(self, choice: Choice, *given: Any) -> Gradients:
        return BACKENDS["torch"].backward(choice, *given)

    def operands(self, *given: Any) -> list[tuple[int, Tensor]]:
        return BACKENDS["torch"].operands(*given)
