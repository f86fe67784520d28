"""When Triton runs a recurrence, along which path, and how its operators are called.

Triton is imported when a kernel runs for the first time: `import fastcells` works without it.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastcells.backends.base import ASKED_FOR, Call, Choice, Gradients, Inputs, PreviousStates, Trace
from fastcells.backends.kernel_backend import KernelBackend, h_and_c, one_by_one
from fastcells.backends.torch.backend import TORCH
from fastcells.backends.triton import cells, policy
from fastcells.kernels.triton import plan
from fastcells.modes import traced
from fastcells.spec import CellSpec, State
from fastcells.spec.recurrent import DIAGONAL

FEW, MANY = 32, 128  # rows: what decides under torch.compile is whether there are many, not how many
MOST_CANDIDATES = 3  # of a trial: each is compiled, forward and backward, which takes seconds
ONE_LAUNCH = "diagonal recurrent weights run in one launch for the whole sequence, impl='triton'"
INSTALLED = find_spec("triton") is not None  # asked once: torch.compile traces no question to the file system


class Plans(NamedTuple):
    """How both passes of a layer are launched."""

    forward: plan.Plan
    backward: plan.Plan
    precision: str  # `matmul_precision`


class TritonBackend(KernelBackend):
    """The recurrence in Triton: on a GPU, or in Triton's interpreter on a CPU."""

    options = frozenset({"lengths", "resets"})
    dtypes = frozenset({torch.float32, torch.float16, torch.bfloat16})
    devices = frozenset({"cuda"})
    takes_ids = True
    owns_last = True

    def __init__(self, name: str) -> None:
        self.name = name  # "triton", one launch for the sequence, or "triton-step", one for each step

    def cell_obstacle(self, spec: CellSpec) -> str | None:
        return cells.obstacle(spec)

    def obstacle(self, call: Call) -> str | None:
        w_hh = call.w_hh
        if not INSTALLED:
            return "triton is not installed"
        if not w_hh.is_cuda and not (w_hh.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
            return f"the weights are on {w_hh.device}: a GPU is needed, or TRITON_INTERPRET=1 for the interpreter"
        obstacle = super().obstacle(call)
        if obstacle is None and w_hh.numel() == 0:
            obstacle = f"w_hh of shape {list(w_hh.shape)} is empty"
        if obstacle is None:
            found = self._plan(call, backward=False)
            hint = "" if self.name == "triton-step" else "; 'triton-step' has no such limit"
            obstacle = f"{found}{hint}" if isinstance(found, str) else None
        return obstacle

    def advantage(self, call: Call) -> str | None:
        w_hh = call.w_hh
        if not w_hh.is_cuda or call.T < policy.FEWEST_STEPS or self.name != "triton" or torch.version.hip is not None:
            return None
        device = gpu(w_hh.device)
        if device is None or device.capability not in policy.PROVEN or self.obstacle(call) is not None:
            return None
        if "proj_size" in call.options:  # folded into the weights it costs more: only what was measured says more
            return None
        forward = self._plan(call, backward=False)
        backward = self._plan(call, backward=True) if w_hh.requires_grad and torch.is_grad_enabled() else None
        if isinstance(forward, str) or isinstance(backward, str):
            return None
        dtype = str(call.dtype).removeprefix("torch.")
        aten = TORCH.choose(call, "").path == "aten"
        return policy.advantage(call.spec.name, call.T, call.H, dtype, forward, backward, aten=aten)

    def choose(self, call: Call, reason: str) -> Choice:
        forward, backward = (self._plan(call, backward=backward) for backward in (False, True))
        assert not isinstance(forward, str) and not isinstance(backward, str), "the obstacle was not asked for"
        return self._choice(Plans(forward, backward, _precision(call)), reason)

    def candidates(self, call: Call) -> list[Choice]:
        size, device, H = call.dtype.itemsize, call.w_hh.device, call.H
        gates, precision = call.spec.num_gates, _precision(call)
        cell: dict[str, Any] = {"precision": precision, **plan.of_cell(call.spec)}
        if self.name == "triton-step":
            return []  # many launches, as torch's own; it is there for what does not fit the other kernels
        if call.spec.recurrent is DIAGONAL:
            return [self.choose(call, ASKED_FOR)]
        forward, backward = (
            plan.sequence_plans(H, call.B, gates, size, gpu(device), **cell, backward=backward)
            for backward in (False, True)
        )
        if isinstance(forward, str) or isinstance(backward, str):
            return []
        found: list[Choice] = []
        for path in ("split", "sequence"):
            ahead, back = ([p for p in plans if _path(p) == path] for plans in (forward, backward))
            if ahead and back:  # in turn the best of each, and where one has fewer, its last
                rows = itertools.zip_longest(ahead, back)
                pairs = [(f or ahead[-1], b or back[-1]) for f, b in rows]
                found += [self._choice(Plans(f, b, precision), ASKED_FOR) for f, b in pairs[:MOST_CANDIDATES]]
        return found

    def check_fault(self, device: torch.device) -> None:
        fault = sys.modules.get("fastcells.kernels.triton.fault")
        if fault is not None:  # else nothing has run
            fault.raise_fault(device, "a trial")

    def _choice(self, plans: Plans, reason: str) -> Choice:
        forward, backward, _ = plans
        path, variant = _path(forward), f"{forward} {backward}"
        why = "one launch a step" if isinstance(forward, plan.StepBlocks) else forward.reason
        return Choice(self.name, path, f"{reason}; {why}", plans, self, variant)

    def _plan(self, call: Call, *, backward: bool) -> plan.Plan | str:
        """How a pass is launched, or the reason why it cannot be."""
        path = "step" if self.name == "triton-step" else "sequence"
        size, device = call.dtype.itemsize, call.w_hh.device
        B: int = call.B
        if torch.compiler.is_compiling():  # B may be any number, and the operators look up the plan for the one it is
            B = FEW if B <= MANY else 4096
        return plan_for(call.spec, path, B, call.H, size, gpu(device), _precision(call), backward)

    def forward(self, choice: Choice, spec: CellSpec, inputs: Inputs, save: bool) -> Trace:
        from fastcells.backends.triton import operators

        (x, ids, b_ih), state, (w_hh, b_hh, _, extra, _), (reverse, lengths, resets, *_) = inputs
        # Rows of W_ih^T in one piece each: columns of W_ih would be as many memory transactions as there are elements.
        x = x if ids is None else x.t().contiguous()
        given = operators.ForwardArguments(
            x, *h_and_c(state), _rows(w_hh), b_hh, lengths,
            spec.key, choice.path, reverse, save, ids, b_ih, resets, _together(extra),
        )  # fmt: skip
        if not traced():
            plans: Plans = choice.plan
            out = operators.run_forward(operators.forward_pass(given, plans.precision), plans.forward)
            return Trace(out.hidden, _own(spec, *out.last), (out.cells, out.saved))
        hidden, cells, saved, *last = operators.recurrence_forward(*given)
        return Trace(hidden, _own(spec, *last), (cells, saved))

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

        _, state, (w_hh, _, _, extra, _), (reverse, lengths, resets, *_) = inputs
        cells, saved = trace.saved
        given = operators.BackwardArguments(
            d_hidden,
            *h_and_c(d_last),
            *h_and_c(state),
            _rows(w_hh),
            trace.hidden,
            cells if spec.num_states > 1 else None,
            saved if spec.num_saved else None,
            lengths,
            spec.key,
            choice.path,
            reverse,
            resets,
            _together(extra),
        )
        if not traced():
            plans: Plans = choice.plan
            out = operators.run_backward(operators.backward_pass(given, plans.precision), plans.backward)
            d_x, d_gates, d_state, d_extra, d_w = out
            d_x, d_gates = d_x.flatten(2), d_gates.flatten(2)
        else:
            d_x, d_gates, *d_state, d_extra, d_w = operators.recurrence_backward(*given)
            d_gates = d_x if spec.same_gradient else d_gates
        each = d_extra.unbind(0) if extra and d_extra is not None else ()
        d_w_hh = d_w.flatten() if spec.recurrent is DIAGONAL and d_w is not None else None
        return Gradients(d_x, d_gates, one_by_one(spec, *d_state), each, d_w_hh=d_w_hh)


def _rows(w_hh: Tensor) -> Tensor:
    """Of all heads, one after the other."""
    return w_hh.flatten(0, 1) if w_hh.dim() == 3 else w_hh


def _together(extra: tuple[Tensor, ...]) -> Tensor | None:
    """Further parameters as the kernels read them, [E, H]."""
    return torch.stack(extra) if extra else None


def _own(spec: CellSpec, h: Tensor, c: Tensor | None = None) -> State:
    """Final states, each of which is its owner's to change."""
    state = one_by_one(spec, h, c)
    return state if len(state) <= 2 else (h, *(s.clone() for s in state[1:]))


def plan_for(
    spec: CellSpec,
    path: str,
    B: int,
    H: int,
    item_size: int,
    device: plan.Device | None,
    precision: str,
    backward: bool,
) -> plan.Plan | str:
    """How a pass is launched, or the reason why it cannot be.

    path: "step", or another one, of which cell and shape decide. device: None for the interpreter.
    """
    if spec.recurrent is DIAGONAL:
        return ONE_LAUNCH if path == "step" else plan.diagonal_blocks()
    if path == "step":
        return plan.step_blocks(item_size)
    choose = plan.sequence_plan if torch.compiler.is_compiling() else _planned
    return choose(H, B, spec.num_gates, item_size, device, precision=precision, backward=backward, **plan.of_cell(spec))


def _planned(*given: Any, **options: Any) -> plan.Plan | str:
    """`plan.sequence_plan`, asked once: it takes as long as a launch."""
    return _kept(plan.sequence_plan, given, tuple(options.items()))


@lru_cache(4096)
def _kept(choose: Callable[..., plan.Plan | str], given: tuple[Any, ...], options: Any) -> plan.Plan | str:
    return choose(*given, **dict(options))


def _path(found: plan.Plan) -> str:
    if isinstance(found, plan.StepBlocks):
        return "step"
    if isinstance(found, plan.DiagonalBlocks):
        return "diagonal"
    return "split" if isinstance(found, plan.Split) else "sequence"


def _precision(call: Call) -> str:
    return matmul_precision(call.dtype, call.w_hh.device)


def gpu(device: torch.device) -> plan.Device | None:
    """What the plan has to know of it; None for the CPU, where the interpreter runs."""
    if device.type != "cuda":
        return None
    return _of_properties(device) if torch.compiler.is_compiling() else _of_a_device(device)


def _of_properties(device: torch.device) -> plan.Device:
    properties = torch.cuda.get_device_properties(device)
    return plan.Device(10 * properties.major + properties.minor, properties.multi_processor_count)


_of_a_device = cache(_of_properties)


def matmul_precision(dtype: torch.dtype, device: torch.device) -> str:
    """Triton's input_precision for a recurrence's matmuls: tf32 where torch's own switch for RNNs allows it.

    Elsewhere a float32 is taken for the sum of two tf32, and three products of these make one in almost float32's
    precision: "tf32x3". "ieee" has no matrix instructions and spills registers.
    """
    if dtype != torch.float32 or device.type != "cuda":
        return "ieee"
    return "tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "tf32x3"  # type: ignore[attr-defined]


TRITON, TRITON_STEP = TritonBackend("triton"), TritonBackend("triton-step")
