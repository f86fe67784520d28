"""Which blocks for which shape, without a GPU: an H100, and cards that are smaller or older."""

from __future__ import annotations

from math import ceil

import pytest

from fastcells.kernels.gluon.plan import Resident, pays, resident_plan
from fastcells.kernels.triton.plan import Device

H100, SMALL, A100 = Device(90, 132), Device(90, 20), Device(80, 108)
SIZES = (1, 7, 16, 33, 64, 100, 128, 200, 256, 300, 384, 512, 640, 768, 1000, 1024)
LARGEST = [  # gates, bytes an element, precision, pass, largest H that fits the registers
    (3, 2, "tf32", False, 1024),
    (3, 2, "tf32", True, 1024),
    (4, 2, "tf32", False, 1024),
    (4, 2, "tf32", True, 1024),
    (1, 2, "tf32", True, 1024),
    (3, 4, "tf32", True, 512),
    (4, 4, "tf32", True, 512),
    (3, 4, "tf32x3", False, 512),
    (3, 4, "tf32x3", True, 256),
    (4, 4, "tf32x3", True, 256),
]


def plan(*args: int, device: Device = H100, **options: object) -> Resident:
    found = resident_plan(*args, device, **options)  # type: ignore[arg-type]
    assert isinstance(found, Resident), found
    return found


@pytest.mark.parametrize(("gates", "size", "precision", "backward", "largest"), LARGEST)
def test_largest_shape(gates: int, size: int, precision: str, backward: bool, largest: int) -> None:
    plan(largest, 32, gates, size, precision=precision, backward=backward)
    refused = resident_plan(largest + 1, 32, gates, size, H100, precision=precision, backward=backward)
    assert isinstance(refused, str)
    assert ("no row for more than 1024" if largest == 1024 else "registers a thread") in refused


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("gates", [1, 3, 4])
@pytest.mark.parametrize("device", [H100, SMALL], ids=["H100", "small"])
def test_what_every_plan_keeps(device: Device, gates: int, size: int, backward: bool) -> None:
    for H in SIZES:
        for B in (1, 9, 32, 1000):
            found = resident_plan(H, B, gates, size, device, backward=backward)
            if isinstance(found, str):
                assert (64 if device is SMALL else 256) < H
                continue
            programs = ceil(H / found.hidden)
            assert found.groups >= 1
            assert programs * found.groups <= device.multiprocessors, "programs that wait for each other run at once"
            assert found.width >= H
            assert found.width < H + found.split * 128 // size or found.width <= 4 * 128 // size, "columns of zeros"
            assert found.inner % (128 // size) == 0, "an operand is runs of 16 bytes, two for a lane"
            assert found.inner.bit_count() == found.split.bit_count() == found.batch.bit_count() == 1
            assert found.split <= 8, "255 registers a thread"


def test_a_batch_fills_the_card_before_it_waits_in_turn() -> None:
    rows = {B: plan(256, B, 3, 2).batch for B in (8, 64, 256)}
    assert rows[8] == rows[64] == 8
    assert rows[256] > 8


def test_where_the_gather_is_bound_by_the_l2_cache_fewer_programs_gather() -> None:
    assert plan(512, 32, 3, 2, backward=True).hidden == 32
    assert plan(256, 8, 3, 2, backward=True).hidden == 16


def test_a_second_product_takes_registers() -> None:
    assert plan(1024, 32, 3, 2).hidden == 32
    assert plan(1024, 32, 3, 2, two_products=True).hidden == 16


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("gates", [1, 3, 4])
def test_both_directions_run_at_once(gates: int, backward: bool) -> None:
    for H in SIZES:
        for B in (1, 32, 1000):
            found = resident_plan(H, B, gates, 2, H100, backward=backward, directions=2)
            if isinstance(found, Resident):
                assert 2 * ceil(H / found.hidden) * found.groups <= H100.multiprocessors
                assert found.directions == 2


def both(H: int, B: int, device: Device = H100) -> tuple[Resident, Resident] | None:
    each = [plan(H, B, 3, 2, backward=backward, device=device) for backward in (False, True)]
    return pays(
        (each[0], each[1]), [resident_plan(H, B, 3, 2, device, backward=b, directions=2) for b in (False, True)]
    )


def test_both_directions_at_once_where_that_is_faster() -> None:
    assert both(256, 32) is not None
    assert both(1024, 8) is not None
    assert both(256, 256) is None, "either direction fills the card"
    assert both(1024, 32) is None
    assert both(256, 0) is None, "there is nothing to do"
    few = Device(90, 24)  # for 16 programs, not for 32
    assert both(512, 8, few) is None
    assert "32 programs wait for each other, and 24" in str(resident_plan(512, 8, 3, 2, few, directions=2))


def test_reasons() -> None:
    old = resident_plan(256, 32, 3, 2, A100)
    assert isinstance(old, str) and "compute capability 8.0" in old and "9.0" in old
    few = resident_plan(1024, 8, 3, 2, SMALL)
    assert isinstance(few, str) and "32 programs wait for each other, and 20" in few
    assert "16 columns' weights in the registers of 4 warps" in plan(256, 32, 3, 2).reason
