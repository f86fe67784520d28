"""The implementations `impl="triton"` (one launch for the sequence) and `impl="triton-step"` (one launch a step)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.kernels import gru, launch, lstm, plan, rnn
from fastcells.kernels.rule import UpdateRule
from fastcells.torch_impl.cell import Gradients, State, TorchCell, Trace
from fastcells.torch_impl.gru import GRU_RESET_AFTER, GRU_RESET_BEFORE
from fastcells.torch_impl.lstm import LSTM
from fastcells.torch_impl.rnn import RNN_RELU, RNN_TANH

RULES: dict[str, tuple[UpdateRule, TorchCell]] = {
    cell.name: (rule, cell)
    for rule, cell in (
        (rnn.RNN_TANH, RNN_TANH),
        (rnn.RNN_RELU, RNN_RELU),
        (gru.GRU_RESET_AFTER, GRU_RESET_AFTER),
        (gru.GRU_RESET_BEFORE, GRU_RESET_BEFORE),
        (lstm.LSTM, LSTM),
    )
}


class TritonCell(TorchCell):
    """A cell whose recurrence runs in Triton; what has to be differentiated further runs in torch operators."""

    plain_operators = False

    def __init__(self, cell: TorchCell, path: str) -> None:
        self.rule, self.plain = RULES[cell.name]
        self.name, self.gates, self.states = cell.name, cell.gates, cell.states
        self.path = path  # "sequence" or "step"

    def step(self, x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None) -> State:
        return self.plain.step(x, state, w_hh, b_hh)

    def forward(
        self, x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None, steps: range, mask: Tensor | None, save: bool
    ) -> Trace:
        run = launch.sequence_forward if self.path == "sequence" else launch.step_forward
        out = run(
            self.rule,
            x.contiguous(),
            tuple(s.contiguous() for s in state),
            w_hh.contiguous(),
            None if b_hh is None else b_hh.contiguous(),
            _lengths(mask),
            reverse=steps.step < 0,
            save=save,
            blocks=self._blocks(state[0]),
            precision=matmul_precision(x),
        )
        return Trace(out.hidden, out.last, tuple(s for s in (out.cells, out.saved) if s is not None))

    def backward(
        self,
        d_hidden: Tensor,
        d_last: State,
        saved: tuple[Tensor, ...],
        hidden: Tensor,
        before: Tensor,
        state: State,
        w_hh: Tensor,
        steps: range,
        mask: Tensor | None,
    ) -> Gradients:
        run = launch.sequence_backward if self.path == "sequence" else launch.step_backward
        cells = saved[0] if self.states == 2 else None
        d_x, d_gates, d_state = run(
            self.rule,
            launch.Forward(hidden, cells, self._gates(saved), ()),
            d_hidden.contiguous(),
            tuple(d.contiguous() for d in d_last),
            tuple(s.contiguous() for s in state),
            w_hh.contiguous(),
            _lengths(mask),
            reverse=steps.step < 0,
            blocks=self._blocks(state[0], backward=True),
            precision=matmul_precision(d_hidden),
        )
        return Gradients(d_x.flatten(2), d_gates.flatten(2), d_state)

    def weight_gradient(self, d_gates: Tensor, before: Tensor, saved: tuple[Tensor, ...]) -> Tensor:
        if self.rule.reset is None:
            return super().weight_gradient(d_gates, before, saved)
        gates = self._gates(saved)
        assert gates is not None
        return self.plain.weight_gradient(d_gates, before, (before, before, gates[:, :, 0] * before))

    def _gates(self, saved: tuple[Tensor, ...]) -> Tensor | None:
        return saved[-1] if self.rule.saved else None

    def _blocks(self, h: Tensor, *, backward: bool = False) -> plan.Blocks:
        size = h.element_size()
        if self.path == "step":
            return plan.step_blocks(size)
        blocks = plan.sequence_blocks(h.shape[1], self.gates, size, capability(h.device), backward=backward)
        assert isinstance(blocks, plan.Blocks), blocks  # dispatch has asked before
        return blocks


def capability(device: torch.device) -> int:
    """Compute capability as plan.py names it: 90 for 9.0. The interpreter gets a large card's."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def matmul_precision(x: Tensor) -> str:
    """Triton's input_precision for matmuls of x: tf32 where torch's own switch for RNNs allows it."""
    if x.dtype != torch.float32 or x.device.type != "cuda":
        return "ieee"
    return "ieee" if torch.backends.cudnn.rnn.fp32_precision == "ieee" else "tf32"  # type: ignore[attr-defined]


def _lengths(mask: Tensor | None) -> Tensor | None:
    """int32 [B] from the mask [T, B, 1]."""
    return None if mask is None else mask.sum((0, 2), dtype=torch.int32)
