"""Waits that end: a program that waited in vain sets a word, and the host raises `KernelFault` when it next looks.

Programs of a split kernel wait for each other. Should one never come (a grid that does not run at once, a debugger, a
kernel of another process that holds a multiprocessor), the others stop waiting after PATIENCE polls of one element:
they set the device's fault word, and go on without waiting, with NaN in all that they publish and return.

The word lies in pinned memory of the host, which the device can write too: to look at it costs the host one read of
memory, and the device nothing where nobody waits in vain.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastcells.errors import KernelFault

PATIENCE = 4_000_000  # polls: one takes about 0.5 us through the L2 cache (modelled), so about two seconds

_words: dict[torch.device, Tensor] = {}
told: list[Callable[[torch.device], None]] = []  # each is called with the device, before `KernelFault` is raised


def fault_word(device: torch.device) -> Tensor:
    """int32 [1], 0 until a kernel on this device gives up; the same tensor each time."""
    if device not in _words:
        _words[device] = torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")
    return _words[device]


def raise_own_fault(device: torch.device, what: str) -> None:
    """`raise_fault` after a launch: on a CPU it is over; a GPU's is seen by a later one, for which nobody waits."""
    if device.type == "cpu":
        raise_fault(device, what)


def raise_fault(device: torch.device, what: str) -> None:
    """Raise `KernelFault`, and clear the word, if a kernel on this device gave up; what: the launch that looks.

    Launches run behind the host's back, so the one that raises may be a later one than the one that failed.
    """
    word = fault_word(device).numpy()  # to read it so takes a third of the time of Tensor.item
    if word[0]:
        word[0] = 0
        for listener in told:
            listener(device)
        raise KernelFault(
            f"{what}: on {device}, the programs of an earlier launch of a split kernel waited for each other in vain "
            f"and gave up; what they returned holds NaN. Did they all run at once? impl='torch' does without them"
        )
