"""Where a run is, as numbers that JSON keeps, and back from JSON."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

from fastcells.charlm.divergence import Watch


@dataclass
class Place:
    """Where a run is. Plain numbers, so that JSON keeps it."""

    step: int = 0  # steps done
    epoch: int = 0  # epochs finished
    done: int = 0  # steps done of the epoch under way
    tokens: int = 0  # characters that these learned from
    seconds: float = 0.0  # of training so far
    epoch_start: float = 0.0  # seconds, when the epoch under way began
    best_epoch: int = 0  # in which the best weights were found; 0: nothing was measured yet
    best_step: int = 0
    best_loss: float | None = None  # of the validation text, or else of an epoch
    waited: int = 0  # looks at the validation text since then
    checked: int = 0  # steps done at the last look at the loss


Numbers = TypeVar("Numbers", Place, Watch)


def numbers_of(kind: type[Numbers], values: object) -> Numbers:
    """A dataclass of numbers from JSON."""
    if not isinstance(values, dict):
        raise TypeError(f"{values!r} should be numbers by name")
    found = kind(**values)
    for field in fields(kind):
        value = getattr(found, field.name)
        number = int if field.type == "int" else int | float
        if not ((isinstance(value, number) and not isinstance(value, bool) and value >= 0) or value is field.default):
            raise ValueError(f"{field.name} is {value!r}")
    return found
