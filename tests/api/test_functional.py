"""The functional forms against the textbook equations: values, every gradient, ragged batches, bad calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcells.autograd import Recurrence, unroll
from fastcells.backends.base import Steps
from fastcells.backends.cpu import native
from fastcells.backends.torch.backend import TOKEN_IDS
from fastcells.dispatch import IMPLEMENTATIONS
from fastcells.spec import RecurrentWeights
from tests.support.accuracy import assert_equal_to_rounding, cotangents, error
from tests.support.shapes import CELLS, EACH_CELL, SHAPES, SMALL, Case, Shape, gradients

pytestmark = pytest.mark.usefixtures("poisoned_memory")

EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)
DIRECTION = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
RAGGED = pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])


def some_lengths(shape: Shape) -> Tensor:
    """One whole sequence, one empty one, and others between, in no order."""
    lengths = torch.randint(shape.T + 1, (shape.B,))
    lengths[0], lengths[-1] = 0, shape.T
    return lengths


def row_by_row(case: Case, args: list[Tensor], lengths: Tensor, reverse: bool) -> tuple[Tensor, ...]:
    """Each sequence of a ragged batch on its own, cut to its length, and padded with zeros afterwards."""
    x, states, weights = args[0], args[1 : 1 + case.states], args[1 + case.states :]
    outs, lasts = [], []
    for b, length in enumerate(lengths.tolist()):
        last = [s[b : b + 1] for s in states]
        out = last[0].new_zeros(0, *last[0].shape)
        if length > 0:
            sequence = x[:length, b : b + 1]
            out, *last = case.textbook(sequence.flip(0) if reverse else sequence, *last, *weights)
        outs.append(nn.functional.pad(out.flip(0) if reverse else out, (0, 0, 0, 0, 0, len(x) - length)))
        lasts.append(last)
    return torch.cat(outs, 1), *(torch.cat(s) for s in zip(*lasts, strict=True))


def assert_same(case: Case, args: list[Tensor], actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Outputs, and the gradients of all arguments for one random cotangent of each output."""
    assert_equal_to_rounding(actual, expected)
    d = cotangents(expected)
    assert_equal_to_rounding(gradients(actual, args, d), gradients(expected, args, d))


@DIRECTION
@RAGGED
@EACH_SHAPE
@EACH_CELL
def test_equals_textbook(case: Case, shape: Shape, ragged: bool, reverse: bool) -> None:
    args = case.arguments(shape)
    lengths = some_lengths(shape) if ragged else torch.full((shape.B,), shape.T)
    actual = case.ours(*args, lengths=lengths if ragged else None, reverse=reverse)
    assert_same(case, args, actual, row_by_row(case, args, lengths, reverse))


@pytest.mark.parametrize("missing", ["h0", "b_ih", "b_hh", "both biases"])
@RAGGED
@EACH_CELL
def test_optional_arguments(case: Case, ragged: bool, missing: str) -> None:
    args = case.arguments(SHAPES[1])
    zero = {"h0": range(1, 1 + case.states), "b_ih": (-2,), "b_hh": (-1,), "both biases": (-2, -1)}[missing]
    given: list[Tensor | None] = list(args)
    for i in zero:
        args[i], given[i] = torch.zeros_like(args[i]), None
    lengths = some_lengths(SHAPES[1]) if ragged else torch.full((SHAPES[1].B,), SHAPES[1].T)
    actual = case.ours(*given, lengths=lengths if ragged else None)
    inputs = [a for a in args if a.requires_grad]
    assert_same(case, inputs, actual, row_by_row(case, args, lengths, reverse=False))


@RAGGED
def test_projection(ragged: bool) -> None:
    x, _, c0, w_ih, _, *biases = CELLS[4].arguments(SHAPES[1])
    h0, w_hh, w_hr = (torch.randn(s, dtype=x.dtype, requires_grad=True) for s in [(5, 3), (28, 3), (3, 7)])
    args = [x, h0, c0, w_ih, w_hh, *biases]
    case = Case("lstm_projection", "lstm", CELLS[4].spec, {"w_hr": w_hr})
    lengths = some_lengths(SHAPES[1]) if ragged else torch.full((5,), 9)
    actual = case.ours(*args, lengths=lengths if ragged else None)
    assert_same(case, [*args, w_hr], actual, row_by_row(case, args, lengths, reverse=False))


@DIRECTION
@EACH_CELL
def test_padding_may_hold_nan(case: Case, reverse: bool) -> None:
    args, lengths = case.arguments(SHAPES[0]), some_lengths(SHAPES[0])
    padding = torch.arange(SHAPES[0].T).unsqueeze(1) >= lengths
    dirty = [args[0].detach().masked_fill(padding.unsqueeze(-1), torch.nan).requires_grad_(), *args[1:]]
    clean_out, dirty_out = (case.ours(*a, lengths=lengths, reverse=reverse) for a in (args, dirty))
    assert_equal_to_rounding(dirty_out, clean_out)
    d = cotangents(clean_out)
    assert_equal_to_rounding(gradients(dirty_out, dirty, d), gradients(clean_out, args, d))


