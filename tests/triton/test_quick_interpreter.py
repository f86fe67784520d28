"""What the tests leave out of Triton's interpreter changes nothing but its time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

import fastcells

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="no interpreter with a GPU")


def test_a_launch_replaces_the_language_once_and_puts_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although its kernel calls dozens of functions; and the next launch does so again."""
    replaced: list[Any] = []
    replace, gru = interpreter._patch_builtin, fastcells.GRU(3, 4, impl="triton")
    monkeypatch.setattr(interpreter, "_patch_builtin", lambda of, *rest: (replaced.append(of), replace(of, *rest)))
    for launches in (1, 2):
        with torch.no_grad():
            gru(torch.randn(2, 3, 3))
        assert launches <= replaced.count(tl) <= 2 * launches  # twice where the kernel's file knows it by two names
        assert tl.core.is_builtin(tl.load) and tl.core.is_builtin(tl.tensor.to)


def test_a_launch_that_fails_puts_it_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gru, x = fastcells.GRU(3, 4, impl="triton"), torch.randn(2, 3, 3)
    right = gru(x)[0]

    def fail(*_: object) -> None:
        raise ArithmeticError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", fail)
        with pytest.raises(Exception, match="planted"):
            gru(x)
    assert tl.core.is_builtin(tl.load)
    assert torch.equal(gru(x)[0], right)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int1", "uint64", "float8e5"])
def test_types_are_numpys(name: str) -> None:
    stored_as = {"bfloat16": "uint16", "int1": "bool", "float8e5": "uint8"}.get(name, name)
    dtype = getattr(tl, name)
    for _ in range(2):
        assert interpreter._get_np_dtype(dtype) == interpreter._get_np_dtype(tl.block_type(dtype, [4])) == stored_as
        assert interpreter._get_np_dtype(tl.pointer_type(dtype)) == "uint64"
