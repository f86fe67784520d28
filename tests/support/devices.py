"""What a test needs of the machine that it runs on."""

from __future__ import annotations

import os

import pytest

from fastcells.backends.cpu import native

# Of the device that tests/conftest.py takes where a test names none.
OF_A_CPU = pytest.mark.skipif("FASTCELLS_TEST_DEVICE" in os.environ, reason="it says what a CPU does")
# The instructions that multiply bfloat16; on any machine but one with these, such tests run nowhere else.
OF_BF16 = [
    pytest.mark.skipif(native.bf16_obstacle() is not None, reason=str(native.bf16_obstacle())),
    pytest.mark.usefixtures("poisoned_memory"),
]


def use_instructions(monkeypatch: pytest.MonkeyPatch, position: str, there: dict[str, bool], name: str) -> str:
    """Have C use these instructions of those that there are; position: what `native` calls their place among them."""
    if not there[name]:
        pytest.skip(f"this machine has no {name}")
    monkeypatch.setattr(native, position, list(there).index(name))
    return name