@EACH_CELL
def test_cotangent_of_padding_may_be_nan(case: Case) -> None:
    """These outputs are zero whatever happens, so nothing that arrives there counts."""
    args, lengths = case.arguments(SHAPES[0]), some_lengths(SHAPES[0])
    padding = torch.arange(SHAPES[0].T).unsqueeze(1) >= lengths
    out = case.ours(*args, lengths=lengths)
    d = cotangents(out)
    expected = gradients(case.ours(*args, lengths=lengths), args, d)
    d[0].masked_fill_(padding.unsqueeze(-1), torch.nan)
    assert_equal_to_rounding(gradients(out, args, d), expected)


def test_padding_is_zero_after_an_overflow() -> None:
    """An unbounded cell: the state that a finished sequence holds is infinite, its padding is not."""
    args = [a.detach().abs() * 100 for a in CELLS[1].arguments(Shape(300, 3, 4, 2))]
    out, h_n = CELLS[1].ours(*args, lengths=torch.tensor([300, 250, 200]))
    assert not h_n.isfinite().any()
    assert torch.equal(out[250:, 1:], torch.zeros(50, 2, 4, dtype=out.dtype))


@RAGGED
@EACH_CELL
def test_layout_of_memory_is_free(case: Case, ragged: bool) -> None:
    args, lengths = case.arguments(SHAPES[1]), some_lengths(SHAPES[1]) if ragged else None
    strided = [a.detach().mT.contiguous().mT if a.dim() > 1 else a.detach().repeat_interleave(2)[::2] for a in args]
    assert not any(a.is_contiguous() for a in strided)
    out, other = case.ours(*args, lengths=lengths), case.ours(*(a.requires_grad_() for a in strided), lengths=lengths)
    assert_equal_to_rounding(other, out)
    d = [torch.randn(o.shape[-1], dtype=o.dtype).expand_as(o) for o in out]
    assert_equal_to_rounding(gradients(other, strided, d), gradients(out, args, d))


@RAGGED
@EACH_CELL
def test_large_inputs_stay_finite(case: Case, ragged: bool) -> None:
    args = [(100 * a.detach()).requires_grad_() if i == 0 else a for i, a in enumerate(case.arguments(SHAPES[1]))]
    out = case.ours(*args, lengths=some_lengths(SHAPES[1]) if ragged else None)
    assert all(t.isfinite().all() for t in (*out, *gradients(out, args, cotangents(out))))


def baseline(case: Case, args: list[Tensor]) -> tuple[Tensor, ...]:
    """What torch.nn makes of the same numbers; it has no reset-before GRU, so there the textbook in the same dtype."""
    if case.name == "gru_reset_before":
        return case.textbook(*args)
    x, states, weights = args[0], tuple(s.unsqueeze(0) for s in args[1 : 1 + case.states]), args[1 + case.states :]
    layer = getattr(nn, case.form.upper())(x.shape[-1], states[0].shape[-1], **case.options)
    parameters = dict(zip((name for name, _ in layer.named_parameters()), weights, strict=True))
    out, last = torch.func.functional_call(layer, parameters, (x, states if case.states > 1 else states[0]))
    return out, *(s.squeeze(0) for s in (last if case.states > 1 else (last,)))


@RAGGED
@EACH_CELL
def test_float32_accuracy(case: Case, ragged: bool) -> None:
    shape = Shape(33, 16, 24, 5)
    args = case.arguments(shape, torch.float32)
    exact = [a.detach().double().requires_grad_() for a in args]
    whole = torch.full((shape.B,), shape.T) if ragged else None  # lengths choose our own recurrence over ATen's
    truth, theirs, ours = case.textbook(*exact), baseline(case, args), case.ours(*args, lengths=whole)
    d = cotangents(theirs)
    truth = (*truth, *gradients(truth, exact, [c.double() for c in d]))
    theirs, ours = ((*out, *gradients(out, args, d)) for out in (theirs, ours))
    for t, b, o in zip(truth, theirs, ours, strict=True):
        rounding = torch.finfo(torch.float32).eps * max(1.0, t.abs().max().item())
        assert error(o, t) <= 2 * error(b, t) + rounding


@DIRECTION
@RAGGED
@EACH_SHAPE
@EACH_CELL
def test_backward_by_hand_equals_autograd(case: Case, shape: Shape, ragged: bool, reverse: bool) -> None:
    x, *states, _, w_hh, _, b_hh = case.arguments(shape)
    x_proj = torch.randn(shape.T, shape.B, len(w_hh), dtype=x.dtype, requires_grad=True)
    steps = Steps(reverse, some_lengths(shape).int() if ragged else None)
    by_hand, *last = Recurrence.apply(TOKEN_IDS, case.spec, *steps[:3], False, x_proj, None, None, w_hh, b_hh, *states)
    unrolled, end = unroll(case.spec, x_proj, tuple(states), RecurrentWeights(w_hh, b_hh), steps)
    assert "Recurrence" in type(last[0].grad_fn).__name__
    inputs, d = [x_proj, *states, w_hh, b_hh], cotangents((unrolled, *end))
    actual = (by_hand, *last, *gradients((by_hand, *last), inputs, d))
    expected = (unrolled, *end, *gradients((unrolled, *end), inputs, d))
    for a, e in zip(actual, expected, strict=True):
        # 45 roundings in float64: the same terms, in sums over up to T * B of them.
        assert error(a, e) <= 1e-14 * max(1.0, e.abs().max().item())


