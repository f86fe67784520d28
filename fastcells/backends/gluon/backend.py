"""When the Gluon kernels run a recurrence: where they are asked for by name, on a card that they fit.

`"auto"` takes them where they were measured (policy.py), or after a trial on the user's own device. They go beyond
plain Triton, with inline assembly.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch

from fastcells.backends.base import ASKED_FOR, Call, Choice, Gradients, Inputs, PreviousStates, Trace
from fastcells.backends.gluon import policy
from fastcells.backends.kernel_backend import KernelBackend, h_and_c
from fastcells.backends.torch.backend import TORCH
from fastcells.backends.triton import cells
from fastcells.backends.triton.backend import INSTALLED, TRITON, gpu, matmul_precision
from fastcells.kernels.gluon.plan import Resident, pays, resident_plan
from fastcells.modes import traced
from fastcells.spec import CellSpec, State


class Plans(NamedTuple):
    """How both passes of a layer are launched."""

    forward: Resident
    backward: Resident
    precision: str  # `matmul_precision`
    both: tuple[Resident, Resident] | None  # forward and backward of both directions at once


class GluonBackend(KernelBackend):
    """The recurrence with its weights in registers, split over programs that exchange the state each step."""

    name = "gluon"
    options = frozenset({"lengths", "resets"})
    dtypes = frozenset({torch.float32, torch.float16, torch.bfloat16})
    devices = frozenset({"cuda"})
    takes_ids = True
    owns_last = True

    def cell_obstacle(self, spec: CellSpec) -> str | None:
        return cells.gluon_obstacle(spec)

    def obstacle(self, call: Call) -> str | None:
        if not INSTALLED:
            return "triton is not installed"
        if torch.version.hip is not None:
            return "the kernels are written in NVIDIA's instructions"
        if not call.w_hh.is_cuda:
            return f"the weights are on {call.w_hh.device}: an NVIDIA GPU is needed, for Gluon has no interpreter"
        obstacle = super().obstacle(call) or missing()
        if obstacle is None and call.w_hh.numel() == 0:
            obstacle = f"w_hh of shape {list(call.w_hh.shape)} is empty"
        if obstacle is None and traced():
            obstacle = "it has no operator that torch.compile could see; 'triton' has"
        if obstacle is None:
            reason = next((plan for plan in self._plans(call) if isinstance(plan, str)), None)
            obstacle = reason and f"{reason}; 'triton' runs more shapes, 'triton-step' all"
        return obstacle

    def advantage(self, call: Call) -> str | None:
        w = call.w_hh
        if not w.is_cuda or torch.version.hip is not None or "proj_size" in call.options or traced():
            return None
        card = gpu(w.device)
        if card is None or card.capability != policy.CAPABILITY:
            return None
        single = call.dtype == torch.float32
        number_format = matmul_precision(call.dtype, w.device) if single else str(call.dtype).removeprefix("torch.")
        aten = TORCH.choose(call, "").path == "aten"
        return policy.advantage(call.spec.name, call.T, call.B, call.H, number_format, aten=aten)

    def choose(self, call: Call, reason: str) -> Choice:
        forward, backward = self._plans(call)
        assert not isinstance(forward, str) and not isinstance(backward, str), "the obstacle was not asked for"
        precision, both = matmul_precision(call.dtype, call.w_hh.device), None
        if call.directions == 2:
            both = pays((forward, backward), self._plans(call, directions=2))
        plans = Plans(forward, backward, precision, both)
        return Choice(self.name, "resident", f"{reason}; {forward.reason}", plans, self, f"{forward} {backward}")

    def candidates(self, call: Call) -> list[Choice]:
        choice = self.choose(call, ASKED_FOR)
        in_turn = replace(choice, plan=choice.plan._replace(both=None))
        both = self._plans(call, directions=2)
        if call.directions == 1 or isinstance(both[0], str) or isinstance(both[1], str):
            return [in_turn]
        plans, variant = choice.plan._replace(both=(both[0], both[1])), f"at once {both[0]} {both[1]}"
        return [in_turn, replace(choice, plan=plans, variant=variant)]

    def check_fault(self, device: torch.device) -> None:
        TRITON.check_fault(device)  # one word for both

    def both(self, forward: Choice, reverse: Choice) -> Choice | None:
        plans: Plans = forward.plan
        if plans.both is None or plans != reverse.plan:
            return None
        at_once = plans.both[0]
        part = at_once.cycles / (2 * plans.forward.cycles)
        how = f"both directions in one launch, by the model {part:.2f} of the cycles of one after the other"
        both = plans._replace(forward=at_once, backward=plans.both[1], both=None)
        return Choice(self.name, "both directions", f"{forward.reason}; {how}", both, self, directions=2)

    def _plans(self, call: Call, directions: int = 1) -> tuple[Resident | str, Resident | str]:
        """How a forward and a backward pass are launched, or the reason why they cannot be."""
        if directions == 2 and call.options - {"lengths"}:
            return ("a projection and resets are one direction's",) * 2
        dtype, w = call.dtype, call.w_hh
        device = gpu(w.device)
        assert device is not None, "asked for a CPU"
        sizes = call.H, call.B, call.spec.num_gates, dtype.itemsize, device
        precision, two = matmul_precision(dtype, w.device), call.spec.two_products
        options: dict[str, Any] = {"precision": precision, "two_products": two, "directions": directions}
        return resident_plan(*sizes, **options), resident_plan(*sizes, **options, backward=True)

    def forward(self, choice: Choice, spec: CellSpec, inputs: Inputs, save: bool) -> Trace:
        from fastcells.backends.triton import operators
        from fastcells.kernels.gluon.launch import gluon_forward
        from fastcells.kernels.gluon.rules import rule_of

        (x, ids, b_ih), state, (w_hh, b_hh, *_), (reverse, lengths, resets, *_) = inputs
        plans: Plans = choice.plan
        x = x if ids is None else x.mT.contiguous()  # rows in one piece each, as TritonBackend has them
        given = operators.ForwardArguments(
            x, *h_and_c(state), w_hh, b_hh, lengths, spec.key, choice.path, reverse, save, ids, b_ih, resets
        )
        with torch.cuda.device_of(w_hh):
            forward = operators.forward_pass(given, plans.precision, rule_of)
            out = gluon_forward(operators.plain_forward(forward), plans.forward)
        return Trace(out.hidden, out.last, (out.cells, out.saved))

    def backward(
        self,
        choice: Choice,
        spec: CellSpec,
        inputs: Inputs,
        trace: Trace,
        previous: PreviousStates,
        d_hidden: torch.Tensor,
        d_last: State,
    ) -> Gradients:
        return self.backward_both(choice, spec, inputs, trace, d_hidden, d_last)

    def forward_both(self, choice: Choice, spec: CellSpec, inputs: Inputs, save: bool) -> Trace:
        return self.forward(choice, spec, inputs, save)

    def backward_both(
        self,
        choice: Choice,
        spec: CellSpec,
        inputs: Inputs,
        trace: Trace,
        d_hidden: torch.Tensor,
        d_last: State,
    ) -> Gradients:
        from fastcells.backends.triton import operators
        from fastcells.kernels.gluon.launch import gluon_backward
        from fastcells.kernels.gluon.rules import rule_of

        _, state, (w_hh, *_), (reverse, lengths, resets, *_) = inputs
        cells, saved = trace.saved
        plans: Plans = choice.plan
        given = operators.BackwardArguments(
            d_hidden, *h_and_c(d_last), *h_and_c(state), w_hh,
            trace.hidden, cells, saved, lengths, spec.key, choice.path, reverse, resets,
        )  # fmt: skip
        with torch.cuda.device_of(w_hh):
            backward = operators.backward_pass(given, plans.precision, rule_of)
            out = gluon_backward(operators.plain_backward(backward), plans.backward)
        return Gradients(out.d_x.flatten(-2), out.d_gates.flatten(-2), out.d_state)


@cache
def missing() -> str | None:
    """What the installed Triton lacks, or None."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "Gluon has no interpreter, and TRITON_INTERPRET=1 is set"
    import triton

    try:
        from fastcells.kernels.gluon import launch  # noqa: F401
    except (ImportError, AttributeError) as error:
        return f"Triton {triton.__version__} lacks what the kernels need of Gluon: {error}"
    return None


GLUON = GluonBackend()
