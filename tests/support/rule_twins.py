"""A kernel's rule on torch tensors of any dtype: the same code with the functions and `tl` bound to torch."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

NAMES = ("sigmoid", "tanh", "relu", "exp", "log", "log1p", "sqrt", "minimum", "maximum")
SCOPE = {name: getattr(torch, name) for name in NAMES} | {
    "softplus": F.softplus,
    "tl": types.SimpleNamespace(where=torch.where, zeros_like=torch.zeros_like, abs=torch.abs),
}


def twin(function: Any) -> Callable[..., Any]:
    """Of a function of a rule."""
    code = function.fn.__code__
    return types.FunctionType(code, {**function.fn.__globals__, **SCOPE}, code.co_name)
