"""Which blocks for which shape, without a GPU: H100 (90), A100 (80) and a small card (89)."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastcells.backends.base import Call
from fastcells.backends.triton import backend
from fastcells.backends.triton.backend import TRITON
from fastcells.kernels.triton.plan import (
    SHARED_MEMORY,
    Blocks,
    Device,
    Split,
    sequence_blocks,
    sequence_plan,
    split_plan,
    step_blocks,
)
from fastcells.spec import GRU_RESET_AFTER

H100, A100, SMALL = Device(90, 132), Device(80, 108), Device(89, 24)

LARGEST = [  # gates, bytes an element, capability, largest H that fits one program
    (3, 2, 90, 128),
    (3, 2, 80, 128),
    (3, 2, 89, 64),
    (3, 4, 90, 128),
    (3, 4, 80, 64),
    (4, 4, 89, 64),
    (1, 2, 90, 256),
    (1, 4, 80, 128),
]


@pytest.mark.parametrize(("gates", "size", "capability", "largest"), LARGEST)
def test_largest_shape_of_one_program(gates: int, size: int, capability: int, largest: int) -> None:
    fits = sequence_blocks(largest, gates, size, capability)
    assert isinstance(fits, Blocks)
    assert fits.hidden == largest
    refused = sequence_blocks(largest + 1, gates, size, capability)
    assert isinstance(refused, str)
    assert f"one program has {SHARED_MEMORY[capability] >> 10} KB" in refused


@pytest.mark.parametrize("H", [1, 15, 16, 17, 100, 128])
def test_a_program_owns_all_columns(H: int) -> None:
    blocks = sequence_blocks(H, 3, 2, 90)
    assert isinstance(blocks, Blocks)
    assert blocks.hidden >= max(H, 16)  # a matmul's smallest tile
    assert blocks.hidden.bit_count() == 1
    assert blocks.hidden // 8 >= blocks.warps or H <= 16  # fewer columns than that would be computed twice


def test_an_unknown_card_is_taken_for_a_small_one() -> None:
    assert sequence_blocks(64, 3, 2, 70) == sequence_blocks(64, 3, 2, 75)


@pytest.mark.parametrize("item_size", [2, 4])
def test_blocks_of_the_step_kernels(item_size: int) -> None:
    blocks = step_blocks(item_size)
    assert min(blocks.batch, blocks.hidden, blocks.inner) >= 16
    assert blocks.hidden // 8 >= blocks.warps and blocks.hidden > blocks.batch  # else warps would repeat each other
    assert blocks.reason


def test_backward_takes_the_forwards_tile() -> None:
    forward, backward = (sequence_blocks(100, 4, 2, 90, backward=b) for b in (False, True))
    assert isinstance(forward, Blocks) and isinstance(backward, Blocks)
    assert (forward.batch, forward.hidden) == (backward.batch, backward.hidden)


def test_heads_are_planned_by_their_columns() -> None:
    """Programs of all heads run at once; with further states and parameters less of long rows is polled together."""
    options: dict[str, Any] = {"backward": True}
    whole, four = (split_plan(1024, 32, 4, 2, H100, **options, heads=heads) for heads in (2, 4))
    assert isinstance(whole, Split) and isinstance(four, Split)
    for split, heads in ((whole, 2), (four, 4)):
        assert split.groups * heads * math.ceil(1024 / heads / split.blocks.hidden) <= H100.multiprocessors
    alone, carrying = (split_plan(512, 32, 4, 2, H100, carried=n) for n in (0, 3))
    assert isinstance(alone, Split) and isinstance(carrying, Split)
    assert carrying == replace(alone, polled=alone.polled // 2)


def test_heads_in_one_program() -> None:
    assert isinstance(sequence_plan(256, 32, 4, 2, H100), Split)
    assert isinstance(sequence_plan(256, 32, 4, 2, H100, heads=4), Blocks)


def in_turn(split: Split, B: int) -> int:
    """Batch tiles that the busiest group of programs does, one after another."""
    return math.ceil(math.ceil(B / split.blocks.batch) / split.groups)


SPLITS = [  # device, H, gates, bytes an element, B, columns of a program, batch tiles in turn
    (H100, 256, 3, 2, 32, 8, 1),  # 32 programs a group, 4 groups: 128 of 132 multiprocessors
    (H100, 256, 3, 2, 33, 16, 1),
    (H100, 256, 3, 2, 65, 32, 1),  # 8 rows each
    (H100, 256, 3, 2, 129, 32, 1),  # 16 rows each
    (H100, 256, 3, 2, 256, 32, 1),  # 8 programs a group, 16 groups: 128 of 132 multiprocessors
    (H100, 256, 3, 2, 272, 64, 1),
    (H100, 256, 3, 2, 1056, 64, 2),
    (H100, 256, 3, 2, 1057, 64, 3),
    (H100, 512, 4, 2, 128, 32, 1),
    (H100, 512, 4, 2, 256, 32, 2),  # the weights of 64 columns do not fit
    (H100, 768, 4, 2, 80, 32, 1),
    (H100, 1024, 3, 2, 128, 32, 2),
    (H100, 1024, 3, 2, 4096, 32, 64),
    (H100, 256, 4, 4, 32, 8, 1),
    (A100, 256, 3, 2, 208, 32, 1),
    (A100, 256, 3, 2, 224, 64, 1),
    (A100, 512, 3, 2, 96, 32, 1),
    (SMALL, 256, 3, 2, 48, 32, 1),
    (SMALL, 256, 3, 2, 96, 32, 2),
    (SMALL, 256, 3, 2, 0, 32, 0),
]


@pytest.mark.parametrize(("device", "H", "gates", "size", "B", "columns", "count"), SPLITS)
def test_split(device: Device, H: int, gates: int, size: int, B: int, columns: int, count: int) -> None:
    split = sequence_plan(H, B, gates, size, device)
    assert isinstance(split, Split)
    assert (split.blocks.hidden, in_turn(split, B)) == (columns, count)


REFUSED = [  # whatever B
    (H100, 1024, 4, 2, r"H=1024: .* need 272 KB .*\(4 gates of 1024 x 32, 2 bytes each\), and one program has 227 KB"),
    (A100, 768, 3, 4, "H=768: .* one program has 163 KB"),
    (SMALL, 800, 1, 2, "H=800: 25 programs wait for each other, and 24 multiprocessors do not run them at once"),
]


@pytest.mark.parametrize("B", [1, 4096])
@pytest.mark.parametrize(("device", "H", "gates", "size", "reason"), REFUSED)
def test_what_cannot_run_at_once_is_refused(device: Device, H: int, gates: int, size: int, B: int, reason: str) -> None:
    refusal = sequence_plan(H, B, gates, size, device)
    assert isinstance(refusal, str)
    assert re.search(reason, refusal), refusal


@pytest.mark.parametrize("exchange", ["poll", "counter"])
@pytest.mark.parametrize("device", [H100, A100, SMALL], ids=["H100", "A100", "small"])
def test_every_split_fits_its_device(device: Device, exchange: str) -> None:
    """All programs of a launch run at once; what is refused is refused for its H, never for its batch."""
    found = 0
    for H in (1, 33, 100, 129, 256, 300, 512, 700, 768, 1000, 1024, 2048):
        for gates, size, precision in ((1, 2, "ieee"), (3, 2, "ieee"), (4, 4, "tf32"), (3, 4, "tf32x3")):
            options: dict[str, Any] = {"precision": precision, "exchange": exchange}
            smallest = split_plan(H, 1, gates, size, device, **options)
            for B in (1, 16, 17, 64, 500, 4096, 10**6):
                split = split_plan(H, B, gates, size, device, **options)
                backward = split_plan(H, B, gates, size, device, **options, backward=True)
                assert isinstance(split, str) == isinstance(smallest, str) == isinstance(backward, str)
                if isinstance(split, str):
                    continue
                found += 1
                blocks = split.blocks
                assert split.groups >= 1 and -(-H // blocks.hidden) * split.groups <= device.multiprocessors
                assert blocks.hidden // 8 >= blocks.warps  # no warp repeats another
                assert blocks.inner.bit_count() == 1 and blocks.inner >= 16
                weights = gates * H * blocks.hidden * size * (2 if precision == "tf32x3" else 1)
                assert weights + blocks.batch * blocks.inner * size <= SHARED_MEMORY[device.capability]
    assert found > 50


def test_one_program_comes_first() -> None:
    assert isinstance(sequence_plan(128, 32, 3, 2, H100), Blocks)
    assert isinstance(sequence_plan(129, 32, 3, 2, H100), Split)


def test_three_tf32_take_twice_the_memory() -> None:
    assert isinstance(sequence_plan(64, 8, 4, 4, H100, precision="tf32x3"), Blocks)
    assert isinstance(sequence_plan(128, 8, 3, 4, H100, precision="tf32"), Blocks)
    assert isinstance(sequence_plan(128, 8, 3, 4, H100, precision="tf32x3"), Split)
    refusal = sequence_plan(256, 8, 4, 4, H100, precision="tf32x3")
    assert isinstance(refusal, str) and "KB of shared memory" in refusal


def test_the_interpreter_has_no_limits() -> None:
    blocks = sequence_plan(5000, 10**6, 4, 4, None)
    assert isinstance(blocks, Blocks) and blocks.hidden == 8192


def test_one_program_has_few_rows_while_all_run_at_once() -> None:
    for B, batch in ((1, 8), (8 * 132, 8), (8 * 132 + 1, 16)):
        for backward in (False, True):
            blocks = sequence_plan(64, B, 3, 2, H100, backward=backward)
            assert isinstance(blocks, Blocks) and blocks.batch == batch, (B, backward)
    three_products = sequence_plan(64, 8, 3, 4, H100, precision="tf32x3")
    assert isinstance(three_products, Blocks) and three_products.batch == 16


@pytest.mark.slow
@pytest.mark.parametrize("planned_backward", [False, True])
@pytest.mark.parametrize("H", [24, 256, 1024])
def test_torch_compile_traces_it(H: int, planned_backward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does where a layer on a GPU is compiled, with T and B that may be any number."""

    def planned(x: torch.Tensor) -> torch.Tensor:
        call = Call("triton", GRU_RESET_AFTER, False, *x.shape[:2], w, w)
        found = TRITON._plan(call, backward=planned_backward)
        return x + (0.0 if isinstance(found, str) else 1.0)

    monkeypatch.setattr(backend, "gpu", lambda device: Device(90, 132))
    monkeypatch.setattr(backend, "matmul_precision", lambda *_: "tf32")
    w, x = torch.nn.Parameter(torch.zeros(3 * H, H)), torch.zeros(3, 5)
    torch._dynamo.reset()
    compiled = torch.compile(planned, backend="eager", fullgraph=True, dynamic=True)
    for B in (5, 6, 300):
        assert torch.equal(compiled(x[:, :1].expand(3, B)), planned(x[:, :1].expand(3, B)))
