"""The state that a process is in, which is the user's: torch's defaults, its modes, and the floating-point unit."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastcells
from fastcells.backends.cpu import buffers, checks, native
from tests.support.shapes import EACH_CELL, Case, Shape

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


STATES: dict[str, Callable[[], Any]] = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: torch.device("meta"),
    "deterministic": deterministic,
}
EACH_STATE = pytest.mark.parametrize("state", STATES)
SHAPES = [Shape(6, 5, 17, 4), Shape(20, 16, 70, 9)]  # buffers from torch, and kept ones


@EACH_STATE
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ids", [False, True], ids=["dense", "ids"])
@EACH_CELL
def test_the_same_bits_in_every_state(case: Case, ids: bool, shape: Shape, state: str) -> None:
    leaves = case.arguments(shape, torch.float32)
    if ids:
        leaves[0] = torch.randint(shape.I, (shape.T, shape.B))
    lengths = torch.randint(shape.T + 1, (shape.B,))
    d = [torch.randn(shape.T, shape.B, shape.H), *(torch.randn(shape.B, shape.H) for _ in range(case.states))]

    def run() -> list[Tensor]:
        outs = case.ours(*leaves, impl="cpu", lengths=lengths)
        with torch.no_grad():
            again = case.ours(*leaves, impl="cpu", lengths=lengths)
        return [*outs, *again, *torch.autograd.grad(outs, [a for a in leaves if a.requires_grad], d)]

    expected = run()
    with STATES[state]():
        found = run()
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32 and a.device.type == "cpu" and torch.equal(a, b)


@EACH_STATE
def test_buffers_in_every_state(state: str) -> None:
    """C writes float32, whatever torch.empty would be."""
    with STATES[state]():
        for size in (3, buffers.SMALLEST):
            t = buffers.empty(size)
            assert t.dtype == torch.float32 and t.device.type == "cpu" and t.shape == (size,)


@EACH_STATE
def test_one_step_in_every_state(state: str) -> None:
    cell, w = fastcells.GRUCell(4, 16), torch.randn(8, 16)
    weights = tuple(p.detach() for p in cell.parameters())
    x, h, expected = torch.randn(4), torch.zeros(16), torch.zeros(16)
    native.StepInPlace("gru", (expected,), weights)(x)
    scores = native.matvec(w, expected, None)
    with STATES[state]():
        native.StepInPlace("gru", (h,), weights)(x)
        assert torch.equal(h, expected) and torch.equal(native.matvec(w, h, None), scores)


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "half": Tensor.half,
    "double": Tensor.double,
    "larger": lambda t: t.new_empty(t.numel() + 1),
    "smaller": lambda t: t[:-1],
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "meta": lambda t: t.to("meta"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_c_writes_is_checked(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="to be written by C, must be float32"):
        checks.written(("t", WRONG[wrong](torch.zeros(5)), (5,)))
    empty = buffers.empty
    monkeypatch.setattr(buffers, "empty", lambda *shape, **kind: WRONG[wrong](empty(*shape, **kind)))
    x, h, w = torch.randn(3, 2, 48), torch.zeros(2, 16), torch.randn(48, 16)
    with pytest.raises(RuntimeError, match="hidden, to be written by C, must be float32"):
        native.forward("gru", x, (h,), w, None, None, save=True)
    with pytest.raises(RuntimeError, match="out, to be written by C, must be float32"):
        native.gather(torch.tensor([1, 2]), w, None)


# The module looks for an OpenMP runtime when it is loaded: before torch is, there is none.
NO_OPENMP = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("fastcells.kernels._cpu", {getattr(native._cpu, "__file__", "")!r})
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
"""
FLUSH = """
import torch
from fastcells.backends.cpu import native
native.WORK_OF_A_THREAD = 1
T, B, H = 60, 8, 64
x, h0, w = torch.zeros(T, B, H), torch.rand(B, H) + 0.5, torch.eye(H) * 0.1
def run(threads):
    torch.set_num_threads(threads)
    out = native.forward("rnn_relu", x, (h0,), w, None, None).out
    d = native.weight_gradients(out.flatten(0, 1) * 1e-30, out.flatten(0, 1))[0]
    return out, d
def subnormal(t):
    return int(((t.view(torch.int32) & 0x7f800000 == 0) & (t.view(torch.int32) & 0x7fffff != 0)).sum())
kept = run(2)  # the pool's threads start with the state of the process
assert all(map(torch.equal, kept, run(1))) and subnormal(kept[0]) > 0
assert torch.set_flush_denormal(True)
flushed = run(1)
assert subnormal(flushed[0]) == 0
for threads in (2, 3, 4):
    assert all(map(torch.equal, flushed, run(threads))), threads
torch.set_flush_denormal(False)
for threads in (1, 2, 3):
    assert all(map(torch.equal, kept, run(threads))), "a thread of the pool goes on flushing"
torch.set_num_threads(2)
tiny = torch.full((1 << 20,), 1e-38) * torch.tensor(0.1)  # torch's own operators on the same pool
assert subnormal(tiny) == 1 << 20
"""


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor has no flush-to-zero")
@pytest.mark.parametrize("team", ["openmp", "threads"])
def test_flush_to_zero_holds_for_the_team(team: str) -> None:
    """It is a state of the calling thread; with any number of threads the bits are the same, and it ends with it."""
    code = (NO_OPENMP if team == "threads" else "") + f"{FLUSH}\nassert native.team() == {team!r}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
