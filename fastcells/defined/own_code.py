"""Methods whose code a class does not share with others.

torch.compile keeps what it has compiled with a function's code object, and gives up after eight variants. Classes that
`fastcells.define` makes inherit one `forward` all together; each gets a copy, and so a count of its own.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any


def own_code(method: Callable[..., Any], owner: str) -> types.FunctionType:
    """A copy of a method for the class of that name, for a body without `super()`."""
    assert isinstance(method, types.FunctionType) and method.__closure__ is None, method
    copied = types.FunctionType(
        method.__code__.replace(), method.__globals__, method.__name__, method.__defaults__, method.__closure__
    )
    copied.__kwdefaults__, copied.__annotations__ = method.__kwdefaults__, method.__annotations__
    copied.__doc__, copied.__module__ = method.__doc__, method.__module__
    copied.__qualname__ = f"{owner}.{method.__name__}"
    return copied
