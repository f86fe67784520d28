"""The split sequence kernels: programs that exchange the state each step, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from accuracy import rms_error
from shapes import CELLS, EACH_CELL, Case
from torch import Tensor

triton = pytest.importorskip("triton", reason="the kernels are written in Triton")

import triton.language as tl  # noqa: F401  the interpreter looks for it in each module
from concurrent_programs import Concurrent, Deadlock, concurrent_programs

from fastcells.kernels import exchange, launch, launch_split, plan
from fastcells.triton_ops import RULES, recurrence_forward

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="no interpreter with a GPU; tests/test_triton.py runs there"),
]

RNN_TANH, RNN_RELU, GRU, RESET_BEFORE, LSTM = CELLS
EACH_EXCHANGE = pytest.mark.parametrize("name", exchange.EXCHANGES)
BLOCKS = plan.Blocks(batch=16, hidden=16, inner=32, warps=4, stages=1, reason="small, for small H")


@contextmanager
def split(name: str, tiles: int = 2, columns: int = 32, **options: Any) -> Iterator[tuple[Concurrent, Concurrent]]:
    """Have impl="triton" split every shape, and run its programs concurrently."""
    blocks = replace(BLOCKS, hidden=columns)
    with pytest.MonkeyPatch.context() as patch, concurrent_programs(**options) as kernels:
        patch.setattr(plan, "sequence_plan", lambda *_, **__: plan.Split(blocks, tiles, name))
        yield kernels


def arguments(case: Case, T: int, B: int, H: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, states, w_ih, w_hh, b_ih, b_hh, of the size that torch's init gives, as leaves."""
    args = case.arguments((T, B, H, 3), dtype, grad=False)
    args[2 + case.states :] = [a / 2 for a in args[2 + case.states :]]
    return [a.requires_grad_() for a in args]


def run(case: Case, args: list[Tensor], dtype: torch.dtype, cotangents: list[Tensor], **options: Any) -> list[Tensor]:
    """Outputs and all gradients in one dtype."""
    leaves = [a.detach().to(dtype).requires_grad_() for a in args]
    outs = case.ours(*leaves, **options)
    return [*outs, *torch.autograd.grad(outs, leaves, [c.to(dtype) for c in cotangents])]


def largest_excess(case: Case, args: list[Tensor], ours: list[Tensor], d: list[Tensor], **options: Any) -> float:
    """By how much the error of outputs and gradients exceeds what torch's operators in the same dtype may be off by."""
    dtype = args[0].dtype
    truth, theirs = (run(case, args, to, d, impl="torch", **options) for to in (torch.float64, dtype))
    eps = torch.finfo(dtype).eps
    pairs = zip(truth, theirs, ours, strict=True)
    return max(rms_error(mine, exact) - 2 * rms_error(base, exact) - eps for exact, base, mine in pairs)


def excess(case: Case, T: int, B: int, H: int, dtype: torch.dtype = torch.float32, **options: Any) -> float:
    """`largest_excess` of a random problem, within `split`."""
    args = arguments(case, T, B, H, dtype)
    d = [torch.randn(size).to(dtype) for size in ((T, B, H), *[(B, H)] * case.states)]
    return largest_excess(case, args, run(case, args, dtype, d, impl="triton", **options), d, **options)


@pytest.mark.parametrize("seed", [0, 1])
@EACH_EXCHANGE
@EACH_CELL
def test_every_cell(case: Case, name: str, seed: int) -> None:
    """Two batch tiles, two column tiles, each gathered in two parts; B and H fill none of them.

    The rows of the second seed are not aligned, and H is a constant of the kernel.
    """
    options: dict[str, Any] = {"reverse": seed == 1}
    if seed == 1:
        options["lengths"] = torch.randint(4, (20,))
    with split(name, seed=seed) as (forward, backward):
        assert excess(case, 3, 20, 43 if seed == 1 else 40, **options) <= 0
        assert forward.programs == backward.programs == [2 * 2]


