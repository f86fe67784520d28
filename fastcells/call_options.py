"""What a call of a layer gives beside input and state: lengths, episodes, and masks that regularise the recurrence."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastcells.backends.base import NOTHING, Steps
from fastcells.checks import check_options
from fastcells.modes import traced, transformed
from fastcells.spec import State
from fastcells.token_ids import ID_DTYPES


class Masks(NamedTuple):
    """What a regularised layer draws for one call, or is given to use: see `draw_masks` of the layers.

    D: 2 if bidirectional, else 1. Each is None where it is not wanted.
    """

    # [num_layers*D, B, H_out] what h is multiplied with ahead of W_hh, the same at each step: 0, or 1 / (1 - p)
    recurrent_dropout: Tensor | None = None
    # [num_layers*D, T, B, H_out] how much of the old h a step keeps: bool, or a number from 0 to 1
    zoneout: Tensor | None = None
    zoneout_cell: Tensor | None = None  # [num_layers*D, T, B, H] the same of an LSTM's c
    weight_dropout: tuple[Tensor, ...] | None = None  # for each layer and direction [G*H, H_out]: factors of W_hh

    def of_rows(self, order: Tensor) -> Masks:
        """The batch in another order, as a PackedSequence has it."""
        dropped, zoneout, zoneout_cell, weights = self
        return Masks(
            None if dropped is None else dropped.index_select(1, order),
            None if zoneout is None else zoneout.index_select(2, order),
            None if zoneout_cell is None else zoneout_cell.index_select(2, order),
            weights,
        )

    def check(self, steps: int, batch: int, weights: list[Tensor], hidden: int, states: int) -> None:
        """Raise RuntimeError unless each has the shape that is said above. weights: W_hh of each row."""
        rows, width = len(weights), weights[0].shape[1] if weights[0].dim() == 2 else hidden
        expected = {
            "recurrent_dropout": (rows, batch, width),
            "zoneout": (rows, steps, batch, width),
            "zoneout_cell": (rows, steps, batch, hidden),
        }
        for name, shape in expected.items():
            mask = getattr(self, name)
            if mask is not None and tuple(mask.shape) != shape:
                raise RuntimeError(f"masks.{name} must be {list(shape)}, got {list(mask.shape)}")
        if self.zoneout_cell is not None and states == 1:
            raise RuntimeError("masks.zoneout_cell is for an LSTM: this cell has no c")
        if self.weight_dropout is not None:
            found, needed = ([list(w.shape) for w in each] for each in (self.weight_dropout, weights))
            if found != needed:
                raise RuntimeError(f"masks.weight_dropout must have the shapes {needed}, got {found}")


class Given(NamedTuple):
    """What the user gives a layer beside input and state."""

    lengths: Any = None
    resets: Tensor | None = None
    reset_state: State | None = None
    masks: Masks | None = None


NOTHING_GIVEN = Given()


class CallOptions(NamedTuple):
    """For all layers and directions of a stack, time first."""

    lengths: Tensor | None = None  # [B] int32, within [0, T]
    resets: Tensor | None = None  # [T, B] bool
    reset_state: State | None = None  # each [num_layers*D, B, H]
    masks: Masks | None = None

    @property
    def names(self) -> frozenset[str]:
        """Those that backends have to support; dropped weights are ordinary ones."""
        return NOTHING if self is NO_OPTIONS else self.steps(0, False, 2).options

    def steps(self, row: int, reverse: bool, states: int) -> Steps:
        """Of one layer and direction, counted through the stack, of a cell with so many states."""
        if self is NO_OPTIONS:
            return BACKWARDS if reverse else FORWARDS
        resets = self.resets
        if resets is not None and reverse:  # the step after an episode's last one, in the order of this walk
            resets = torch.cat([resets[1:], torch.zeros_like(resets[:1])])
        start = None if self.reset_state is None else tuple(s[row] for s in self.reset_state)
        if self.masks is None:
            return Steps(reverse, self.lengths, resets, start)
        dropped, kept = self.masks.recurrent_dropout, (self.masks.zoneout, self.masks.zoneout_cell)
        dropout = None if dropped is None else dropped[row]
        zoneout = None
        if any(m is not None for m in kept):
            more = (None,) * (states - 2)
            zoneout = (*(None if m is None else m[row] for m in kept[:states]), *more)
        return Steps(reverse, self.lengths, resets, start, dropout, zoneout)


NO_OPTIONS = CallOptions()
FORWARDS, BACKWARDS = Steps(False), Steps(True)


def call_options(
    x: Tensor,
    batch_first: bool,
    unbatched: bool,
    lengths: Any,
    resets: Tensor | None,
    reset_state: State | None,
    rows: int,
    masks: Masks | None,
) -> CallOptions:
    """What the user gave, checked and in the order of the kernels.

    x: the batch. lengths: int [B], a list, or of one sequence a number. reset_state: each [rows, H] or [rows, B, H].

    Raises:
        RuntimeError: shapes or dtypes that do not fit.
    """
    ids = x.dtype in ID_DTYPES
    x = x if ids else x[..., 0]
    if batch_first:
        x = x.transpose(0, 1)
    T, B = x.shape
    if lengths is not None:
        lengths = torch.as_tensor(lengths, device=x.device)
        lengths = lengths.unsqueeze(0) if unbatched and lengths.dim() == 0 else lengths
    if resets is not None:
        resets = resets.unsqueeze(-1) if unbatched else resets.transpose(0, 1) if batch_first else resets
    check_options(x.unsqueeze(-1), lengths, resets)
    if lengths is not None:
        lengths = lengths.long().clamp(0, T).to(x.device, torch.int32)
    if reset_state is not None:
        if resets is None:
            raise RuntimeError("reset_state is what a step starts from where `resets` says so: give both")
        reset_state = tuple(_for_each_row(s, rows, B) for s in reset_state)
    return CallOptions(lengths, resets, reset_state, masks)


def lengths_of(mask: Tensor, batch_first: bool, lengths: Any) -> Tensor:
    """How many steps each row has, [B], of a mask as TorchRL passes one.

    mask: bool [T, B] ([B, T] with batch_first, [T] of one sequence), true for the steps that there are, which come
    first in each row; on the CPU that is checked. lengths: what was given beside it, which must be nothing.
    """
    if lengths is not None:
        raise RuntimeError("lengths and mask say the same: give one of them")
    if mask.dtype != torch.bool or mask.dim() not in (1, 2):
        raise RuntimeError(f"mask must be a bool tensor of 1 or 2 dimensions, got {mask.dtype} {list(mask.shape)}")
    time = 1 if batch_first and mask.dim() == 2 else 0
    if mask.device.type == "cpu" and not (traced() or transformed()):
        steps = mask.transpose(0, time)
        if bool((steps[1:] & ~steps[:-1]).any()):
            raise RuntimeError("the steps that mask leaves out must be the last ones of their row")
    return mask.sum(time)


def _for_each_row(state: Tensor, rows: int, batch: int) -> Tensor:
    """[rows, B, H] of a state to start again from."""
    if state.dim() == 2:
        state = state.unsqueeze(1).expand(-1, batch, -1)
    if state.dim() != 3 or state.shape[:2] != (rows, batch):
        raise RuntimeError(
            f"reset_state must be [num_layers*D, H] or [num_layers*D, B, H] with {rows} rows and B = {batch}, "
            f"got {list(state.shape)}"
        )
    return state