@DIRECTION
@RAGGED
@EACH_CELL
def test_derivatives_against_differences(case: Case, ragged: bool, reverse: bool) -> None:
    lengths = torch.tensor([2, 0, 4]) if ragged else None
    args = case.arguments(SMALL)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        return case.ours(*values, lengths=lengths, reverse=reverse)

    assert torch.autograd.gradcheck(function, args)
    assert torch.autograd.gradgradcheck(function, args, fast_mode=True)


@pytest.mark.parametrize("link", ["h0 from w_hh", "x from h0"])
@RAGGED
@EACH_CELL
def test_second_derivatives_equal_textbook(case: Case, ragged: bool, link: str) -> None:
    """One argument computed from another: no gradient may take the way through the other twice."""
    args, results = case.arguments(SMALL), []
    lengths = torch.tensor([2, 4, 3]) if ragged else torch.full((SMALL.B,), SMALL.T)
    for run in (case.ours, None):
        given = list(args)
        if link == "h0 from w_hh":
            given[1] = (args[1] * args[2 + case.states][:1]).tanh()
        else:
            given[0] = args[0] * args[1]
        options = {"lengths": lengths} if ragged else {}
        out = run(*given, **options) if run else row_by_row(case, given, lengths, reverse=False)
        if not results:
            d = cotangents(out)
            v = cotangents(args)
        plain = torch.autograd.grad(out, args, d, retain_graph=True)
        first = torch.autograd.grad(out, args, d, create_graph=True)
        assert_equal_to_rounding(first, plain)
        results.append([*first, *gradients(first, args, v)])
    assert_equal_to_rounding(*results)


@EACH_CELL
def test_batched_gradients(case: Case) -> None:
    """Many cotangents at once: `jacobian(vectorize=True)`, `grad(is_grads_batched=True)`."""
    args = case.arguments(SMALL)
    lengths = torch.tensor([2, 4, 3])
    out = case.ours(*args, lengths=lengths)
    d = [torch.randn(5, *o.shape, dtype=o.dtype) for o in out]
    one_by_one = [gradients(case.ours(*args, lengths=lengths), args, [c[i] for c in d]) for i in range(5)]
    batched = torch.autograd.grad(out, args, d, is_grads_batched=True)
    assert_equal_to_rounding(batched, [torch.stack(g) for g in zip(*one_by_one, strict=True)])


@RAGGED
@EACH_CELL
def test_leaves_inputs_alone_and_repeats_itself(case: Case, ragged: bool) -> None:
    args, lengths = case.arguments(SHAPES[0]), some_lengths(SHAPES[0]) if ragged else None
    before = [a.detach().clone() for a in args]
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        out = case.ours(*args, lengths=lengths)
        d = cotangents(out)
        d_before = [c.clone() for c in d]
        runs.append([*out, *gradients(out, args, d)])
        assert all(torch.equal(a, b) for a, b in zip([*args, *d], [*before, *d_before], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@RAGGED
@EACH_CELL
def test_without_gradients(case: Case, ragged: bool, mode: Callable[[], Any]) -> None:
    args, lengths = case.arguments(SHAPES[1]), some_lengths(SHAPES[1]) if ragged else None
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t), mode():
        out = case.ours(*args, lengths=lengths)
        assert not saved
        assert not any(o.requires_grad for o in out)
        assert_equal_to_rounding(out, case.ours(*args, lengths=lengths))
        value = out[0].clone()
        for last in out[1:]:
            last.fill_(torch.nan)
        assert torch.equal(out[0], value), "the final state lies in the memory of the outputs"


@DIRECTION
@pytest.mark.parametrize("impl", IMPLEMENTATIONS[1:])
@EACH_CELL
def test_a_gradient_past_a_rows_length_is_not_read(case: Case, impl: str, reverse: bool) -> None:
    if impl == "cpu" and native.obstacle() is not None:
        pytest.skip(native.obstacle() or "")
    if impl == "gluon":
        pytest.skip("Gluon has no interpreter")
    if impl.startswith("triton"):
        pytest.importorskip("triton", reason="the kernels are written in Triton")
    lengths = torch.tensor([2, 0, 4])
    args = case.arguments(SMALL, torch.float32)
    outs = case.ours(*args, lengths=lengths, reverse=reverse, impl=impl)
    d = cotangents(outs)
    expected = gradients(outs, args, d)
    past = torch.arange(SMALL.T).unsqueeze(1) >= lengths
    d[0][past] = torch.nan
    outs = case.ours(*args, lengths=lengths, reverse=reverse, impl=impl)
    assert all(torch.equal(a, b) for a, b in zip(gradients(outs, args, d), expected, strict=True))