@EACH_EXCHANGE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_16_bit(dtype: torch.dtype, name: str) -> None:
    with split(name, columns=16, seed=2):
        assert excess(LSTM, 3, 5, 37, dtype) <= 0


@EACH_EXCHANGE
def test_one_launch_after_another(name: str) -> None:
    """More batch tiles than run at once: each launch takes the next ones."""
    with split(name, tiles=1, columns=16, seed=3) as (forward, backward):
        assert excess(RESET_BEFORE, 3, 20, 24) <= 0
        assert forward.programs == backward.programs == [2, 2]


def test_the_mailboxes_are_outputs_that_an_operator_may_return() -> None:
    """h of a cell with a second product is half of a tensor."""
    rows = 3 * 24
    x, h0, w = torch.randn(2, 5, rows), torch.randn(5, 24), torch.randn(rows, 24)
    arguments = (x, h0, None, w, None, None, "gru_reset_before", "split", False, True)
    with split("poll"):
        torch.library.opcheck(recurrence_forward, arguments, test_utils=("test_schema", "test_faketensor"))


# Broken exchanges, which show that the tests above can fail. `Problem` runs one way at a time, so that the backward
# is judged after a forward that was right.


@triton.jit
def gather_at_once(pointers, mask, published):
    return exchange.poll_gather(pointers, mask, False)


@triton.jit
def gather_every_row(pointers, mask, published):
    return exchange.poll_gather(pointers, mask == mask, published)


@triton.jit
def wait_for_one_less(counter_ptr, arrivals):
    exchange.counter_wait(counter_ptr, arrivals - 1)


@triton.jit
def wait_for_one_more(counter_ptr, arrivals):
    exchange.counter_wait(counter_ptr, arrivals + (arrivals > 0))


COUNTER, POLL = exchange.COUNTER, exchange.POLL
WRONG = {
    "counter, no wait": replace(COUNTER, wait=exchange.poll_wait),
    "counter, one arrival less": replace(COUNTER, wait=wait_for_one_less),
    "poll, no wait": replace(POLL, gather=gather_at_once),
    "poll, no sentinel": replace(POLL, prefilled=False),
}
STUCK = {
    "counter, one arrival more": replace(COUNTER, wait=wait_for_one_more),
    "counter, no arrivals": replace(COUNTER, arrive=exchange.poll_arrive),
    "poll, a row that nobody writes": replace(POLL, gather=gather_every_row),
}


class Problem:
    """One cell's launches, split and by the kernel with one program a batch tile, on the same tensors."""

    def __init__(
        self,
        case: Case,
        dtype: torch.dtype = torch.float32,
        lengths: Tensor | None = None,
        reverse: bool = False,
    ) -> None:
        T, B, H = 4, 5, 40
        self.reverse = reverse
        self.rule = RULES[case.cell.name]
        x, *state, _, w, _, b = (a.detach() for a in case.arguments((T, B, H, self.rule.gates * H), dtype))
        self.x, self.state, self.w, self.b, self.lengths = x, tuple(state), w, b, lengths
        self.d_out, self.d_last = torch.randn_like(x[:, :, :H]).contiguous(), tuple(map(torch.randn_like, state))

    def forward(self, split: bool) -> launch.Forward:
        inputs = (self.rule, launch.Input(self.x), self.state, self.w, self.b, self.lengths)
        options: dict[str, Any] = {"reverse": self.reverse, "save": True, "precision": "ieee"}
        if split:
            return launch_split.split_forward(*inputs, split=plan.Split(BLOCKS, 1, "tried"), **options)
        return launch.sequence_forward(*inputs, blocks=replace(BLOCKS, hidden=64), **options)

    def backward(self, split: bool, forward: launch.Forward) -> launch.Backward:
        inputs = (self.rule, forward, self.d_out, self.d_last, self.state, self.w, self.lengths)
        options: dict[str, Any] = {"reverse": self.reverse, "precision": "ieee"}
        if split:
            return launch_split.split_backward(*inputs, split=plan.Split(BLOCKS, 1, "tried"), **options)
        return launch.sequence_backward(*inputs, blocks=replace(BLOCKS, hidden=64), **options)

    def agrees(self, way: str, tried: exchange.Exchange, seed: int, patience: float = 60.0) -> bool:
        """Whether the split kernel with this exchange computes what the other does, NaN for NaN."""
        forward = self.forward(split=False)
        with pytest.MonkeyPatch.context() as patch, concurrent_programs(seed=seed, patience=patience):
            patch.setitem(exchange.EXCHANGES, "tried", tried)
            if way == "forward":
                out = self.forward(split=True)
                pairs = [(out.hidden, forward.hidden), *zip(out.last, forward.last, strict=True)]
                pairs += [(out.saved, forward.saved)] if forward.saved is not None else []
            else:
                gradients, expected = self.backward(True, forward), self.backward(False, forward)
                pairs = [(gradients.d_x, expected.d_x), (gradients.d_gates, expected.d_gates)]
                pairs += zip(gradients.d_state, expected.d_state, strict=True)
        # The same products, summed in another order; several steps carry what that changes.
        close = {"rtol": 64 * torch.finfo(self.x.dtype).eps, "atol": 64 * torch.finfo(self.x.dtype).eps}
        return all(torch.allclose(a, b, equal_nan=True, **close) for a, b in pairs)


