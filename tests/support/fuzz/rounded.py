"""The calls that C has in bfloat16, of numbers that bfloat16 has.

Three-way: err(ours) <= 2 * err(torch's operators in bfloat16) + eps, both against float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcells.accuracy import TWICE, relative_error
from tests.support.fuzz.call import Call, Wrong, double
from tests.support.fuzz.products import Linear, WeightGradients
from tests.support.fuzz.recurrences import Backward, Forward, Functional

BF16 = torch.bfloat16


def rounded(value: Any) -> Any:
    return value.to(BF16) if isinstance(value, Tensor) and value.is_floating_point() else value


def compare(actual: dict[str, Tensor | None], exact: dict[str, Tensor], baseline: dict[str, Tensor]) -> None:
    """baseline: torch's own in bfloat16. Either is empty where its rounding has changed a relu's slope."""
    for name in baseline.keys() & exact.keys():
        a, b, e = actual[name], baseline[name], exact[name]
        if a is None or a.shape != e.shape or a.dtype != BF16:
            raise Wrong(f"{name} is {'None' if a is None else (a.dtype, a.shape)} instead of {e.shape}")
        special = ~e.isfinite()
        if not torch.equal(a[special].double().nan_to_num(7.0), e[special].nan_to_num(7.0)):
            raise Wrong(f"{name}: NaN or infinity in another place")
        a, b, e = a.detach()[~special], b.detach()[~special], e[~special]
        error, theirs = relative_error(a, e), relative_error(b, e)
        if not error <= TWICE * theirs + torch.finfo(BF16).eps:
            raise Wrong(f"{name} is off by {error:.2e}, torch's by {theirs:.2e}")


class Rounded(Call):
    """Goes before a call of float32."""

    without = ("imaginary",)  # complex numbers have no parts in bfloat16

    def __init__(self) -> None:
        super().__init__()
        self.arguments = {name: rounded(value) for name, value in self.arguments.items()}

    def check(self, actual: dict[str, Tensor | None]) -> None:
        exact = {name: double(value) for name, value in self.arguments.items()}
        baseline = self.expect({name: rounded(value) for name, value in exact.items()})
        compare(actual, self.expect(exact), baseline)


class RoundedForward(Rounded, Forward):
    pass


class RoundedBackward(Rounded, Backward):
    def __init__(self) -> None:
        super().__init__()
        a = self.arguments
        self.x, self.b = rounded(self.x), rounded(self.b)
        out = self.forward({**a, "x": self.x, "b": self.b})
        a |= {"hidden": out.hidden, "cells": out.cells, "saved": out.saved}
        self.given = dict(a)


class RoundedWeightGradients(Rounded, WeightGradients):
    pass


class RoundedLinear(Rounded, Linear):
    pass


class RoundedFunctional(Rounded, Functional):
    without = (*Rounded.without, *Functional.without)
    FAULTS = ("float64", "float32", "complex64", "meta", "two dimensions more")


ROUNDED_KINDS = (RoundedForward,) * 6 + (RoundedBackward,) * 5 + (RoundedWeightGradients,) * 3
ROUNDED_KINDS += (RoundedFunctional,) * 4 + (RoundedLinear,) * 3
