"""When C runs a recurrence on the CPU, and how it is called."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.backends.base import ASKED_FOR, Call, Choice, Gradients, Inputs, PreviousStates, Trace
from fastcells.backends.cpu import defined_library, library, native, policy, products
from fastcells.backends.cpu.defined import defined_cell
from fastcells.backends.kernel_backend import KernelBackend, h_and_c
from fastcells.backends.torch.backend import TORCH
from fastcells.modes import traced
from fastcells.spec import CellSpec, State
from fastcells.spec.recurrent import Heads


class CpuBackend(KernelBackend):
    """The recurrence in C: float32, and bfloat16 where the processor multiplies it."""

    name = "cpu"
    cells = frozenset(native._NUMBERS)
    options = frozenset({"lengths", "resets"})
    dtypes = frozenset({torch.float32, torch.bfloat16})
    devices = frozenset({"cpu"})

    def obstacle(self, call: Call) -> str | None:
        if call.w_hh.device.type != "cpu":
            return f"the weights are on {call.w_hh.device}"
        missing = native.obstacle()
        if missing is not None or call.spec.rule is None:
            bf16 = native.bf16_obstacle() if call.dtype == torch.bfloat16 else None
            return missing or super().obstacle(call) or bf16
        found = defined_library.obstacle(call.spec.key) if traced() else defined_cell(call.spec).obstacle
        return found or self.unsupported(call)

    def advantage(self, call: Call) -> str | None:
        if in_one_call(call):
            found = policy.layer_advantage(native.instruction_set())
            if found is not None:
                return found
        if call.T < policy.FEWEST_STEPS:
            return None
        if call.spec.rule is not None:
            return None if traced() else policy.defined_advantage(call.T, native.instruction_set())
        in_aten = TORCH.choose(call, "").path == "aten"
        if in_aten and call.padding > policy.MOST_PADDING:
            return None
        training, using = call.w_hh.requires_grad and torch.is_grad_enabled(), instructions(call)
        columns = call.w_hh.shape[1]  # H, or P of a projection
        if "proj_size" in call.options:
            return policy.projected_advantage(call.T, call.B, call.H, columns, training=training, instructions=using)
        return policy.advantage(
            call.spec.name, call.T, call.B, columns, training=training, aten=in_aten, instructions=using
        )

    def choose(self, call: Call, reason: str) -> Choice:
        if reason == ASKED_FOR:
            reason = f"{reason}; C with {instructions(call)} instructions"
        return Choice("cpu", "layer" if in_one_call(call) else "cpu", reason, backend=self)

    def project(self, choice: Choice, x: Tensor, w_ih: Tensor, b_ih: Tensor | None) -> Tensor:
        if not x.is_floating_point() and w_ih.dtype == torch.float32:
            return products.gather_rows(x, w_ih, b_ih)
        if x.dtype != w_ih.dtype or not products.multiplies(w_ih.dtype):
            return super().project(choice, x, w_ih, b_ih)
        return products.linear(x, w_ih, b_ih, inner=True)

    def forward(self, choice: Choice, spec: CellSpec, inputs: Inputs, save: bool) -> Trace:
        if spec.rule is not None:
            return defined_library.forward(spec, inputs, save) if traced() else defined_cell(spec).forward(inputs, save)
        (x, *_), state, (w, b, *_), steps = inputs
        reverse, lengths, resets, *_ = steps
        if not traced():
            f = native.forward(spec.name, x, state, w, b, lengths, resets=resets, reverse=reverse, save=save)
            return Trace(f.hidden, f.last, (f.cells, f.saved), f.out)
        out, hidden, cells, saved, *last = library.cpu_forward(
            x, *h_and_c(state), w, b, lengths, resets, spec.name, reverse, save
        )
        kept = (cells if spec.num_states == 2 else None, saved if spec.num_saved else None)
        return Trace(hidden if save else out, tuple(last[: spec.num_states]), kept, out)

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
        if spec.rule is not None:
            if traced():
                return defined_library.backward(spec, inputs, trace, d_hidden, d_last)
            return defined_cell(spec).backward(inputs, trace, d_hidden, d_last)
        _, state, (w, *_), (reverse, lengths, resets, *_) = inputs
        kept = (trace.hidden, *trace.saved)
        if not traced():
            return native.backward(
                spec.name, d_hidden, d_last, state, w, lengths, *kept, resets=resets, reverse=reverse
            )
        d_x, d_gates, *d_state = library.cpu_backward(
            d_hidden, *h_and_c(d_last), *h_and_c(state), w, lengths, resets, *kept, spec.name, reverse
        )
        return Gradients(d_x, d_x if spec.same_gradient else d_gates, tuple(d_state[: spec.num_states]))

    def weight_gradients(
        self,
        spec: CellSpec,
        trace: Trace,
        previous: PreviousStates,
        d: Gradients,
        needs_w: bool,
        needs_b: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        heads = spec.recurrent.heads if isinstance(spec.recurrent, Heads) else 0
        pieces = d.columns()
        if traced() or not needs_w or heads > 1 or not products.weights_in_c(pieces[0], previous.parts[0]):
            return super().weight_gradients(spec, trace, previous, d, needs_w, needs_b)
        parts, operand = [part.flatten(0, 1) for part in previous.parts], d.operand
        if spec.name == "gru_reset_before":
            _, (_, operand) = self.operands(spec, trace, previous)
        if operand is None:
            d_w, d_b = native.weight_gradients(pieces[0], *parts, d_rest=pieces[1] if len(pieces) > 1 else None)
        else:
            rows, H = d.d_x.shape[-1], operand.shape[-1]
            d_w, d_b = pieces[0].new_empty(rows, H), pieces[0].new_empty(rows)
            own = slice(rows - H), slice(rows - H, None)
            for columns, factors in zip(own, (parts, [operand.flatten(0, 1)]), strict=True):
                native.weight_gradients(pieces[0][:, columns], *factors, out=(d_w[columns], d_b[columns]))
        return d_w.unsqueeze(0) if heads else d_w, d_b if needs_b else None


def in_one_call(call: Call) -> bool:
    """Whether one call of C runs a layer and direction, its input projection included: `layer_call`."""
    return (
        call.spec.rule is None
        and call.spec.name in CPU.cells
        and not (call.token_ids or call.options or traced())
        and call.w_hh.is_cpu
        and call.dtype == torch.float32 == call.w_hh.dtype
        and not (call.w_hh.requires_grad and torch.is_grad_enabled())
    )


def instructions(call: Call) -> str:
    """The vector instructions that C uses for a call."""
    return native.bf16_instruction_set() if call.dtype == torch.bfloat16 else native.instruction_set()


CPU = CpuBackend()
