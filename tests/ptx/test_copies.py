"""Asynchronous copies to shared memory: when they read, when they are there, and for whom. Each fault is planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.ptx.memory import Fault
from tests.ptx.small import run
from tests.ptx.values import Array

SEEDS = range(12)
COPY = """
    shl.b32 %r3, %r1, 2;
    mad.wide.u32 %rd3, %r1, 4, %rd1;
    cp.async.ca.shared.global [ %r3 ], [ %rd3 ], 0x4{length};
    cp.async.commit_group;
    {wait}
    {barrier}
    xor.b32 %r4, %r3, 128;
    ld.shared.b32 {{ %r5 }}, [ %r4 ];
    mad.wide.u32 %rd4, %r1, 4, %rd2;
    st.global.b32 [ %rd4 ], {{ %r5 }};
"""


def copied(
    seed: int, length: str = "", wait: str = "cp.async.wait_group 0;", barrier: str = "bar.sync 0;", **options: Any
) -> tuple[Array, int]:
    first, second = np.arange(64, dtype=np.uint32) + 7, np.zeros(64, np.uint32)
    machine = run(
        COPY.format(length=length, wait=wait, barrier=barrier), first, second, threads=64, seed=seed, **options
    )
    return second, len(machine.races)


def test_what_the_machine_does_not_know_of_copies_is_refused() -> None:
    with pytest.raises(Fault, match="a copy of \\[2\\] of 4 bytes"):
        copied(0, length=", 2")
    with pytest.raises(Fault, match="warps part while they copy"):
        copied(0, wait="setp.lt.u32 %p1, %r1, 32;\n@%p1 bra end;\nend:", barrier="bar.sync 0;", groups=1)


def test_asynchronous_copies() -> None:
    for seed in SEEDS:
        out, races = copied(seed)
        assert races == 0 and (out == (np.arange(64) ^ 32) + 7).all()
        out, races = copied(seed, length=", 0")  # nothing read, zeros written
        assert races == 0 and (out == 0).all()
        assert copied(seed, wait="")[1] > 0
        assert copied(seed, wait="cp.async.wait_group 1;")[1] > 0  # the group is still under way
        assert copied(seed, barrier="")[1] > 0


def test_a_copy_may_read_what_is_stored_after_it_was_asked_for() -> None:
    """Until it is waited for, it may or may not have read the old value."""
    body = """
    shl.b32 %r3, %r1, 2;
    mad.wide.u32 %rd3, %r1, 4, %rd1;
    cp.async.ca.shared.global [ %r3 ], [ %rd3 ], 0x4;
    {}
    st.global.b32 [ %rd3 ], {{ 9 }};
    cp.async.wait_all;
    ld.shared.b32 {{ %r5 }}, [ %r3 ];
    mad.wide.u32 %rd4, %r1, 4, %rd2;
    st.global.b32 [ %rd4 ], {{ %r5 }};
"""
    for between, expected in (("", {7, 9}), ("cp.async.wait_all;", {7})):
        found = set()
        for seed in SEEDS:
            first, second = np.full(32, 7, np.uint32), np.zeros(32, np.uint32)
            assert not run(body.format(between), first, second, seed=seed).races
            found |= set(second.tolist())
        assert found == expected
