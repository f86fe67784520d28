"""What is the system's and torch's about AMX: permission, stacks, and what oneDNN reads."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fastcells import functional
from fastcells.backends.cpu import native

BF16 = torch.bfloat16
AMX = native.BF16_INSTRUCTIONS.get("amx_bf16", False)
needs_amx = pytest.mark.skipif(not AMX, reason="this machine has no AMX that Linux would give")

# permitted() tells; product() runs C; small_stack() makes Linux refuse.
START = """
import ctypes, mmap, threading
import torch
from fastcells.backends.cpu import native
libc, ARCH_GET_XCOMP_PERM = ctypes.CDLL(None, use_errno=True), 0x1022
def permitted():
    features = ctypes.c_uint64()
    assert libc.syscall(158, ARCH_GET_XCOMP_PERM, ctypes.byref(features)) == 0
    return features.value >> 18 & 1
d, x = torch.ones(1300, 40, dtype=torch.bfloat16), torch.ones(1300, 33, dtype=torch.bfloat16)
def product():
    d_w, d_b = native.weight_gradients(d, x)
    assert bool((d_w == 1300).all()) and bool((d_b == 1300).all()), d_w
class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
def small_stack():
    memory = ctypes.create_string_buffer(8192)
    assert libc.sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, 8192)), None) == 0
    return memory
"""


def runs(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@needs_amx
def test_the_system_is_asked_by_the_first_call() -> None:
    """An import changes nothing for others: a stack for signals as small as it may be without AMX is taken."""
    runs("assert not permitted() and small_stack() and not permitted()")
    runs("assert not permitted(); product(); assert permitted(); product()")


@needs_amx
def test_where_the_system_refuses_vectors_compute() -> None:
    runs("memory = small_stack(); product(); assert not permitted(); product()")


@pytest.mark.skipif(native.bf16_obstacle() is not None, reason=str(native.bf16_obstacle()))
def test_a_thread_s_stack_may_be_small() -> None:
    runs("""
threading.stack_size(96 << 10)
done = []
thread = threading.Thread(target=lambda: done.append(product()))
thread.start(); thread.join(); assert done
""")


@needs_amx
def test_a_row_by_itself_is_multiplied_by_vectors() -> None:
    names = list(native.BF16_INSTRUCTIONS)
    assert [names[native._position(BF16, batch)] for batch in (1, 2)] == ["avx512_bf16", native.bf16_instruction_set()]
    assert names[native._position(BF16)] == native.bf16_instruction_set()


@pytest.mark.parametrize("impl", ["auto", "torch"])
@pytest.mark.parametrize("T", [1, 3])
def test_gradients_do_not_depend_on_memory_that_nobody_has_written(impl: str, T: int) -> None:
    """The products of a reset-before GRU have rows beside each other's; oneDNN's with AMX read over their ends."""
    H, B, I = 100, 21, 8  # noqa: E741
    for _ in range(5):
        sizes = ((3 * H, I), (3 * H, H), (3 * H,), (3 * H,))
        weights = [(torch.randn(size) * 0.1).to(BF16).requires_grad_() for size in sizes]
        x, h = torch.randn(T, B, I).to(BF16).requires_grad_(), torch.randn(B, H).to(BF16).requires_grad_()
        out, _ = functional.gru(x, h, *weights, reset_after=False, impl=impl)
        kept = [torch.full((n * T,), torch.nan, dtype=BF16) for n in (B * H, 3 * B * H, 2 * B * H) for _ in range(4)]
        del kept  # what is allocated next has been NaN
        gradients = torch.autograd.grad(out.float().sum(), [h, x, *weights])
        assert all(gradient.isfinite().all() for gradient in gradients)
