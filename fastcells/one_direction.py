"""One layer, one direction: what the layers, the cells and the functional forms share.

x [T, B, I] or ids [T, B] -> input projection (one matmul, or a row gather) -> recurrence -> out [T, B, H]
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from fastcells import projection
from fastcells.autograd import Recurrence, outputs, unroll
from fastcells.backends.base import IN_ONE_CALL, Backend, Choice, Inputs, LayerWeights, StepInput, Steps
from fastcells.backends.cpu import layer_call
from fastcells.backends.torch import aten
from fastcells.checks import initial_state
from fastcells.errors import CannotRun
from fastcells.modes import autocast_dtype, no_autocast, recording, traced, transformed
from fastcells.spec import CellSpec, RecurrentWeights, State
from fastcells.token_ids import check_range, is_token_ids, one_hot

# Under autocast on a CPU torch.nn's GRU adds products in the lower precision to a state that it leaves alone, and
# returns what that gives; so does ours in C, which "auto" may take in its place.
GRUS = frozenset({"gru", "gru_reset_before"})
ONEDNN = torch.backends.mkldnn.is_available()  # asked once: Dynamo cannot trace the question


def run(
    choice: Choice,
    spec: CellSpec,
    x: Tensor,
    state: tuple[Tensor | None, ...],
    weights: LayerWeights,
    steps: Steps,
    projected: bool = False,
    inner: bool = False,
) -> tuple[Tensor, State]:
    """One layer and direction by the implementation that was chosen.

    x: [T, B, I], or ids [T, B]; if `projected` the input projection itself, [T, B, G*H], of which w_ih tells the rows
    alone. state: each [B, H], None for zeros. inner: whether no user gets to see the outputs, and nobody changes them.
    Returns the outputs [T, B, H], zero past a row's length, and the final state.

    Raises:
        RuntimeError: a state whose shape or dtype does not fit. IndexError: a token id outside [0, I), on the CPU.
        CannotRun: the implementation does not run under a transform that is active.
    """
    initial = initial_state(spec, x, state, weights)
    if choice.path in IN_ONE_CALL:
        x = one_hot(x, weights.w_ih.shape[1], weights.w_ih) if choice.path == "one-hot" else x
        return aten.one_direction(spec.name, x, initial, weights, steps.reverse)
    if choice.path == "layer":
        found = _in_c(spec, x, initial, weights, steps)
        if found is not None:
            return found
    backend, ids = choice.backend, is_token_ids(x)
    dtype, state_dtype = dtype_of_all(choice, spec, x, weights), initial[0].dtype
    if dtype is not None:
        x = x if ids else x.to(dtype)
        weights, initial = cast(weights, dtype), tuple(s.to(dtype) for s in initial)
    w_ih, b_ih, recurrent = weights
    mask = steps.mask(len(x))
    if mask is not None:  # past a row's length there may be anything: NaN, ids out of range
        x = torch.where(mask.squeeze(-1) if ids else mask, x, 0)
    with no_autocast(w_ih) if dtype is not None else contextlib.nullcontext():
        source: tuple[Tensor | None, ...] = ()
        unrolled = must_unroll(choice, spec, recurrent, steps)
        folded = recurrent.w_hr is not None and "proj_size" not in backend.options
        if ids and backend.takes_ids and not folded:
            check_range(x, w_ih.shape[1])
            inputs = StepInput(w_ih, x if x.dtype in (torch.int32, torch.int64) else x.int(), b_ih)
        else:
            x_proj = x if projected else backend.project(choice, x, w_ih, b_ih)
            if spec.project is None and not (projected or folded or traced() or backend.reads_projection(spec)):
                source = (x, w_ih, b_ih)  # the projection's own backward keeps them; itself it is three or four times h
            inputs = StepInput(x_proj if spec.project is None else spec.project(x_proj, recurrent))
        if unrolled:
            return unroll(spec, inputs.x, initial, recurrent, steps)
        plain, start = recurrent, initial
        if folded:
            x, start, plain = projection.fold(inputs.x, initial, recurrent, steps)
            inputs = StepInput(x)
        given = (*inputs, plain.w_hh, plain.b_hh, *start, *plain.extra)
        if torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in given):
            out, *states = Recurrence.apply(choice, spec, *steps[:3], inner and not traced(), *given, *source)
            last = tuple(states)
        else:
            with torch.no_grad():  # the loops write into buffers, which autograd would refuse
                trace = backend.forward(choice, spec, Inputs(inputs, start, plain, steps), save=False)
            out, last = outputs(trace, steps), trace.last
        if folded:
            out, last = projection.unfold(out, last, initial[0], recurrent, steps)
        if dtype is not None and choice.impl == "cpu" and spec.name in GRUS:
            returned = torch.promote_types(state_dtype, dtype)
            out, last = out.to(returned), tuple(s.to(returned) for s in last)
        return out, last


def _in_c(spec: CellSpec, x: Tensor, state: State, weights: LayerWeights, steps: Steps) -> tuple[Tensor, State] | None:
    """The layer in one call of C; None where it cannot be."""
    w_ih, b_ih, (w_hh, b_hh, *_) = weights
    if steps.options or traced() or transformed() or (b_ih is None) != (b_hh is None):
        return None
    given = [w_ih, w_hh] if b_ih is None or b_hh is None else [w_ih, w_hh, b_ih, b_hh]
    state = tuple([s.contiguous() for s in state])
    return layer_call.one_direction(spec.name, x, state, given, steps.reverse, torch.is_grad_enabled())


def dtype_of_all(choice: Choice, spec: CellSpec, x: Tensor, weights: LayerWeights) -> torch.dtype | None:
    """The dtype that autocast has the whole layer run in, or None where it casts operator by operator, or is off.

    What torch has as one operator (cuDNN's recurrences, oneDNN's LSTM) runs in the lower precision as a whole, and so
    do kernels. What torch composes of operators is cast operator by operator, and so is ours.
    """
    onednn = spec.name == "lstm" and weights.recurrent.w_hr is None and ONEDNN
    whole = choice.impl != "torch" or x.is_cuda or onednn
    return autocast_dtype(weights.w_ih) if whole else None


def cast(weights: LayerWeights, dtype: torch.dtype) -> LayerWeights:
    """All of them."""
    w_ih, b_ih, (w_hh, b_hh, w_hr, extra, _) = weights
    b_ih, b_hh, w_hr = (None if w is None else w.to(dtype) for w in (b_ih, b_hh, w_hr))
    recurrent = RecurrentWeights(w_hh.to(dtype), b_hh, w_hr, tuple(w.to(dtype) for w in extra))
    return LayerWeights(w_ih.to(dtype), b_ih, recurrent)


def must_unroll(choice: Choice, spec: CellSpec, weights: RecurrentWeights, steps: Steps) -> bool:
    """Whether the recurrence has to run as a plain loop of differentiable steps.

    So it does where the backend knows no other way, and where a caller looks through the operators or changes them,
    since a hand-written backward would hide them.

    Raises:
        CannotRun: a backend of kernels was asked for by name, which has no plain operators to show.
    """
    backend: Backend = choice.backend
    if recording():
        raise CannotRun(
            "this recurrence",
            "torch.jit.trace would record it for as many steps as this input has; torch.compile takes any number, and "
            "what explain() calls 'aten' or 'one-hot' can be traced",
        )
    if torch.compiler.is_compiling():  # a compiler that sees the steps fuses them; a kernel is opaque to it
        return backend.may_unroll or backend.must_unroll(choice, spec, weights, steps)
    if traced() and backend.may_unroll:  # a graph of operators is recorded, which buffers would have no place in
        return True
    if transformed() or autocast_dtype(weights.w_hh) is not None:
        if not backend.may_unroll:
            raise CannotRun(
                "impl='cpu', 'triton', 'triton-step' and 'gluon'",
                "kernels do not run under torch.jit.trace, torch.func transforms or with forward-mode derivatives; "
                "impl='torch' does",
            )
        return True
    return backend.must_unroll(choice, spec, weights, steps)
