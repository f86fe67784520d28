"""What every way to run a cell has in common: the contract `Backend`, and what passes between it and its callers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells.modes import autocast_dtype
from fastcells.spec import CellSpec, RecurrentWeights, State
from fastcells.token_ids import check_range, gather_rows

NOTHING: frozenset[str] = frozenset()
IN_ONE_CALL = ("aten", "one-hot")  # paths by which one operator of ATen's runs a whole stack, its projections included
FOLDED = frozenset({"proj_size"})  # options of an LSTM that projection.py puts around a recurrence without them
# Paths whose programs wait for each other, and so may give up: `KernelFault`.
WAITING = ("split", "resident", "both directions")
ASKED_FOR = "asked for"  # the reason for what `impl=` names


class LayerWeights(NamedTuple):
    """Of one layer and direction, in torch.nn's layout."""

    w_ih: Tensor  # [G*H, I]
    b_ih: Tensor | None  # [G*H]
    recurrent: RecurrentWeights


class StepInput(NamedTuple):
    """What the steps read beside the state: an input projection, or the rows of W_ih^T that token ids name."""

    x: Tensor  # [T, B, G*H] the input projection; with ids W_ih, [G*H, I]
    ids: Tensor | None = None  # [T, B] int32 or int64; one outside [0, I) acts as an all-zero input
    bias: Tensor | None = None  # [G*H] b_ih, with ids


class Steps(NamedTuple):
    """How time is walked. Each field but `reverse` is an option, which a backend has to support to be given it."""

    reverse: bool = False  # from the last step to the first; `out[t]` stays the output at step t
    lengths: Tensor | None = None  # int32 [B], from 0 to T: from this step on a row's state stands still
    resets: Tensor | None = None  # bool [T, B]: true where a step starts from zeros; no matter past a row's length
    reset_state: State | None = None  # each [B, H]: what a step that resets starts from, in place of zeros
    recurrent_dropout: Tensor | None = None  # [B, H], see `RecurrentWeights.mask`
    # For each state [T, B, H], bool or a number from 0 to 1, or None: how much of the old state a step keeps.
    zoneout: tuple[Tensor | None, ...] | None = None

    @property
    def options(self) -> frozenset[str]:
        """The names of the options that are given."""
        given = [name for name, value in zip(self._fields[1:], self[1:], strict=True) if value is not None]
        return frozenset(given) if given else NOTHING

    def order(self, T: int) -> range:
        return range(T - 1, -1, -1) if self.reverse else range(T)

    def mask(self, T: int) -> Tensor | None:
        """bool [T, B, 1], true where a row's sequence has not ended; None where all have T steps."""
        if self.lengths is None:
            return None
        steps = torch.arange(T, device=self.lengths.device, dtype=self.lengths.dtype)
        return (steps.unsqueeze(1) < self.lengths).unsqueeze(-1)

    def restarts(self, T: int) -> Tensor | None:
        """bool [T, B, 1], true where a step of a row that has not ended starts again; None where none does."""
        if self.resets is None:
            return None
        mask, resets = self.mask(T), self.resets.unsqueeze(-1)
        return resets if mask is None else resets & mask

    def zero_past_length(self, t: Tensor) -> Tensor:
        """t [T, B, H], with zeros past each row's length: not a product, what stands there may be NaN."""
        mask = self.mask(len(t))
        return t if mask is None else torch.where(mask, t, 0)


class Inputs(NamedTuple):
    """All that a recurrence is given."""

    x: StepInput
    state: State  # the initial one
    weights: RecurrentWeights
    steps: Steps


class Trace(NamedTuple):
    """What a forward pass over the sequence leaves behind."""

    hidden: Tensor  # [T, B, H] h after each step; a row whose sequence has ended holds its last h
    last: State  # the state after the last step, in memory of its own
    saved: tuple[Any, ...]  # tensors or None: what `Backend.backward` needs; nothing unless asked for
    # [T, B, H] what the caller gets: zero past a row's length, in memory that nobody else reads, since he may change it
    # in place. None where `hidden` has to serve.
    out: Tensor | None = None


class Gradients(NamedTuple):
    d_x: Tensor  # [T, B, G*H] with respect to the input projection
    # [T, B, G*H] with respect to h W_hh^T + b_hh, which gives dW_hh and db_hh; or narrower than d_x, and those of the
    # last gates alone, where d_x has those of the others: see `columns`.
    d_gates: Tensor
    d_state: State  # with respect to the initial state
    # With respect to `RecurrentWeights.extra`, of a cell that has some; None for one that the steps do not read.
    d_extra: tuple[Tensor | None, ...] = ()
    # [T, B, H] what the last gates' rows of W_hh are multiplied with, where the backward has computed it, and not h
    operand: Tensor | None = None
    d_w_hh: Tensor | None = None  # where the backward has computed it, and `weight_gradients` need not

    def columns(self, first: int = 0, end: int | None = None) -> list[Tensor]:
        """With respect to columns of h W_hh^T + b_hh, [T*B, n] each: side by side, in one piece or two."""
        own, split = self.d_gates.flatten(0, 1), self.d_x.shape[-1] - self.d_gates.shape[-1]
        end = split + own.shape[1] if end is None else end
        pieces = [self.d_x.flatten(0, 1)[:, first : min(end, split)]] if first < split else []
        if end > split or not pieces:
            pieces.append(own[:, max(first - split, 0) : end - split])
        return pieces


