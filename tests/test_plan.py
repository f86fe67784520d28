"""Which blocks for which shape, without a GPU: H100 (90), A100 (80) and a small card (89)."""

from __future__ import annotations

import pytest

from fastcells.kernels.plan import SHARED_MEMORY, Blocks, sequence_blocks, step_blocks

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
