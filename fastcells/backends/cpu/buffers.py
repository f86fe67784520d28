"""Memory for what lives from one forward to its backward, or within a backward, on the CPU.

torch asks the system for large tensors anew each time, and the first touch of each page then costs a page fault: a
third of a training step's time where the kernels are fast. These buffers are kept for the next call instead: MOST
bytes in all, for the life of the process, whatever the shapes have been. Beyond that, memory is torch's to manage.
"""

from __future__ import annotations

import math
import sys
import threading

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1 << 16  # bytes; malloc keeps what is smaller
MOST = 18 << 20  # bytes kept in all: a training step of 35 * 32 tokens and 256 hidden units needs 16 MB
MOST_ARRAYS = 64  # each call looks through them
ALIGNMENT = 64  # a cache line

_lock = threading.Lock()
_kept: list[np.ndarray] = [np.empty(0, np.uint8)]  # the least recently used first
_FREE = sys.getrefcount(_kept[0])  # of an array that nobody else has


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """`torch.empty(shape)` on the CPU, for tensors that no user gets to see: their storage cannot be resized."""
    size = dtype.itemsize * math.prod(shape)
    # Without waiting: who holds the lock may be the code that a signal handler of this thread interrupted, or a thread
    # that this process, a fork, has not got.
    if size < SMALLEST or not _lock.acquire(blocking=False):
        return torch.empty(shape, dtype=dtype, device="cpu")  # not what the process has as defaults
    try:
        tensor = _view(_take(size + ALIGNMENT), size, dtype).view(shape)
    finally:
        _lock.release()
    if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:  # type: ignore[attr-defined]
        tensor.fill_(math.nan)  # as torch.empty does
    return tensor


def _take(size: int) -> np.ndarray:
    """The smallest kept array that is free, large enough and not much too large, or a new one.

    A new one takes the place of the largest free one that was too small for it, if by less than half: where lengths
    change, what a longer batch needs serves the shorter ones too. Then of others, the least recently used first. Those
    in use stay: where a step needs more than MOST, the next step finds at least a part of it again.
    """
    best = short = None
    for index in range(len(_kept)):
        nbytes = _kept[index].nbytes
        if not size <= 2 * nbytes <= 4 * size or sys.getrefcount(_kept[index]) != _FREE:
            continue
        if nbytes >= size:
            best = index if best is None or nbytes < _kept[best].nbytes else best
        else:
            short = index if short is None or nbytes > _kept[short].nbytes else short
    if best is not None:
        _kept.append(_kept.pop(best))
    else:
        if short is not None:
            _kept.pop(short)
        new = np.empty(size, np.uint8)
        if size > MOST:
            return new
        _kept.append(new)
        while len(_kept) > MOST_ARRAYS or sum(array.nbytes for array in _kept) > MOST:
            free = next((i for i in range(len(_kept) - 1) if sys.getrefcount(_kept[i]) == _FREE), None)
            if free is None:
                return _kept.pop()  # the new one
            _kept.pop(free)
    return _kept[-1]


def _view(array: np.ndarray, size: int, dtype: torch.dtype) -> Tensor:
    first = -array.ctypes.data % ALIGNMENT
    return torch.from_numpy(array[first : first + size]).view(dtype)
