"""The launchers of the Gluon kernels: they prepare the mailboxes, and launch what runs at once together.

As kernels/triton/launch_split.py, they take a pass over time and a plan, and return the pass's results. Two launches,
whatever T and B, one of which fills the mailboxes; where the mailboxes' rows are wider than H a few more. A pass for
both directions of a layer is launched at once: `state` and all with it then has a leading dimension of 2.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastcells.kernels.gluon.backward import backward_kernel
from fastcells.kernels.gluon.forward import forward_kernel
from fastcells.kernels.gluon.plan import Resident
from fastcells.kernels.gluon.rules import rule_of
from fastcells.kernels.triton import fault
from fastcells.kernels.triton.launch import Arguments, Backward, BackwardPass, Forward, ForwardPass, Pass, cdiv
from fastcells.kernels.triton.mailbox import elements

LINE = 128  # bytes of a cache line
AHEAD = 4  # steps by which the L2 fetches what a step loads: several times as long as the device's memory takes


class Mailboxes:
    """One tensor, so that one launch makes it: the word of who gave up, and in lines behind it mailboxes of a shape."""

    def __init__(self, number: int, shape: tuple[int, ...], H: int, like: Tensor) -> None:
        """shape: of a mailbox, rows of which are as wide as the operands; past column H they hold zeros."""
        self._shape, self._like, size = shape, like, like.element_size()
        self._each = cdiv(math.prod(shape) * size, LINE) * LINE // size  # elements: 16 divides each address
        words = (LINE + number * self._each * size) // 4
        # Every bit is set: what a reader waits to see overwritten.
        self.given_up = torch.full((words,), -1, dtype=torch.int32, device=like.device)
        if shape[-1] > H:
            for i in range(number):
                self[i][..., H:].zero_()

    def __getitem__(self, i: int) -> Tensor:
        first = LINE // self._like.element_size() + i * self._each
        return elements(self.given_up, first, self._shape, self._like)


def gluon_forward(forward: ForwardPass, plan: Resident) -> Forward:
    """The whole sequence, split over programs that exchange the state each step."""
    device, what = forward.w.device, f"gluon_forward of {forward.rule.spec.name}"
    fault.raise_fault(device, what)
    forward = with_own_rule(forward)
    T, (*D, B, H) = forward.x.steps, forward.state[0].shape
    second = forward.rule.reset_hidden is not None
    mailboxes = Mailboxes(2 if second else 1, (*D, T, B, plan.width), H, like=forward.w)
    wide = plan.width > H
    out = forward.results(hidden=None if wide else mailboxes[0])
    forward_kernel[_grid(plan, forward)](
        **{**forward.sequence_arguments(out), "h_ptr": out.hidden if wide else None},
        first_ptr=pad(forward.state[0], (0, plan.width - H)) if wide else forward.state[0],
        mailbox_ptr=mailboxes[0],
        reset_hidden_ptr=mailboxes[1] if second else None,
        zeros_ptr=_zeros(forward, plan.width),
        **_arguments(plan, forward, mailboxes),
    )
    fault.raise_own_fault(device, what)
    return out


def gluon_backward(backward: BackwardPass, plan: Resident) -> Backward:
    """The adjoint of `gluon_forward`, split in the same way; the programs exchange the gates' gradients."""
    device, what = backward.w.device, f"gluon_backward of {backward.rule.spec.name}"
    fault.raise_fault(device, what)
    backward = with_own_rule(backward)
    (*planes, H), gates = backward.d_hidden.shape, backward.rule.spec.num_gates
    mailboxes = Mailboxes(1, (*planes, gates, plan.width), H, like=backward.d_hidden)
    wide = plan.width > H
    out = backward.results(d_gates=None if wide else mailboxes[0])
    backward_kernel[_grid(plan, backward)](
        **{**backward.sequence_arguments(out), "d_gates_ptr": out.d_gates if wide else None},
        mailbox_ptr=mailboxes[0],
        zeros_ptr=_zeros(backward, gates * plan.width),
        **_arguments(plan, backward, mailboxes),
    )
    fault.raise_own_fault(device, what)
    return out


P = TypeVar("P", ForwardPass, BackwardPass)


def with_own_rule(given: P) -> P:
    """A pass with the rule that the Gluon kernels have for its cell, and not plain Triton's."""
    rule = rule_of(given.rule.spec.key)
    return given if given.rule is rule else replace(given, rule=rule)


def _zeros(given: Pass, width: int) -> Tensor | None:
    """What a row reads that starts from zeros, where there are any."""
    return None if given.resets is None else given.w.new_zeros(width)


def _grid(plan: Resident, given: Pass) -> tuple[int, int, int]:
    """Column tiles, groups of programs, never more of them than batch tiles, and directions."""
    *D, B, H = given.state[0].shape
    assert plan.directions == math.prod(D), "the plan says what runs at once"
    return cdiv(H, plan.hidden), min(plan.groups, cdiv(B, plan.batch)), plan.directions


def _arguments(plan: Resident, given: Pass, mailboxes: Mailboxes) -> Arguments:
    """Of both kernels, because they are split."""
    return {
        "given_up_ptr": mailboxes.given_up,
        "fault_ptr": fault.fault_word(given.w.device),
        "patience": fault.PATIENCE,
        "nothing": 0,
        "BLOCK_B": plan.batch,
        "BLOCK_H": plan.hidden,
        "SPLIT": plan.split,
        "BLOCK_K": plan.inner,
        "INNER": plan.operands,
        "DIRECTIONS": plan.directions,
        "AHEAD": 0 if plan.full else AHEAD,
        "num_warps": plan.split,
        "maxnreg": 255,  # left alone, ptxas goes for two programs a multiprocessor, and spills
        # Cooperative: the driver refuses a grid that cannot run at once, where programs would wait for ever.
        "launch_cooperative_grid": True,
    }
