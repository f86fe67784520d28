"""Mailboxes of the kernels whose programs exchange something: outputs that are polled until they are written."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def fill_with_sentinel(memory: Tensor) -> None:
    """Set all bits, in one launch: what a reader waits to see overwritten."""
    memory.view(torch.int16 if memory.element_size() == 2 else torch.int32).fill_(-1)


def first_elements(memory: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first elements of a flat tensor, but no view to autograd: what a user gets may be changed in place."""
    return elements(memory, int(memory.storage_offset()), shape, like=memory)


def elements(memory: Tensor, first: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """What lies in a storage, in like's dtype and from its element `first` on: no view, as `first_elements`."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return like.new_empty(0).set_(memory.untyped_storage(), first, shape, strides)
