"""A defined cell as its layer class and its cell class share it: the rule, the recurrent weights, how values begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastcells.defined.rule import Rule
from fastcells.defined.spec import spec_of
from fastcells.spec import CellSpec
from fastcells.spec.recurrent import DENSE, DIAGONAL, Heads, RecurrentProduct

Recurrent = Literal["dense", "diagonal", "heads"]
RECURRENT: tuple[str, ...] = get_args(Recurrent)
Initial = float | tuple[float, float]  # a value, or the bounds of a uniform distribution


@dataclass(frozen=True, eq=False)
class Kind:
    """What `fastcells.define` was told.

    initial: by a gate's name what its bias begins with, by an extra parameter's or "weight_hh" what that does; all
    else as torch.nn's layers begin, in U(-1/sqrt(H), 1/sqrt(H)).
    """

    name: str
    rule: Rule
    recurrent: Recurrent
    initial: Mapping[str, Initial]
    _specs: dict[int, CellSpec] = field(default_factory=dict)

    def spec(self, num_heads: int = 1) -> CellSpec:
        """For so many heads, where the recurrent weights have some."""
        if num_heads not in self._specs:
            self._specs[num_heads] = spec_of(self.name, self.rule, self._product(num_heads))
        return self._specs[num_heads]

    def check_heads(self, num_heads: int, hidden_size: int) -> None:
        """ValueError unless the recurrent weights have heads, if any are asked for, and these divide the units."""
        if isinstance(num_heads, bool) or not isinstance(num_heads, int) or num_heads < 1:
            raise ValueError(f"num_heads must be a positive integer, got {num_heads!r}")
        if num_heads > 1 and self.recurrent != "heads":
            raise ValueError(f"{self.name} has {self.recurrent} recurrent weights and no heads, got {num_heads=}")
        self._product(num_heads).shape(1, hidden_size)

    def parameters(self, spec: CellSpec, input_size: int, hidden_size: int, bias: bool) -> dict[str, tuple[int, ...]]:
        """Names and shapes of one layer and direction, in the order of torch.nn's and then the extra ones."""
        G, H = spec.num_gates, hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (G * H, input_size), "weight_hh": spec.recurrent.shape(G, H)}
        if bias:
            shapes |= {"bias_ih": (G * H,), "bias_hh": (G * H,)}
        return shapes | dict.fromkeys(spec.extra, (H,))

    def begin(self, name: str, parameter: Tensor) -> None:
        """Give one parameter the values that the definition wants, in place. name: as in `parameters`."""
        if name in self.initial:
            _fill(parameter, self.initial[name])
        elif name.startswith("bias_"):
            parts = parameter.chunk(len(self.rule.gates))
            for gate, part in zip(self.rule.gates, parts, strict=True):
                if gate in self.initial:
                    _fill(part, self.initial[gate] if name == "bias_ih" else 0.0)

    def given_states(self, label: str, name: str, given: Any) -> Any:
        """What a caller gave as a state: a tensor, or of several states a tuple of as many."""
        states = self.rule.states
        if given is None or (len(states) == 1 and isinstance(given, Tensor)):
            return given
        if len(states) == 1 or not isinstance(given, tuple | list):
            wanted = f"a tuple ({', '.join(states)})" if len(states) > 1 else "a tensor"
            got = f"a tensor of shape {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(f"{label}: {name} must be {wanted}, got {got}")
        if len(given) != len(states):
            raise RuntimeError(f"{label}: {name} must be {len(states)} states, {', '.join(states)}, got {len(given)}")
        return tuple(given)

    def _product(self, num_heads: int) -> RecurrentProduct:
        return {"dense": DENSE, "diagonal": DIAGONAL}.get(self.recurrent) or Heads(num_heads)


def _fill(parameter: Tensor, value: Initial) -> None:
    with torch.no_grad():
        if isinstance(value, tuple):
            nn.init.uniform_(parameter, *value)
        else:
            nn.init.constant_(parameter, value)
