"""Which of torch's ways runs a call: ATen's fused recurrence, a loop of our own, or the cell's plain steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastcells.backends.base import Backend, Call, Choice, Gradients, Inputs, PreviousStates, Steps, Trace
from fastcells.backends.cpu import policy, products
from fastcells.backends.torch.aten import OPERATORS
from fastcells.backends.torch.defined import DefinedLoop
from fastcells.backends.torch.gru import GRU_RESET_AFTER_LOOP, GRU_RESET_BEFORE_LOOP
from fastcells.backends.torch.layer_norm import LAYER_NORM_GRU_LOOP, LAYER_NORM_LSTM_LOOP
from fastcells.backends.torch.loop import Loop
from fastcells.backends.torch.lstm import LSTM_LOOP
from fastcells.backends.torch.rnn import RNN_RELU_LOOP, RNN_TANH_LOOP
from fastcells.modes import compiling, mapped, recording
from fastcells.spec import CellSpec, RecurrentWeights, State

LOOPS: dict[str, Loop] = {
    "rnn_tanh": RNN_TANH_LOOP,
    "rnn_relu": RNN_RELU_LOOP,
    "gru": GRU_RESET_AFTER_LOOP,
    "gru_reset_before": GRU_RESET_BEFORE_LOOP,
    "lstm": LSTM_LOOP,
    "layer_norm_gru": LAYER_NORM_GRU_LOOP,
    "layer_norm_lstm": LAYER_NORM_LSTM_LOOP,
}


DEFINED: dict[int, DefinedLoop] = {}  # by the spec's identity: each is kept by its loop
IN_ATEN = frozenset({"proj_size"})


class TorchBackend(Backend):
    """Runs every cell: one without a loop of its own by `CellSpec.step`."""

    name = "torch"
    options = frozenset({"proj_size", *Steps._fields[1:]})
    may_unroll = True

    def obstacle(self, call: Call) -> str | None:
        unknown = sorted(call.options - self.options) if call.options else ()
        return f"there are no steps with {unknown[0]}" if unknown else None

    def choose(self, call: Call, reason: str) -> Choice:
        if call.token_ids:
            return _on_token_ids(call)
        if call.spec.rule is not None:
            return DERIVED
        if call.spec.name not in OPERATORS:
            return NOT_IN_ATEN.get(call.spec.name, NO_SUCH_CELL)
        if call.options:
            for option in Steps._fields[:0:-1]:
                if option in call.options:
                    return NOT_IN_ATEN[option]
            if call.options - IN_ATEN:
                return NO_SUCH_OPTION
        # oneDNN's LSTM layer has no forward-mode derivative.
        lstm = call.spec.name == "lstm"
        if mapped() or (lstm and forward_ad._current_level >= 0):
            return TRANSFORMED
        # Under torch.compile, not torch.export: oneDNN's LSTM layer fails in AOTAutograd.
        return COMPILED_LSTM if lstm and torch.is_grad_enabled() and compiling() else ATEN

    def must_unroll(self, choice: Choice, spec: CellSpec, weights: RecurrentWeights, steps: Steps) -> bool:
        loop = None if spec.rule is None and spec.name not in LOOPS else loop_of(spec)
        if loop is None or weights.w_hr is not None or steps.options - loop.options:
            return True
        return choice is GATHERED_BY_CPU  # a single step: autograd's own way through it is the shorter one

    def project(self, choice: Choice, x: Tensor, w_ih: Tensor, b_ih: Tensor | None) -> Tensor:
        if choice is GATHERED_BY_CPU:
            return products.gather_rows(x, w_ih, b_ih)
        return super().project(choice, x, w_ih, b_ih)

    def forward(self, choice: Choice, spec: CellSpec, inputs: Inputs, save: bool) -> Trace:
        return loop_of(spec).forward(inputs, save)

    def reads_projection(self, spec: CellSpec) -> bool:
        return spec.rule is not None

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
        d_hidden = inputs.steps.zero_past_length(d_hidden)
        return loop_of(spec).backward(inputs, trace, previous, d_hidden, d_last)

    def operands(self, spec: CellSpec, trace: Trace, previous: PreviousStates) -> list[tuple[int, Tensor]]:
        return loop_of(spec).operands(spec.num_gates, trace, previous)


def loop_of(spec: CellSpec) -> Loop:
    """The loop of a built-in cell, or the one that is made of a defined cell's rule."""
    if spec.rule is None:
        return LOOPS[spec.name]
    loop = DEFINED.get(id(spec))
    if loop is None:
        loop = DEFINED[id(spec)] = DefinedLoop(spec)
    return loop


def _on_token_ids(call: Call) -> Choice:
    """The rows' gather and our loop, or what is better for a call that is recorded and for a single step."""
    if (call.options and call.options - IN_ATEN) or call.spec.name not in OPERATORS or mapped():
        return TOKEN_IDS
    if recording() or torch.compiler.is_exporting():
        return ONE_HOT_RECORDED
    if call.T > 1 or call.impl != "auto" or torch.compiler.is_compiling():
        return TOKEN_IDS
    if call.T * call.B * call.w_ih.numel() <= policy.ONE_HOT_PRODUCT:
        return ONE_HOT
    return GATHERED_BY_CPU if products.serves(call.w_ih) else TOKEN_IDS


TORCH = TorchBackend()


def _choice(path: str, reason: str) -> Choice:
    return Choice("torch", path, reason, backend=TORCH)


ATEN = _choice("aten", "ATen's fused recurrence expresses this case")
ONE_HOT = _choice("one-hot", "one step on so few ids costs less through ATen, on their one-hot")
ONE_HOT_RECORDED = _choice("one-hot", "ATen's recurrence is recorded for any number of steps, ours is not")
TOKEN_IDS = _choice("recurrence", "token ids gather rows of W_ih^T, ATen would need the one-hot")
GATHERED_BY_CPU = _choice("recurrence", "one step: C gathers rows of W_ih^T for token ids, torch does the rest")
TRANSFORMED = _choice("recurrence", "transforms look through plain steps, ATen's recurrence hides them")
COMPILED_LSTM = _choice("recurrence", "torch.compile cannot differentiate ATen's LSTM on this device")
NO_SUCH_CELL = _choice("recurrence", "ATen has no such cell")
DERIVED = _choice("recurrence", "a defined cell, derived in torch's operators")
NO_SUCH_OPTION = _choice("recurrence", "ATen has no such option")
NOT_IN_ATEN = {
    "gru_reset_before": _choice("recurrence", "ATen has no reset-before GRU"),
    "resets": _choice("recurrence", "ATen has no resets"),
    "reset_state": _choice("recurrence", "only torch's operators start again from a given state"),
    "recurrent_dropout": _choice("recurrence", "only torch's operators drop units of the recurrence"),
    "zoneout": _choice("recurrence", "only torch's operators know zoneout"),
    "lengths": _choice("recurrence", "ATen takes lengths in packed form only"),
}
