"""When Triton runs a recurrence, along which path, and how its operators are called.

Triton is imported when a kernel runs for the first time: `import fastcells` works without it.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from fastcells.backends.base import Backend, Call, Choice, Gradients, Inputs, PreviousStates, Trace
from fastcells.kernels.triton import plan
from fastcells.modes import autocast_dtype
from fastcells.spec import CellSpec, State

CELLS = frozenset({"rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm"})  # those with a rule in kernels/triton


class TritonBackend(Backend):
    """The recurrence in Triton: on a GPU, or in Triton's interpreter on a CPU."""

    cells = CELLS
    options = frozenset({"lengths"})
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
        if obstacle is None and self.name == "triton":
            found = _sequence_plan(call)
            obstacle = f"{found}; 'triton-step' has no such limit" if isinstance(found, str) else None
        return obstacle

    def choose(self, call: Call, reason: str) -> Choice:
        found = _sequence_plan(call) if self.name == "triton" else None
        if isinstance(found, plan.Blocks):
            return Choice(self.name, "sequence", f"{reason}; {found.reason}", found, self)
        if isinstance(found, plan.Split):
            return Choice(self.name, "split", f"{reason}; {found.reason}", found, self)
        return Choice(self.name, "step", f"{reason}; one launch a step", None, self)

    def forward(self, choice: Choice, spec: CellSpec, inputs: Inputs, save: bool) -> Trace:
        from fastcells.backends.triton.operators import recurrence_forward

        (x, ids, b_ih), state, (w_hh, b_hh, *_), (reverse, lengths, *_) = inputs
        h0, c0 = _pair(state)
        # Rows of W_ih^T in one piece each: columns of W_ih would be as many memory transactions as there are elements.
        x = x if ids is None else x.t().contiguous()
        hidden, cells, saved, h_n, c_n = recurrence_forward(
            x, h0, c0, w_hh, b_hh, lengths, spec.name, choice.path, reverse, save, ids, b_ih
        )
        return Trace(hidden, (h_n,) if c0 is None else (h_n, c_n), (cells, saved))

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
        from fastcells.backends.triton.operators import recurrence_backward

        _, state, (w_hh, *_), (reverse, lengths, *_) = inputs
        (h0, c0), (cells, saved) = _pair(state), trace.saved
        d_x, d_gates, d_h0, d_c0 = recurrence_backward(
            d_hidden,
            *_pair(d_last),
            h0,
            c0,
            w_hh,
            trace.hidden,
            cells if spec.num_states == 2 else None,
            saved if spec.num_saved else None,
            lengths,
            spec.name,
            choice.path,
            reverse,
        )
        return Gradients(d_x, d_x if spec.same_gradient else d_gates, (d_h0,) if c0 is None else (d_h0, d_c0))

    def operands(self, spec: CellSpec, trace: Trace, previous: PreviousStates) -> list[tuple[int, Tensor]]:
        if spec.name != "gru_reset_before":
            return super().operands(spec, trace, previous)
        saved, H = trace.saved[1], previous.cat.shape[-1]
        assert saved is not None
        return [(2 * H, previous.cat), (H, saved[:, :, 0] * previous.cat)]  # r * h


def _pair(state: State) -> tuple[Tensor, Tensor | None]:
    """(h, c), c being None for a cell without."""
    return (state[0], state[1]) if len(state) == 2 else (state[0], None)


def _sequence_plan(call: Call) -> plan.Blocks | plan.Split | str:
    w_hh = call.w_hh
    dtype = autocast_dtype(w_hh) or w_hh.dtype
    return plan.sequence_plan(
        w_hh.shape[1],
        call.B,
        call.spec.num_gates,
        dtype.itemsize,
        gpu(w_hh.device),
        precision=matmul_precision(dtype, w_hh.device),
    )


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