class PreviousStates:
    """A state before each step: those after the steps moved by one, with the initial one ahead.

    parts: what makes it up in the order of time, [T', B, H] each. Who reads it part by part saves the copy that `cat`,
    [T, B, H], is.
    """

    def __init__(self, after: Tensor, first: Tensor, steps: Steps) -> None:
        """after: [T, B, H] state after each step. first: [B, H]."""
        first = first.unsqueeze(0)
        self.parts: tuple[Tensor, ...] = (after[1:], first) if steps.reverse else (first, after[:-1])
        if steps.resets is not None:
            self.parts = (torch.where(steps.resets.unsqueeze(-1), 0, self.cat),)

    @property
    def cat(self) -> Tensor:
        if len(self.parts) > 1:
            self.parts = (torch.cat(self.parts),)
        return self.parts[0]


@dataclass(frozen=True)
class Choice:
    """What runs: `impl` as the user names it, `path` within it, and why, as text."""

    impl: str
    # torch: "aten", ATen's fused recurrence, "one-hot", the same on the one-hot of token ids, or "recurrence", ours.
    # cpu: "cpu". Triton: "sequence", one program a batch tile, "split", several that exchange the state, "step", or
    # "diagonal", without a matmul.
    # gluon: "resident", weights in registers, or "both directions" of a layer so, in one launch.
    path: str
    reason: str
    plan: Any = field(default=None, repr=False, compare=False)  # the backend's own
    backend: Backend = field(default=None, repr=False, compare=False)  # type: ignore[assignment]
    variant: str = ""  # which of several plans for one call
    directions: int = field(default=1, repr=False)  # 2: of both of a layer at once

    def __str__(self) -> str:
        return f"{self.impl} ({self.path}): {self.reason}"

    @property
    def name(self) -> str:
        """What tells the candidates of a trial apart: "cpu", "triton split 8x8x1 8x16x2"."""
        return f"{self.impl} {self.path} {self.variant}" if self.variant else self.impl


class Call(NamedTuple):
    """One layer and direction: what a choice depends on."""

    impl: str  # as the user names it
    spec: CellSpec
    token_ids: bool
    T: int
    B: int
    w_ih: Tensor  # [G*H, I]
    w_hh: Tensor  # [G*H, H]; with "proj_size" [G*H, P]
    options: frozenset[str] = NOTHING  # `Steps.options`, and "proj_size"
    input_type: type = Tensor
    padding: float = 1.0  # T * B over the number of tokens, of a packed batch
    directions: int = 1  # 2: of a bidirectional layer, whose directions a backend may run at once
    packed: bool = False  # whether its weights are kept packed, which no trial does: the rule decides

    @property
    def H(self) -> int:
        return self.w_ih.shape[0] // self.spec.num_gates

    @property
    def dtype(self) -> torch.dtype:
        """What the recurrence computes in: the weights' dtype, or autocast's."""
        return autocast_dtype(self.w_hh) or self.w_hh.dtype


