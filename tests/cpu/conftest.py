"""The instructions and the threads that the C kernels run with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastcells import inference
from fastcells.backends.cpu import layer_call, native
from tests.support.devices import use_instructions
from tests.support.packing import Watched


@pytest.fixture(params=list(native.INSTRUCTIONS))
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each set of vector instructions in turn."""
    name = use_instructions(monkeypatch, "_instructions", native.INSTRUCTIONS, request.param)
    assert native.instruction_set() == name
    return name


@pytest.fixture(params=list(native.BF16_INSTRUCTIONS))
def each_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each set of instructions for bfloat16 in turn."""
    name = use_instructions(monkeypatch, "_bf16_instructions", native.BF16_INSTRUCTIONS, request.param)
    assert native.bf16_instruction_set() == name
    return name


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"threads{n}")
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """That many threads, however small the shape."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(native, "WORK_OF_A_THREAD", 1)
    monkeypatch.setattr(native, "SMALL_WEIGHTS", {})
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """All calls pack their weights; no gradients."""
    module = Watched(native._cpu)
    monkeypatch.setattr(native, "_cpu", module)
    monkeypatch.setattr(layer_call, "packs", lambda *sizes: True)
    inference._plans.clear()
    with torch.no_grad():
        yield module
    inference._plans.clear()
