"""Which implementation runs a call, and the reason: the backends are asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastcells import projection
from fastcells.backends import BACKENDS
from fastcells.backends.base import ASKED_FOR, FOLDED, Backend, Call, Choice
from fastcells.errors import CannotRun
from fastcells.modes import compiling, is_plain_tensor, traced, transformed
from fastcells.tuning import verdicts

IMPLEMENTATIONS = ("auto", *BACKENDS)
TORCH = BACKENDS["torch"]
WITH_ADVANTAGE = [b for b in BACKENDS.values() if type(b).advantage is not Backend.advantage]


class Explanation(dict[str, Choice]):
    """What runs for each layer and direction, by torch's suffixes: "l0", "l0_reverse", "l1"; of a cell, "cell".

    As text one line, or one for each where they differ. `impl`, `path` and `reason` are those of all of them.
    """

    @property
    def impl(self) -> str:
        return self._common("impl")

    @property
    def path(self) -> str:
        return self._common("path")

    @property
    def reason(self) -> str:
        return self._common("reason")

    def _common(self, name: str) -> str:
        values = {str(getattr(choice, name)) for choice in self.values()}
        if len(values) > 1:
            raise ValueError(f"the layers differ in {name}: {dict(self)}")
        return values.pop()

    def __str__(self) -> str:
        lines = {str(choice) for choice in self.values()}
        return lines.pop() if len(lines) == 1 else "\n".join(f"{name}: {choice}" for name, choice in self.items())


def check_impl(impl: str) -> None:
    """Raise ValueError unless `impl` names an implementation of this version."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLEMENTATIONS))}, got {impl!r}")


def choose(call: Call) -> Choice:
    """The implementation of one call.

    Raises:
        CannotRun: `call.impl` names an implementation that cannot run this case. ValueError: it names none.
    """
    impl, measurable = call.impl, False
    if impl == "auto":
        watched = _looked_through(call)
        measurable = call.T >= verdicts.FEWEST_STEPS and not (watched or call.packed)
        choice = None if watched else _best(call, measurable)
        if choice is not None:
            return choice
        backend = TORCH
    else:
        check_impl(impl)
        backend = BACKENDS[impl]
    obstacle = backend.obstacle(call)
    if obstacle is not None:
        raise CannotRun(f"impl={impl!r}", obstacle)
    choice = backend.choose(call, ASKED_FOR)
    if call.options:
        choice = _priced(call, choice)
    return verdicts.noted(call, choice) if measurable else choice


def _priced(call: Call, choice: Choice) -> Choice:
    """With what a projection costs that the backend has no kernel for."""
    if not call.options & FOLDED - choice.backend.options:
        return choice
    return replace(choice, reason=f"{choice.reason}; {projection.price(call.H, call.w_hh.shape[1])}")


def _best(call: Call, measurable: bool) -> Choice | None:
    """What has been measured for such a call, or else is said to be faster than torch's own; None for that.

    measurable: whether a trial may ever have been made of it.
    """
    choice = verdicts.measured(call) if measurable else None
    if choice is not None:
        return choice
    for backend in WITH_ADVANTAGE:
        advantage = backend.advantage(call)
        if advantage is not None and backend.obstacle(call) is None:
            choice = _priced(call, backend.choose(call, advantage))
            if not verdicts.faulted(choice, call.w_hh.device):
                return verdicts.noted(call, choice) if measurable else choice
    return None


def _looked_through(call: Call) -> bool:
    """Whether torch's own operators are wanted: something watches them, or gives them tensors of its own kind."""
    if not is_plain_tensor(call.input_type) or not is_plain_tensor(type(call.w_hh)):
        return True
    return transformed() or (traced() and not compiling())


def explain(module: nn.Module, input: Tensor | PackedSequence) -> Explanation:
    """Which implementation `module(input)` runs, for each layer and direction, and why.

    `print(fastcells.explain(gru, x))`; `explain(gru, x)["l0"].impl`; `explain(gru, x).impl` where all agree.

    module: a layer or cell of this package. input: what would be passed to it; nothing is computed.

    Raises:
        TypeError: any other module. CannotRun: `module.impl` names an implementation that cannot run it.
    """
    asked: Any = getattr(module, "_explain", None)
    if asked is None:
        name = f"{type(module).__module__}.{type(module).__name__}"
        hint = "; fastcells.convert(module) gives its twin" if isinstance(module, nn.RNNBase | nn.RNNCellBase) else ""
        raise TypeError(f"explain() needs a fastcells layer or cell, got {name}{hint}")
    with verdicts.looking():
        explanation: Explanation = asked(input)
    return explanation


def refuse_script(module: nn.Module) -> NoReturn:
    """Raise what torch.jit.script(module) ends with."""
    raise RuntimeError(
        f"torch.jit.script cannot compile fastcells.{type(module).__name__}: script its torch.nn twin instead, "
        "torch.jit.script(fastcells.to_torch(copy.deepcopy(model)))"
    )
