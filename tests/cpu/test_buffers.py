"""The pool of buffers: what is in use is never handed out again, and what is not is not kept without end."""

from __future__ import annotations

import gc
import io
import math
import random
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcells.backends.cpu import buffers, native
from tests.support.shapes import EACH_CELL, Case, Shape, gradients

needs_c = pytest.mark.skipif(native.obstacle() is not None, reason=str(native.obstacle()))
N = 1000  # floats


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty pool that takes the smallest tensors too."""
    gc.collect()
    monkeypatch.setattr(buffers, "_kept", [])
    monkeypatch.setattr(buffers, "SMALLEST", 0)


def kept() -> int:
    return sum(array.nbytes for array in buffers._kept)


def test_a_free_buffer_is_used_again() -> None:
    first = buffers.empty(N).data_ptr()
    assert buffers.empty(N).data_ptr() == first
    assert buffers.empty(2, N // 4).data_ptr() == first, "half of its size"
    assert buffers.empty(N // 4).data_ptr() != first, "much too large"


HOLDERS: dict[str, Callable[[Tensor], object]] = {
    "itself": lambda t: t,
    "view": lambda t: t[5:6],
    "detached": lambda t: t.detach(),
    "parameter": lambda t: torch.nn.Parameter(t),
    "array": lambda t: t.numpy(),
    "memoryview": lambda t: memoryview(t.numpy())[3:],
    "storage": lambda t: t.untyped_storage(),
    "dlpack": torch.utils.dlpack.to_dlpack,
    "graph": lambda t: torch.ones(N, requires_grad=True) * t,
    "cycle": lambda t: (cycle := [t]).append(cycle),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_buffer_in_use_is_not_handed_out_again(holder: str) -> None:
    gc.disable()
    try:
        tensor = buffers.empty(N)
        address = tensor.data_ptr()
        held = HOLDERS[holder](tensor)
        del tensor
        assert all(buffers.empty(N).data_ptr() != address for _ in range(3))
        del held
        gc.collect()  # the cycle
        assert any(t.data_ptr() == address for t in [buffers.empty(N) for _ in range(3)])
    finally:
        gc.enable()


def test_threads_do_not_share_a_buffer() -> None:
    wrong: list[str] = []

    def work(number: int) -> None:
        rng, held = random.Random(number), []
        for i in range(400):
            value = number * 1000.0 + i
            held.append((value, buffers.empty(rng.randint(1, 40)).fill_(value)))
            if len(held) > 5:
                value, tensor = held.pop(rng.randrange(len(held)))
                if not (tensor == value).all():
                    wrong.append(f"thread {number} finds {tensor[0].item()} instead of {value}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, wrong[:3]


def test_memory_that_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "MOST", 1 << 20)
    for i in range(2000):
        buffers.empty(N + i * i % 7919)
        assert kept() <= 1 << 20
    assert 0 < len(buffers._kept) <= 64, "each call looks through all of them"
    held = [buffers.empty(N + i) for i in range(1000)]  # more than MOST at once
    assert kept() <= 1 << 20
    for i, t in enumerate(held):
        t.fill_(i)
    assert all((t == i).all() for i, t in enumerate(held))
    buffers.empty(1 << 20)
    assert kept() <= 1 << 20, "one above MOST outlives its tensor"


def test_little_memory_is_kept_for_the_life_of_a_process() -> None:
    for size in (1 << 18, 1 << 19, 3 << 18, 1 << 20, 3 << 19, 5 << 18):  # floats: 18 MB in all
        for _ in range(8):
            buffers.empty(size)
        held = [buffers.empty(size) for _ in range(9)]
        del held
    assert 8 << 20 < kept() <= buffers.MOST


def test_changing_lengths_need_no_more_than_the_longest() -> None:
    rng = random.Random(0)
    held: list[object] = []
    for T in [*(rng.randint(N // 2, N) for _ in range(200)), N]:
        held.clear()
        held += [buffers.empty(size, T) for size in (3, 1, 1)]
    assert kept() <= 1.1 * 5 * 4 * N


def test_what_is_in_use_does_not_leave_for_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that needs more than MOST finds a part of it at the next step, not nothing."""
    monkeypatch.setattr(buffers, "MOST", int(9.5 * 4 * N))
    allocated: list[int] = []
    empty = np.empty

    def counted(size: int, dtype: type) -> np.ndarray:
        allocated.append(size)
        return empty(size, dtype)

    monkeypatch.setattr(np, "empty", counted)

    def step() -> int:
        allocated.clear()
        held = [buffers.empty(int(size * N)) for size in (1, 2.5, 6.5)]
        return len(allocated) if held else 0

    assert step() == 3 and step() == 1 and step() == 1
    buffers.empty(7 * N)
    assert kept() <= buffers.MOST and any(array.nbytes > 7 * 4 * N for array in buffers._kept), "free ones make room"


