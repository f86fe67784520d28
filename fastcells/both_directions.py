"""Both directions of one layer, where a backend runs them at once: one launch forward, one backward.

What kernels take and return has a leading dimension of 2 then, but for token ids and lengths, which both read. The
weights are stacked within the node of autograd, so that their gradients are the directions' own.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from fastcells.autograd import differentiable_backward, projection, rows_gradient, unroll
from fastcells.backends.base import Choice, Gradients, Inputs, LayerWeights, PreviousStates, StepInput, Steps, Trace
from fastcells.checks import initial_state
from fastcells.modes import any_batched, no_autocast
from fastcells.one_direction import cast, dtype_of_all, must_unroll
from fastcells.spec import CellSpec, RecurrentWeights, State
from fastcells.token_ids import check_range, is_token_ids

# The projection, W_ih, b_ih, W_hh, b_hh, the first direction's before the second's, and the state. Either the
# projection or both W_ih, with ids, are None.
Given = tuple[Tensor | None, ...]
STATE = 9  # where in it the state begins


def run(
    choice: Choice, spec: CellSpec, x: Tensor, state: State, weights: list[LayerWeights], steps: Steps
) -> tuple[Tensor, State]:
    """A layer by the implementation that was chosen for both directions.

    x: [T, B, I], or ids [T, B], zeros past a row's length. state: each [2, B, H]. Returns the outputs [T, B, 2*H],
    zero past a row's length, and the final state, each [2, B, H].

    Raises:
        RuntimeError: a state whose shape or dtype does not fit. IndexError: a token id outside [0, I), on the CPU.
        CannotRun: the implementation does not run under a transform that is active.
    """
    backend, ids = choice.backend, is_token_ids(x)
    for i, w in enumerate(weights):
        initial_state(spec, x, tuple(s[i] for s in state), w)
    dtype = dtype_of_all(choice, spec, x, weights[0])
    if dtype is not None:
        x = x if ids else x.to(dtype)
        weights, state = [cast(w, dtype) for w in weights], tuple(s.to(dtype) for s in state)
    with no_autocast(x) if dtype is not None else contextlib.nullcontext():
        must_unroll(choice, spec, weights[0].recurrent, steps)  # kernels never do: it raises where they cannot run
        token_ids = None if not ids else x if x.dtype in (torch.int32, torch.int64) else x.int()
        recurrent = [w.recurrent for w in weights]
        given = *_given_input(x, weights), *(w.w_hh for w in recurrent), *(w.b_hh for w in recurrent), *state
        if torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in given):
            out, *last = BothDirections.apply(choice, spec, steps.lengths, token_ids, *given)
            return out, tuple(last)
        with torch.no_grad():
            trace = backend.forward_both(choice, spec, _stacked(given, token_ids, steps.lengths), save=False)
        return _side_by_side(trace, steps), trace.last


def together(choices: list[Choice]) -> list[Choice]:
    """Of a layer's directions; where its backend runs both at once, that choice in the place of either."""
    if len(choices) == 2 and choices[0].backend is choices[1].backend:
        both = choices[0].backend.both(*choices)
        if both is not None:
            return [both, both]
    return choices


