"""The recurrence as one node of torch's autograd, and the loop of differentiable steps behind it.

First derivatives come from a backend's own backward. Where that cannot serve (second derivatives, torch.func, forward
mode, a compiler) the cell's equations run as plain differentiable steps: `unroll`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells.backends.base import Choice, Inputs, PreviousStates, StepInput, Steps, Trace
from fastcells.modes import any_batched, no_autocast
from fastcells.spec import CellSpec, RecurrentWeights, State
from fastcells.token_ids import gather_rows, is_token_ids


def unroll(
    spec: CellSpec, x_proj: Tensor, state: State, weights: RecurrentWeights, steps: Steps
) -> tuple[Tensor, State]:
    """The recurrence as a plain loop of differentiable steps.

    x_proj: [T, B, G*H], the input projection with its bias. Returns the outputs [T, B, H], zero past a row's length,
    and the final state.
    """
    T = len(x_proj)
    mask, resets = steps.mask(T), steps.restarts(T)
    if steps.recurrent_dropout is not None:
        weights = weights._replace(mask=steps.recurrent_dropout)
    fresh: tuple[Any, ...] = steps.reset_state or (0,) * len(state)
    out: list[Tensor] = [x_proj] * T
    for t in steps.order(T):
        if resets is not None:
            state = tuple(torch.where(resets[t], f, s) for f, s in zip(fresh, state, strict=True))
        new = spec.step(x_proj[t], state, weights)
        if steps.zoneout is not None:
            kept = (None if z is None else z[t] for z in steps.zoneout)
            new = tuple(zone_out(*each) for each in zip(kept, state, new, strict=True))
        if mask is not None:
            new = tuple(torch.where(mask[t], n, old) for n, old in zip(new, state, strict=True))
        state = new
        out[t] = state[0] if mask is None else torch.where(mask[t], state[0], 0)
    return torch.stack(out), state


def zone_out(keep: Tensor | None, old: Tensor, new: Tensor) -> Tensor:
    """A state that keeps some of the old one: Krueger et al. 2017 (arXiv 1606.01305), equations 2 to 4."""
    if keep is None:
        return new
    return torch.where(keep, old, new) if keep.dtype == torch.bool else torch.lerp(new, old, keep)


def projection(x: StepInput) -> Tensor:
    """[T, B, G*H], of ids too. Differentiable."""
    return x.x if x.ids is None else gather_rows(x.ids, x.x, x.bias)


def project_again(x: Tensor, w_ih: Tensor, b_ih: Tensor | None) -> Tensor:
    """The projection of x [T, B, I], or of ids [T, B], that was not kept: [T, B, G*H]. Differentiable in any mode."""
    with torch.enable_grad(), no_autocast(w_ih):
        return gather_rows(x, w_ih, b_ih) if is_token_ids(x) else F.linear(x, w_ih, b_ih)


def outputs(trace: Trace, steps: Steps) -> Tensor:
    """What the caller gets: [T, B, H], zero past a row's length."""
    return steps.zero_past_length(trace.hidden) if trace.out is None else trace.out


