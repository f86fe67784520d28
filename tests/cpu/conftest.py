"""The instructions and the threads that the C kernels run with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastcells.backends.cpu import native


@pytest.fixture(params=list(native.INSTRUCTIONS))
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each set of vector instructions in turn."""
    if not native.INSTRUCTIONS[request.param]:
        pytest.skip(f"this machine has no {request.param}")
    monkeypatch.setattr(native, "_instructions", list(native.INSTRUCTIONS).index(request.param))
    assert native.instruction_set() == request.param
    return str(request.param)


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"threads{n}")
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """That many threads, however small the shape."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(native, "WORK_OF_A_THREAD", 1)
    yield request.param
    torch.set_num_threads(before)