class BothDirections(torch.autograd.Function):
    """As `Recurrence`, of two directions."""

    @staticmethod
    def forward(
        ctx: Any, choice: Choice, spec: CellSpec, lengths: Tensor | None, ids: Tensor | None, *given: Tensor | None
    ) -> tuple[Tensor, ...]:
        inputs = _stacked(given, ids, lengths)
        trace = choice.backend.forward_both(choice, spec, inputs, save=True)
        ctx.choice, ctx.spec, ctx.given = choice, spec, len(given)
        ctx.save_for_backward(lengths, ids, *given, inputs.weights.w_hh, trace.hidden, *trace.saved)
        return _side_by_side(trace, inputs.steps), *trace.last

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, *d_last: Tensor) -> tuple[Tensor | None, ...]:
        choice: Choice = ctx.choice
        spec: CellSpec = ctx.spec
        lengths, ids, *rest = ctx.saved_tensors
        given, (w_hh, hidden, *saved) = tuple(rest[: ctx.given]), rest[ctx.given :]
        if torch.is_grad_enabled() or any_batched(d_out, *d_last):

            def unrolled(*again: Tensor | None) -> tuple[Tensor, ...]:
                each = [_one_of(i, again, ids, lengths) for i in (0, 1)]
                results = [unroll(spec, projection(one.x), one.state, one.weights, one.steps) for one in each]
                outs, lasts = zip(*results, strict=True)
                return torch.cat(outs, -1), *(torch.stack(s) for s in zip(*lasts, strict=True))

            return None, None, None, None, *differentiable_backward(unrolled, given, (d_out, *d_last))
        needs = ctx.needs_input_grad[4:]
        gradients: list[Tensor | None] = [None] * STATE
        with no_autocast(hidden):  # backward may be called inside one that forward was not
            state = tuple(given[STATE:])
            both = Inputs(StepInput(hidden), state, RecurrentWeights(w_hh), Steps(False, lengths))
            d_hidden = d_out.unflatten(-1, (2, -1)).movedim(-2, 0)
            d = choice.backend.backward_both(choice, spec, both, Trace(hidden, (), tuple(saved)), d_hidden, d_last)
            gradients[0] = d.d_x if needs[0] else None
            for i in (0, 1):
                one, own_d_x = _one_of(i, given, ids, lengths), d.d_x[i]
                trace = Trace(hidden[i], (), tuple(None if s is None else s[i] for s in saved))
                previous = PreviousStates(trace.hidden, one.state[0], one.steps)
                gradients[1 + i] = rows_gradient(own_d_x, ids, one.x.x.shape[1]) if needs[1 + i] else None
                gradients[3 + i] = own_d_x.sum((0, 1)) if needs[3 + i] else None
                gradients[5 + i], gradients[7 + i] = choice.backend.weight_gradients(
                    spec, trace, previous, Gradients(own_d_x, d.d_gates[i], ()), needs[5 + i], needs[7 + i]
                )
        return None, None, None, None, *gradients, *d.d_state


def _given_input(x: Tensor, weights: list[LayerWeights]) -> Given:
    """What `Given` begins with, up to the recurrent weights; a projection in one matmul, and so in one piece."""
    w_ih, b_ih = tuple(w.w_ih for w in weights), tuple(w.b_ih for w in weights)
    if is_token_ids(x):
        check_range(x, w_ih[0].shape[1])
        return None, *w_ih, *b_ih
    rows, stacked, bias = x.flatten(0, 1).expand(2, -1, -1), torch.stack(w_ih), _stacked_or_none(b_ih)
    if stacked.requires_grad:
        stacked.register_hook(
            Tensor.contiguous
        )  # as a parameter's gradient is kept; the transposed one's is transposed
    w = stacked.mT
    both = torch.bmm(rows, w) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, w)
    return both.unflatten(1, x.shape[:2]), None, None, None, None


def _one_of(i: int, given: Given, ids: Tensor | None, lengths: Tensor | None) -> Inputs:
    """One direction's."""
    x_proj, *pairs = given[:STATE]
    w_ih, b_ih, w_hh, b_hh = pairs[i::2]
    x: Any = w_ih if x_proj is None else x_proj[i]
    state = tuple(s[i] for s in given[STATE:] if s is not None)
    return Inputs(StepInput(x, ids, b_ih), state, RecurrentWeights(w_hh, b_hh), Steps(i == 1, lengths))  # type: ignore[arg-type]


def _stacked(given: Given, ids: Tensor | None, lengths: Tensor | None) -> Inputs:
    """Both directions', as `Backend.forward_both` takes them."""
    x_proj, *pairs = given[:STATE]
    w_ih, b_ih, w_hh, b_hh = zip(pairs[::2], pairs[1::2], strict=True)
    # Stacked transposed, as kernels read it.
    x: Any = torch.stack([w.t() for w in w_ih]).mT if x_proj is None else x_proj  # type: ignore[union-attr]
    weights = RecurrentWeights(torch.stack(w_hh), _stacked_or_none(b_hh))  # type: ignore[arg-type]
    return Inputs(StepInput(x, ids, _stacked_or_none(b_ih)), tuple(given[STATE:]), weights, Steps(False, lengths))  # type: ignore[arg-type]


def _stacked_or_none(pair: tuple[Tensor | None, ...]) -> Tensor | None:
    return None if pair[0] is None else torch.stack(pair)  # type: ignore[arg-type]


def _side_by_side(trace: Trace, steps: Steps) -> Tensor:
    """What the caller gets, [T, B, 2*H]: a copy, zero past each row's length."""
    return steps.zero_past_length(torch.cat(trace.hidden.unbind(), -1))