EACH_WAY = pytest.mark.parametrize("way", ["forward", "backward"])


@EACH_WAY
@pytest.mark.parametrize("tried", WRONG)
def test_a_broken_exchange_gives_wrong_numbers(tried: str, way: str) -> None:
    problem = Problem(GRU)
    assert not all(problem.agrees(way, WRONG[tried], seed) for seed in range(5))


@EACH_WAY
@pytest.mark.parametrize("tried", STUCK)
def test_a_broken_exchange_waits_for_ever(tried: str, way: str) -> None:
    # The first step's rows that nobody writes are those of later steps, so that all is within the tensor.
    problem = Problem(GRU, reverse=way == "backward")
    with pytest.raises(Deadlock, match="3 of 3 programs wait"):
        problem.agrees(way, STUCK[tried], seed=0, patience=1.0)


# What a user's tensors may hold: the very bits that say "nobody has written this yet".
UNGUARDED = replace(POLL, publish=exchange.counter_publish)
PLACES = {"forward": ["h0", "x", "w", "b"], "backward": ["d_out", "d_h_n", "w"]}


def with_sentinel(way: str, place: str, dtype: torch.dtype) -> Problem:
    """A problem with the sentinel in one place. relu hands a NaN on as it is, and so does a sequence that has ended."""
    problem = Problem(RNN_RELU, dtype, torch.tensor([4, 0, 2, 4, 1], dtype=torch.int32))
    tensor = {
        "h0": problem.state[0],
        "x": problem.x[1],
        "w": problem.w,
        "b": problem.b,
        "d_out": problem.d_out[1],
        "d_h_n": problem.d_last[0],
    }[place]
    word = torch.int32 if tensor.element_size() == 4 else torch.int16
    tensor.view(word)[..., 1] = -1
    assert tensor.isnan().any()
    return problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("way", "place"), [(way, place) for way, places in PLACES.items() for place in places])
def test_a_users_sentinel_hangs_nothing(way: str, place: str, dtype: torch.dtype) -> None:
    assert with_sentinel(way, place, dtype).agrees(way, POLL, seed=0)


@pytest.mark.parametrize(("way", "place"), [("forward", "h0"), ("forward", "x"), ("backward", "d_out")])
def test_a_users_sentinel_hangs_without_the_guard(way: str, place: str) -> None:
    with pytest.raises(Deadlock):
        with_sentinel(way, place, torch.float32).agrees(way, UNGUARDED, seed=0, patience=1.0)
