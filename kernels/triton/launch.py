"""What every launcher takes and gives, and the arguments that their kernels share.

`launch_sequence.py`, `launch_split.py` and `launch_step.py` each run a pass over time in their own way: they take one
of the passes below, with a plan, and return its results. All tensors are contiguous and on one device.

A launcher that runs both directions of a layer at once (the Gluon kernels') takes one pass for both: each tensor but
ids, lengths and resets has a leading dimension of 2, in what it returns as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastcells.kernels.triton.plan import Blocks
from fastcells.kernels.triton.rule import UpdateRule


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. Triton's own costs the host a hundred times as much."""
    return -(-a // b)


Arguments = dict[str, Any]  # of a kernel, by name: tensors, sizes, functions, options of the launch


class StepInput(NamedTuple):
    """What a step reads beside the state: a tensor of its own, or the row of a table."""

    x: Tensor  # [T, B, G*H] the input projection; with ids [V, G*H], W_ih^T
    ids: Tensor | None = None  # [T, B] int32 or int64
    bias: Tensor | None = None  # [G*H] b_ih, with ids

    @property
    def steps(self) -> int:
        return self.x.shape[-3] if self.ids is None else self.ids.shape[-2]


class Forward(NamedTuple):
    """What a forward pass returns."""

    hidden: Tensor  # [T, B, H]
    cells: Tensor | None  # [T, B, H], for a cell with a c; of more states [T, states - 1, B, H]
    saved: Tensor | None  # [T, B, num_saved, H]
    last: tuple[Tensor, ...]  # as `Pass.state`


class Backward(NamedTuple):
    """What a backward pass returns."""

    d_x: Tensor  # [T, B, G, H]; d_gates itself where the two are the same
    d_gates: Tensor  # [T, B, G, H]
    d_state: tuple[Tensor, ...]  # as `Pass.state`
    # Of further parameters [programs, E, H], of diagonal recurrent weights [programs, G, H]: float32, to be summed.
    d_extra: Tensor | None = None
    d_w: Tensor | None = None


@dataclass(frozen=True)
class Pass:
    """What a forward and a backward pass both take."""

    rule: UpdateRule
    state: tuple[Tensor, ...]  # initial: h and, of a cell with another state, c, [B, H]; of more [states - 1, B, H]
    w: Tensor  # [G*H, H]; diagonal recurrent weights [G*H], of heads with U hidden columns each [heads*G*U, U]
    lengths: Tensor | None  # [B] int32
    reverse: bool
    precision: str  # of a matmul in float32: Triton's input_precision
    resets: Tensor | None = field(default=None, kw_only=True)  # [T, B] uint8, not 0 where a step starts from zeros
    extra: Tensor | None = field(default=None, kw_only=True)  # [E, H] further parameters

    def arguments(self, hidden: Tensor) -> Arguments:
        """Of every kernel, forward and backward."""
        B, H = self.state[0].shape[-2:]
        return {
            "w_ptr": self.w,
            "resets_ptr": self.resets,
            "h0_ptr": self.state[0],
            "h_ptr": hidden,
            "B": B,
            "H": H,
            "GATES": self.rule.spec.num_gates,
            "STATES": self.rule.spec.num_states,
            "PRECISION": self.precision,
        }

    def extra_arguments(self) -> Arguments:
        """Of every kernel that takes cells with further parameters."""
        return {"extra_ptr": self.extra, "EXTRA": self.rule.spec.num_extra}

    @property
    def heads(self) -> int:
        """Into which the hidden columns are split: 1 where each reads all of them."""
        return 1 if self.w.dim() == 1 else self.state[0].shape[-1] // self.w.shape[-1]

    def head_arguments(self) -> Arguments:
        """Of every kernel that takes heads."""
        return {"UNITS": self.w.shape[-1] if self.heads > 1 else 0}


@dataclass(frozen=True)
class ForwardPass(Pass):
    """What a forward pass takes."""

    x: StepInput
    b: Tensor | None  # [G*H]
    save: bool

    def results(self, hidden: Tensor | None = None) -> Forward:
        """Uninitialized tensors for the results; hidden: where there is one for the outputs already."""
        spec, h0 = self.rule.spec, self.state[0]
        T, (*D, B, H) = self.x.steps, h0.shape
        others = (spec.num_states - 1,) if spec.num_states > 2 else ()
        return Forward(
            h0.new_empty(*D, T, B, H) if hidden is None else hidden,
            h0.new_empty(*D, T, *others, B, H) if spec.num_states > 1 else None,
            h0.new_empty(*D, T, B, spec.num_saved, H) if self.save and spec.num_saved else None,
            tuple(s.new_empty(s.shape) for s in self.state),
        )

    def input_arguments(self, hidden: Tensor) -> Arguments:
        """Of every forward kernel, those that give only the operand of a second product included."""
        return {
            **self.arguments(hidden),
            "x_ptr": self.x.x,
            "ids_ptr": self.x.ids,
            "b_ih_ptr": self.x.bias,
            "b_ptr": self.b,
            "V": 0 if self.x.ids is None else self.x.x.shape[-2],
        }

    def step_arguments(self, out: Forward) -> Arguments:
        """Of every forward kernel that updates the state."""
        return {
            **self.input_arguments(out.hidden),
            "lengths_ptr": self.lengths,
            "c_ptr": out.cells,
            "saved_ptr": out.saved,
            "FORWARD": self.rule.forward,
            "SAVED": self.rule.spec.num_saved,
        }

    def sequence_arguments(self, out: Forward) -> Arguments:
        """Of every forward kernel that runs the whole sequence."""
        return {
            **self.step_arguments(out),
            "c0_ptr": _cell_state(self.state),
            "h_n_ptr": out.last[0],
            "c_n_ptr": _cell_state(out.last),
            "T": self.x.steps,
            "RESET_HIDDEN": self.rule.reset_hidden,
            "REVERSE": self.reverse,
        }


@dataclass(frozen=True)
class BackwardPass(Pass):
    """What a backward pass takes."""

    forward: Forward  # without `last`
    d_hidden: Tensor  # [T, B, H]
    d_last: tuple[Tensor, ...]  # each [B, H]

    def results(self, d_gates: Tensor | None = None) -> Backward:
        """Uninitialized tensors for the results; d_gates: where there is one already."""
        *planes, H = self.d_hidden.shape
        spec = self.rule.spec
        if d_gates is None:
            d_gates = self.d_hidden.new_empty(*planes, spec.num_gates, H)
        d_x = d_gates if spec.same_gradient else self.d_hidden.new_empty(*planes, spec.num_gates, H)
        return Backward(d_x, d_gates, tuple(s.new_empty(s.shape) for s in self.state))

    def extra_gradients(self, programs: int, *, zero: bool = False) -> Tensor | None:
        """Memory for what so many programs each add to the gradients of further parameters; None without these."""
        if self.extra is None:
            return None
        like = self.extra.new_zeros if zero else self.extra.new_empty
        return like((programs, *self.extra.shape), dtype=torch.float32)

    def step_arguments(self, out: Backward) -> Arguments:
        """Of every backward kernel."""
        hidden, cells, saved, _ = self.forward
        return {
            **self.arguments(hidden),
            "lengths_ptr": self.lengths,
            "c0_ptr": _cell_state(self.state),
            "c_ptr": cells,
            "saved_ptr": hidden if saved is None else saved,  # not looked at if nothing is saved
            "d_out_ptr": self.d_hidden,
            "d_x_ptr": None if out.d_x is out.d_gates else out.d_x,
            "d_gates_ptr": out.d_gates,
            "SAVED": self.rule.spec.num_saved,
        }

    def sequence_arguments(self, out: Backward) -> Arguments:
        """Of every backward kernel that runs the whole sequence."""
        return {
            **self.step_arguments(out),
            "d_h_n_ptr": self.d_last[0],
            "d_c_n_ptr": _cell_state(self.d_last),
            "d_h0_ptr": out.d_state[0],
            "d_c0_ptr": _cell_state(out.d_state),
            "T": self.d_hidden.shape[-3],
            "BACKWARD": self.rule.backward,
            "BACKWARD_LAST_GATE": self.rule.backward_last_gate,
            "REVERSE": self.reverse,
        }


def block_arguments(blocks: Blocks) -> Arguments:
    """Of every kernel: a program's tile, and the options of the launch."""
    return {
        "BLOCK_B": blocks.batch,
        "BLOCK_H": blocks.hidden,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
        "maxnreg": blocks.registers,
    }


def num_tiles(blocks: Blocks, state: tuple[Tensor, ...], heads: int = 1) -> tuple[int, int]:
    """How many tiles there are of the batch and of a head's hidden columns."""
    B, H = state[0].shape
    return cdiv(B, blocks.batch), cdiv(H // heads, blocks.hidden)


def elements_in_a_word(w: Tensor) -> int:
    """Two of 16 bits, where a row has an even number of them; else one."""
    return 2 if w.element_size() == 2 and w.shape[1] % 2 == 0 else 1


def _cell_state(state: tuple[Tensor, ...]) -> Tensor | None:
    """c, of a cell that has one."""
    return state[1] if len(state) == 2 else None