class Recurrence(torch.autograd.Function):
    """All steps of one layer and direction, dense or on token ids, with the backend's own backward."""

    @staticmethod
    def forward(
        ctx: Any,
        choice: Choice,
        spec: CellSpec,
        reverse: bool,
        lengths: Tensor | None,
        resets: Tensor | None,
        inner: bool,
        x: Tensor,
        ids: Tensor | None,
        b_ih: Tensor | None,
        w_hh: Tensor,
        b_hh: Tensor | None,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        """inner: whether no user gets to see the outputs, so that they may be the states that are saved.

        rest: the initial state, `RecurrentWeights.extra`, and where x is a projection that need not be kept what it
        is of: the layer's input, W_ih and b_ih. Their gradients are not computed here: the projection has them.
        """
        steps = Steps(reverse, lengths, resets)
        given = spec.num_states + len(spec.extra)
        state, extra, source = rest[: spec.num_states], rest[spec.num_states : given], rest[given:]
        inputs = Inputs(StepInput(x, ids, b_ih), state, RecurrentWeights(w_hh, b_hh, extra=extra), steps)
        trace = choice.backend.forward(choice, spec, inputs, save=True)
        ctx.choice, ctx.spec, ctx.reverse = choice, spec, reverse
        # Everything of the user's, so that a change in place is seen.
        ctx.given = len(rest)
        user = (lengths, resets, None if source else x, ids, b_ih, w_hh, b_hh)
        ctx.save_for_backward(*user, *rest, trace.hidden, *trace.saved)
        if inner and lengths is None:
            return trace.hidden, *trace.last
        out = outputs(trace, steps)
        # The caller's, who may change it in place. On a GPU that is an error, as it is with cuDNN, which saves it too.
        return out.clone() if out is trace.hidden and out.device.type == "cpu" else out, *trace.last

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, *d_last: Tensor) -> tuple[Tensor | None, ...]:
        choice: Choice = ctx.choice
        spec: CellSpec = ctx.spec
        lengths, resets, x, ids, b_ih, w_hh, b_hh, *rest = ctx.saved_tensors
        states, given = spec.num_states, spec.num_states + len(spec.extra)
        state, extra, source = tuple(rest[:states]), tuple(rest[states:given]), rest[given : ctx.given]
        hidden, saved = rest[ctx.given], rest[ctx.given + 1 :]
        steps = Steps(ctx.reverse, lengths, resets)
        # create_graph=True, or is_grads_batched=True: buffers cannot serve. A compiled backward is neither.
        if not torch.compiler.is_compiling() and (torch.is_grad_enabled() or any_batched(d_out, *d_last)):

            def unrolled(x: Tensor, b_ih: Tensor, w_hh: Tensor, b_hh: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
                x_proj, weights = projection(StepInput(x, ids, b_ih)), RecurrentWeights(w_hh, b_hh, extra=rest[states:])
                out, last = unroll(spec, x_proj, rest[:states], weights, steps)
                return out, *last

            x = project_again(*source) if source else x
            gradients = differentiable_backward(unrolled, (x, b_ih, w_hh, b_hh, *state, *extra), (d_out, *d_last))
        else:
            needs_x, _, needs_b_ih, needs_w, needs_b = ctx.needs_input_grad[6:11]
            with no_autocast(w_hh):  # backward may be called inside one that forward was not
                inputs = Inputs(StepInput(x, ids, b_ih), state, RecurrentWeights(w_hh, b_hh, extra=extra), steps)
                previous = PreviousStates(hidden, state[0], steps)
                trace = Trace(hidden, (), tuple(saved))
                d = choice.backend.backward(choice, spec, inputs, trace, previous, d_out, d_last)
                w_left = needs_w and d.d_w_hh is None
                d_w, d_b = choice.backend.weight_gradients(spec, trace, previous, d, w_left, needs_b)
                d_w = d_w if w_left else d.d_w_hh
                d_x = d.d_x if ids is None else rows_gradient(d.d_x, ids, x.shape[1]) if needs_x else None
                d_b_ih = d.d_x.sum((0, 1)) if needs_b_ih else None
            gradients = (d_x, d_b_ih, d_w, d_b, *d.d_state, *d.d_extra)
        d_x, d_b_ih, *others = gradients
        return None, None, None, None, None, None, d_x, None, d_b_ih, *others, *(None for _ in source)


def differentiable_backward(
    run: Callable[..., tuple[Tensor, ...]], given: tuple[Tensor | None, ...], d: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of what is given by autograd through `run(*given)`, to be differentiated in turn.

    d: the gradients of what `run` returns.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Fresh views: were one input computed from another, its gradient must not pass through that other one here.
        views = [None if p is None else p.view_as(p) for p in given]
        results = run(*views)
    wanted = [p for p in views if p is not None and p.requires_grad]
    found = iter(torch.autograd.grad(results, wanted, d, create_graph=again, allow_unused=True))
    return tuple(next(found) if p is not None and p.requires_grad else None for p in views)


def rows_gradient(d_x: Tensor, ids: Tensor, size: int) -> Tensor:
    """dW_ih [G*H, I] from d_x [T, B, G*H]: rows of the same id are summed, in an order that depends on the ids only.

    On a GPU torch sorts the ids and sums segments, without atomics; so the sum is the same each time. What is outside
    [0, I) goes to a row of its own, which is dropped.
    """
    known = torch.where((ids >= 0) & (ids < size), ids, size)
    rows = torch.ops.aten.embedding_dense_backward(d_x, known, size + 1, size, False)
    return rows[:size].t().contiguous()  # as W_ih is, and as a gradient is kept anyway