@pytest.mark.usefixtures("poisoned_memory")
def test_deterministic_mode_fills_what_is_used_again() -> None:
    for size in (N, N, N - 7, 0):
        tensor = buffers.empty(size)
        assert tensor.isnan().all() and tensor.data_ptr() % buffers.ALIGNMENT == 0
        tensor.fill_(1.0)


def test_a_signal_handler_may_ask_for_a_buffer() -> None:
    """It runs between any two steps of the code that it interrupts, which may have the lock."""
    with buffers._lock:
        assert buffers.empty(N).shape == (N,)


def test_no_sizes_and_impossible_ones() -> None:
    assert buffers.empty(3, 0, 2).shape == (3, 0, 2) and buffers.empty().shape == ()
    with pytest.raises((MemoryError, ValueError)):
        buffers.empty(1 << 45)
    assert buffers.empty(N).shape == (N,), "the lock is free"


def test_what_is_saved_is_the_tensor_alone() -> None:
    tensor = buffers.empty(N).fill_(3.0)
    file = io.BytesIO()
    torch.save(tensor, file)
    assert len(file.getvalue()) < 4 * N + 2000
    file.seek(0)
    assert torch.equal(torch.load(file), tensor)


# ---- layers whose saved tensors and gradients live in the pool ----

SHAPE = Shape(5, 3, 7, 4)


@needs_c
@EACH_CELL
def test_a_second_backward_gives_the_same(case: Case) -> None:
    leaves = case.arguments(SHAPE, torch.float32)
    outputs = case.ours(*leaves, impl="cpu")
    d_outputs = [torch.randn_like(o) for o in outputs]
    first = torch.autograd.grad(outputs, leaves, d_outputs, retain_graph=True)
    copies = [g.clone() for g in first]
    second = gradients(outputs, leaves, d_outputs)
    for gradient, copy, again in zip(first, copies, second, strict=True):
        assert torch.equal(gradient, copy), "the second backward wrote into the first one's result"
        assert torch.equal(again, copy)


@needs_c
@EACH_CELL
def test_calls_in_between_do_not_disturb(case: Case) -> None:
    """Several forwards before their backwards, which come in another order, one of them twice differentiable."""
    calls, alone = [], []
    for i in range(4):
        leaves = case.arguments(Shape(5, 3 + i % 2, 7, 4), torch.float32)
        d_outputs = [torch.randn_like(o) for o in case.ours(*leaves, impl="cpu")]
        alone.append(gradients(case.ours(*leaves, impl="cpu"), leaves, d_outputs))
        calls.append((leaves, d_outputs))
    outputs = [case.ours(*leaves, impl="cpu") for leaves, _ in calls]
    found: dict[int, list[Tensor]] = {}
    for i in (2, 0, 3, 1):
        leaves, d_outputs = calls[i]
        if i == 3:
            torch.autograd.grad(outputs[i], leaves, d_outputs, create_graph=True)
        found[i] = gradients(outputs[i], leaves, d_outputs)
    for i in range(4):
        assert all(map(torch.equal, found[i], alone[i])), f"call {i}"


@needs_c
@EACH_CELL
def test_saved_tensors_may_be_stored_elsewhere(case: Case) -> None:
    def pack(t: Tensor) -> bytes:
        file = io.BytesIO()
        torch.save(t, file)
        return file.getvalue()

    leaves = case.arguments(SHAPE, torch.float32)
    torch.manual_seed(1)
    plain = case.ours(*leaves, impl="cpu")
    d_outputs = [torch.randn_like(o) for o in plain]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda data: torch.load(io.BytesIO(data), weights_only=False)):
        stored = case.ours(*leaves, impl="cpu")
    for i in range(5):
        buffers.empty(N * i).fill_(math.nan)  # over what the forward has released
    expected = gradients(plain, leaves, d_outputs)
    assert all(map(torch.equal, gradients(stored, leaves, d_outputs), expected))


@needs_c
@EACH_CELL
def test_what_a_user_gets_is_not_overwritten(case: Case) -> None:
    """Outputs and gradients stay as they are through later calls of the same shape."""
    leaves = case.arguments(SHAPE, torch.float32)
    outputs = case.ours(*leaves, impl="cpu")
    given = [*outputs, *gradients(outputs, leaves, [torch.randn_like(o) for o in outputs])]
    copies = [t.detach().clone() for t in given]
    for _ in range(3):
        later = case.ours(*(leaf.detach().clone().requires_grad_() for leaf in leaves), impl="cpu")
        torch.autograd.backward(later, [torch.randn_like(o) for o in later])
    assert all(map(torch.equal, given, copies))
    assert all(isinstance(array, np.ndarray) for array in buffers._kept) and buffers._kept