class Backend(ABC):
    """One way to run cells over time. What it does not list, it declines."""

    name: str  # as in `impl=`
    cells: frozenset[str] = NOTHING  # `CellSpec.name`
    options: frozenset[str] = NOTHING  # of `Call.options`
    dtypes: frozenset[torch.dtype] = frozenset()
    devices: frozenset[str] = NOTHING  # types of devices on which it is there for its speed, and takes part in trials
    takes_ids = False  # whether `forward` reads rows of W_ih by token ids itself
    # Whether final states are tensors of their own that nothing else holds.
    owns_last = False
    # Whether a caller who asked for this backend may get `CellSpec.step` in a plain loop instead, where torch's
    # operators are looked through.
    may_unroll = False

    def obstacle(self, call: Call) -> str | None:
        """Why this backend cannot run a call, or None."""
        return self.cell_obstacle(call.spec) or self.unsupported(call)

    def unsupported(self, call: Call) -> str | None:
        """Why a call's dtype or options cannot be, whatever its cell, or None."""
        if call.dtype not in self.dtypes:
            return f"there is no kernel for {call.dtype}"
        for option in sorted(call.options - self.options - FOLDED):
            return f"there is no kernel for {option}"
        return None

    def cell_obstacle(self, spec: CellSpec) -> str | None:
        """Why this backend cannot run a cell, or None."""
        return None if spec.name in self.cells else f"there is no kernel for {spec.name}"

    def advantage(self, call: Call) -> str | None:
        """Why `impl="auto"` should take this backend for a call that it can run: a measurement; or None."""
        return None

    @abstractmethod
    def choose(self, call: Call, reason: str) -> Choice:
        """The path and the plan for a call that meets no obstacle. reason: ASKED_FOR, or the advantage."""

    def candidates(self, call: Call) -> list[Choice]:
        """What a trial compares for a call that meets no obstacle: `choose`, and other plans that may be faster."""
        return [self.choose(call, ASKED_FOR)]

    def check_fault(self, device: torch.device) -> None:  # noqa: B027  most have nothing that could fault
        """Raise KernelFault if a kernel on the device has given up; the device has done all that it was given."""

    def must_unroll(self, choice: Choice, spec: CellSpec, weights: RecurrentWeights, steps: Steps) -> bool:
        """Whether `forward` does not know this case, and `CellSpec.step` has to run in a plain loop."""
        return False

    def project(self, choice: Choice, x: Tensor, w_ih: Tensor, b_ih: Tensor | None) -> Tensor:
        """`W_ih x + b_ih` for dense x [..., I] or ids [...]: [..., G*H]. Differentiable."""
        if x.is_floating_point():
            return F.linear(x, w_ih, b_ih)
        check_range(x, w_ih.shape[1])
        dtype = autocast_dtype(w_ih)
        if dtype is not None:  # the dtype of the matmul that this stands for
            w_ih, b_ih = w_ih.to(dtype), None if b_ih is None else b_ih.to(dtype)
        return gather_rows(x, w_ih, b_ih)

    @abstractmethod
    def forward(self, choice: Choice, spec: CellSpec, inputs: Inputs, save: bool) -> Trace:
        """All steps, without autograd. save: whether `backward` will follow."""

    def reads_projection(self, spec: CellSpec) -> bool:
        """Whether `backward` reads `inputs.x`; if not, it need not be kept, and may be missing there."""
        return False

    @abstractmethod
    def backward(
        self,
        choice: Choice,
        spec: CellSpec,
        inputs: Inputs,
        trace: Trace,
        previous: PreviousStates,
        d_hidden: Tensor,
        d_last: State,
    ) -> Gradients:
        """The adjoint of `forward`, without autograd.

        trace: what `forward` left behind, without `last` and `out`. previous: the states h before each step.
        d_hidden: [T, B, H]; past a row's length it means nothing. d_last: with respect to the final state.
        """

    def both(self, forward: Choice, reverse: Choice) -> Choice | None:
        """The choice that runs both directions of a layer at once, where that is faster, or None: one after the other.

        Only kernels may offer it, since it never unrolls. forward, reverse: of this backend, for either direction.
        """
        return None

    def forward_both(self, choice: Choice, spec: CellSpec, inputs: Inputs, save: bool) -> Trace:
        """As `forward`, of what `both` has offered: all but ids and lengths has a leading dimension of 2.

        The first direction goes from the first step to the last, whatever `inputs.steps` says, the second back.
        """
        raise NotImplementedError

    def backward_both(
        self, choice: Choice, spec: CellSpec, inputs: Inputs, trace: Trace, d_hidden: Tensor, d_last: State
    ) -> Gradients:
        """The adjoint of `forward_both`. inputs: `x` and the biases are not there."""
        raise NotImplementedError

    def weight_gradients(
        self,
        spec: CellSpec,
        trace: Trace,
        previous: PreviousStates,
        d: Gradients,
        needs_w: bool,
        needs_b: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """dW_hh [G*H, H] and db_hh [G*H], those that are needed: one matmul over all steps."""
        d_w = d_b = None
        if needs_w:
            operands = self.operands(spec, trace, previous)
            if d.operand is not None:
                last = d.operand.shape[-1]
                operands = [(d.d_x.shape[-1] - last, previous.cat), (last, d.operand)]
            parts, first = [], 0
            for rows, h in operands:
                pieces, states = d.columns(first, first + rows), h.flatten(0, 1)
                parts += [spec.recurrent.weight_gradient(piece, states) for piece in pieces]
                first += rows
            d_w = torch.cat(parts, spec.recurrent.gate_dim) if len(parts) > 1 else parts[0]
        if needs_b:
            sums = [piece.sum(0) for piece in d.columns()]
            d_b = torch.cat(sums) if len(sums) > 1 else sums[0]
        return d_w, d_b

    def operands(self, spec: CellSpec, trace: Trace, previous: PreviousStates) -> list[tuple[int, Tensor]]:
        """What W_hh is multiplied with: [T, B, H] each, with the number of W_hh's rows that it is for."""
        return [(spec.num_gates * previous.parts[0].shape[-1], previous.cat)]


class LossGradients(NamedTuple):
    """The losses [N] of rows, and the gradients of their sum, None where not asked for."""

    losses: Tensor
    hidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
