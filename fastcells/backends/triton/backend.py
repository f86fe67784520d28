"""When Triton runs a recurrence, along which path, and how its operators are called.

Triton is imported when a kernel runs for the first time: `import fastcells` works without it.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from fastcells.backends.base import Call, Choice, Gradients, Inputs, KernelBackend, PreviousStates, Trace, h_and_c
from fastcells.kernels.triton import plan
from fastcells.modes import traced
from fastcells.spec import SPECS, CellSpec, State

CELLS = frozenset({"rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm"})  # those with a rule in kernels/triton


class Plans(NamedTuple):
    """How both passes of a layer are launched."""

    forward: plan.Plan
    backward: plan.Plan
    precision: str  # `matmul_precision`


class TritonBackend(KernelBackend):
    """The recurrence in Triton: on a GPU, or in Triton's interpreter on a CPU."""

    cells = CELLS
    options = frozenset({"lengths", "resets"})
    dtypes = frozenset({torch.float32, torch.float16, torch.bfloat16})
    takes_ids = True

    def __init__(self, name: str) -> None:
        self.name = name  # "triton", one launch for the sequence, or "triton-step", one for each step

    def obstacle(self, call: Call) -> str | None:
        w_hh = call.w_hh
        if find_spec("triton") is None:
            return "triton is not installed"
        if not w_hh.is_cuda and not (w_hh.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
            return f"the weights are on {w_hh.device}: a GPU is needed, or TRITON_INTERPRET=1 for the interpreter"
        obstacle = super().obstacle(call)
        if obstacle is None and w_hh.numel() == 0:
            obstacle = f"w_hh of shape {list(w_hh.shape)} is empty"
        if obstacle is None:
            found = self._plan(call, backward=False)
            obstacle = f"{found}; 'triton-step' has no such limit" if isinstance(found, str) else None
        return obstacle

    def choose(self, call: Call, reason: str) -> Choice:
        forward, backward = (self._plan(call, backward=backward) for backward in (False, True))
        assert not isinstance(forward, str) and not isinstance(backward, str), "the obstacle was not asked for"
        plans = Plans(forward, backward, _precision(call))
        if isinstance(forward, plan.StepBlocks):
            return Choice(self.name, "step", f"{reason}; one launch a step", plans, self)
        path = "split" if isinstance(forward, plan.Split) else "sequence"
        return Choice(self.name, path, f"{reason}; {forward.reason}", plans, self)

    def _plan(self, call: Call, *, backward: bool) -> plan.Plan | str:
        """How a pass is launched, or the reason why it cannot be."""
        path = "step" if self.name == "triton-step" else "sequence"
        size, device = call.dtype.itemsize, call.w_hh.device
        return plan_for(call.spec.name, path, call.B, call.H, size, gpu(device), _precision(call), backward)

    def forward(self, choice: Choice, spec: CellSpec, inputs: Inputs, save: bool) -> Trace:
        from fastcells.backends.triton import operators

        (x, ids, b_ih), state, (w_hh, b_hh, *_), (reverse, lengths, resets, *_) = inputs
        # Rows of W_ih^T in one piece each: columns of W_ih would be as many memory transactions as there are elements.
        x = x if ids is None else x.t().contiguous()
        given = operators.ForwardArguments(
            x, *h_and_c(state), w_hh, b_hh, lengths, spec.name, choice.path, reverse, save, ids, b_ih, resets
        )
        if not traced():
            plans: Plans = choice.plan
            out = operators.run_forward(operators.forward_pass(given, plans.precision), plans.forward)
            return Trace(out.hidden, out.last, (out.cells, out.saved))
        hidden, cells, saved, *last = operators.recurrence_forward(*given)
        return Trace(hidden, tuple(last[: spec.num_states]), (cells, saved))

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
        from fastcells.backends.triton import operators

        _, state, (w_hh, *_), (reverse, lengths, resets, *_) = inputs
        cells, saved = trace.saved
        given = operators.BackwardArguments(
            d_hidden,
            *h_and_c(d_last),
            *h_and_c(state),
            w_hh,
            trace.hidden,
            cells if spec.num_states == 2 else None,
            saved if spec.num_saved else None,
            lengths,
            spec.name,
            choice.path,
            reverse,
            resets,
        )
        if not traced():
            plans: Plans = choice.plan
            out = operators.run_backward(operators.backward_pass(given, plans.precision), plans.backward)
            return Gradients(out.d_x.flatten(2), out.d_gates.flatten(2), out.d_state)
        d_x, d_gates, *d_state = operators.recurrence_backward(*given)
        return Gradients(d_x, d_x if spec.same_gradient else d_gates, tuple(d_state[: spec.num_states]))


def plan_for(
    cell: str, path: str, B: int, H: int, item_size: int, device: plan.Device | None, precision: str, backward: bool
) -> plan.Plan | str:
    """How a pass is launched, or the reason why it cannot be.

    path: "step", or "sequence" or "split", of which the shape decides. device: None for the interpreter.
    """
    if path == "step":
        return plan.step_blocks(item_size)
    gates = SPECS[cell].num_gates
    return plan.sequence_plan(H, B, gates, item_size, device, precision=precision, backward=backward)


def _precision(call: Call) -> str:
    return matmul_precision(call.dtype, call.w_hh.device)


def gpu(device: torch.device) -> plan.Device | None:
    """What the plan has to know of it; None for the CPU, where the interpreter runs."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return plan.Device(10 * properties.major + properties.minor, properties.multi_processor_count)


def matmul_precision(dtype: torch.dtype, device: torch.device) -> str:
    """Triton's input_precision for a recurrence's matmuls: tf32 where torch's own switch for RNNs allows it.

    Elsewhere a float32 is taken for the sum of two tf32, and three products of these make one in almost float32's
    precision: "tf32x3". "ieee" has no matrix instructions and spills registers.
    """
    if dtype != torch.float32 or device.type != "cuda":
        return "ieee"
    return "tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "tf32x3"  # type: ignore[attr-defined]


TRITON, TRITON_STEP = TritonBackend("triton"), TritonBackend("triton-step")
