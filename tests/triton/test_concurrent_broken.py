"""Broken exchanges, walks and guards of the split sequence kernels, each of which is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcells.backends.triton.operators import run_backward, run_forward
from fastcells.kernels.triton import exchange, launch, launch_split, plan
from fastcells.kernels.triton.rules import RULES
from tests.support.concurrent_programs import Deadlock, concurrent_programs
from tests.support.edited_kernels import edited
from tests.support.shapes import CELLS, Case
from tests.support.split_programs import BLOCKS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="no interpreter with a GPU; test_triton.py runs there"),
]

RNN_TANH, RNN_RELU, GRU, RESET_BEFORE, LSTM = CELLS


@triton.jit
def gather_at_once(pointers, masks, published, patience, fault_ptr):
    return exchange.poll_gather(pointers, masks, False, patience, fault_ptr)


@triton.jit
def gather_every_row(pointers, masks, published, patience, fault_ptr):
    every = ()
    for i in tl.static_range(len(masks)):
        every += (masks[i] == masks[i],)
    return exchange.poll_gather(pointers, every, published, patience, fault_ptr)


@triton.jit
def wait_for_one_less(counter_ptr, arrivals, patience, fault_ptr):
    return exchange.counter_wait(counter_ptr, arrivals - 1, patience, fault_ptr)


@triton.jit
def wait_for_one_more(counter_ptr, arrivals, patience, fault_ptr):
    return exchange.counter_wait(counter_ptr, arrivals + (arrivals > 0), patience, fault_ptr)


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
PAUSE = 3e-4
PLANS = {
    True: plan.Split(BLOCKS, 1, "tried"),
    False: replace(BLOCKS, hidden=64),
}  # of a `Problem`, by whether it splits


class Problem:
    """One cell's launches, split and by the kernel with one program a batch tile, on the same tensors."""

    def __init__(
        self,
        case: Case,
        dtype: torch.dtype = torch.float32,
        lengths: Tensor | None = None,
        reverse: bool = False,
        B: int = 5,
    ) -> None:
        T, H = 4, 40
        self.reverse = reverse
        self.rule = RULES[case.spec.name]
        x, *state, _, w, _, b = (a.detach() for a in case.arguments((T, B, H, self.rule.spec.num_gates * H), dtype))
        self.x, self.state, self.w, self.b, self.lengths = x, tuple(state), w, b, lengths
        self.d_out, self.d_last = torch.randn_like(x[:, :, :H]).contiguous(), tuple(map(torch.randn_like, state))

    @property
    def given(self) -> tuple[Any, ...]:
        """What both passes take."""
        return self.rule, self.state, self.w, self.lengths, self.reverse, "ieee"

    def forward(self, split: bool) -> launch.Forward:
        given = launch.ForwardPass(*self.given, launch.StepInput(self.x), self.b, save=True)
        return run_forward(given, PLANS[split])

    def backward(self, split: bool, forward: launch.Forward) -> launch.Backward:
        return run_backward(launch.BackwardPass(*self.given, forward, self.d_out, self.d_last), PLANS[split])

    def agrees(
        self, way: str, tried: exchange.Exchange, seed: int, patience: float = 60.0, pause: float = PAUSE
    ) -> bool:
        """Whether the split kernel with this exchange computes what the other does, NaN for NaN.

        pause: seconds that a program waits at most before each load and store.
        """
        forward = self.forward(split=False)
        with pytest.MonkeyPatch.context() as patch, concurrent_programs(seed=seed, patience=patience, pause=pause):
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
    """Seen in one of a few runs: a race shows only where programs overlap.

    On a busy core they take turns for longer than they pause, so that later runs pause longer.
    """
    problem = Problem(GRU, B=20)
    assert not all(problem.agrees(way, WRONG[tried], seed, pause=PAUSE * 2 ** min(seed, 5)) for seed in range(10))


@EACH_WAY
@pytest.mark.parametrize("tried", STUCK)
def test_a_broken_exchange_waits_for_ever(tried: str, way: str) -> None:
    # The first step's rows that nobody writes are those of later steps, so that all is within the tensor.
    problem = Problem(GRU, reverse=way == "backward", B=20)
    with pytest.raises(Deadlock, match="3 of 3 programs wait"):
        problem.agrees(way, STUCK[tried], seed=0, patience=1.0)


# Broken walks over the batch tiles: 3 of them, the last one ragged, and one group of 3 programs. Some of the faults are
# in the kernels' text.
START, END, OWN_COUNTER = "tl.program_id(1), ", "tl.cdiv(B, BLOCK_B), tl.num", "counter_ptr + batch_tile * 32"
WRONG_WALKS = {
    "counter, one for all tiles": (COUNTER, OWN_COUNTER, "counter_ptr"),
    "counter, a tile skipped": (COUNTER, START, "tl.program_id(1) + 1, "),
    "poll, no ragged tile": (POLL, END, "B // BLOCK_B, tl.num"),
}
STUCK_WALKS = {
    "counter, one program skips a tile": (COUNTER, START, "tl.program_id(1) + (tl.program_id(0) == 1), "),
    "poll, one program stops a tile early": (POLL, END, "tl.cdiv(B, BLOCK_B) - (tl.program_id(0) == 1), tl.num"),
}


@contextmanager
def kernels_with(old: str, new: str, folder: Path) -> Iterator[None]:
    """The launchers launch the split kernels with another text."""
    forward, backward = (edited(launch_split, f"split_{way}.py", old, new, folder) for way in ("forward", "backward"))
    with forward, backward:
        yield


@EACH_WAY
@pytest.mark.parametrize("tried", [COUNTER, POLL], ids=lambda tried: tried.name)
def test_the_text_as_it_is(tried: exchange.Exchange, way: str, tmp_path: Path) -> None:
    with kernels_with(START, START, tmp_path):
        assert Problem(GRU, B=37).agrees(way, tried, seed=4)


@EACH_WAY
@pytest.mark.parametrize("fault", WRONG_WALKS)
def test_a_broken_walk_gives_wrong_numbers(fault: str, way: str, tmp_path: Path) -> None:
    tried, old, new = WRONG_WALKS[fault]
    problem = Problem(GRU, B=37)
    with kernels_with(old, new, tmp_path):
        assert not all(problem.agrees(way, tried, seed) for seed in range(5))


@EACH_WAY
def test_a_mailbox_that_only_the_first_tile_has_filled(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = launch_split._mailbox

    def first_only(*arguments: Any, **options: Any) -> Tensor:
        mailbox = prepare(*arguments, **options)
        mailbox.view(4, 37, -1)[:, 16:] = 0.0
        return mailbox

    monkeypatch.setattr(launch_split, "_mailbox", first_only)
    problem = Problem(GRU, B=37)
    assert not all(problem.agrees(way, POLL, seed) for seed in range(5))


@EACH_WAY
@pytest.mark.parametrize("fault", STUCK_WALKS)
def test_a_broken_walk_waits_for_ever(fault: str, way: str, tmp_path: Path) -> None:
    tried, old, new = STUCK_WALKS[fault]
    problem = Problem(GRU, B=37)
    with kernels_with(old, new, tmp_path), pytest.raises(Deadlock, match="programs wait"):
        problem.agrees(way, tried, seed=0, patience=1.0)


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
