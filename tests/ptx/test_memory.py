"""The machine's memory: what it lets a program see, and what it notices. Each fault here is planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.ptx.memory import Fault
from tests.ptx.small import run, text
from tests.ptx.values import Array

SEEDS = range(12)
# One value from program 0 to program 1: the data in `second`, a flag beside it in `first`.
MESSAGE = """
    mul.wide.u32 %rd5, %r1, 4;
    add.s64 %rd6, %rd2, %rd5;
    setp.eq.u32 %p1, %r1, 0;
    setp.ne.u32 %p2, %r2, 0;
    @%p2 bra receive;
    st.global.b32 [ %rd6 ], {{ %r1 }};
    {before_sending}
    @%p1 {send} [ %rd1 ], {flag};
    bra end;
receive:
    ld.global.b32 {{ %r9 }}, [ %rd6 ];
wait:
    {poll} {{ %r3 }}, [ %rd1 ];
    setp.eq.s32 %p3, %r3, 0;
    @%p3 bra wait;
    {after_receiving}
    ld.global.b32 {{ %r4 }}, [ %rd6 ];
    st.global.b32 [ %rd6 + 256 ], {{ %r4 }};
end:
"""
RIGHT = {
    "before_sending": "bar.sync 0;",
    "send": "red.release.gpu.global.add.u32",
    "flag": "1",
    "poll": "ld.acquire.gpu.global.b32",
    "after_receiving": "",
}


def message(seed: int, **changed: str) -> Array:
    """What program 1 received, of 0 to 63."""
    first, second = np.zeros(1, np.uint32), np.full(128, 999, np.uint32)
    run(MESSAGE.format(**(RIGHT | changed)), first, second, threads=64, programs=2, weak=True, seed=seed)
    return second[64:]


def arrives(**changed: str) -> list[bool]:
    return [bool((message(seed, **changed) == np.arange(64)).all()) for seed in SEEDS]


def test_a_released_and_acquired_message_arrives() -> None:
    assert all(arrives())


@pytest.mark.parametrize(
    "changed",
    [
        {"before_sending": ""},  # the release is one thread's: it does not order the others' stores
        {"send": "red.relaxed.gpu.global.add.u32"},
        {"poll": "ld.relaxed.gpu.global.b32"},
        {"poll": "ld.volatile.global.b32"},
    ],
    ids=["no-barrier", "no-release", "no-acquire", "volatile"],
)
def test_a_message_without_its_ordering_is_lost_sometimes(changed: dict[str, str]) -> None:
    assert not all(arrives(**changed))


def test_fences_order_as_release_and_acquire_do() -> None:
    fence = "fence.acq_rel.gpu;"
    changed = {"send": "red.relaxed.gpu.global.add.u32", "poll": "ld.relaxed.gpu.global.b32"}
    assert all(arrives(before_sending=f"bar.sync 0;\n    {fence}", after_receiving=fence, **changed))
    assert not all(arrives(before_sending=f"bar.sync 0;\n    {fence}", **changed))
    assert not all(arrives(after_receiving=fence, **changed))


def test_an_acquire_counts_for_the_other_warps_from_the_next_barrier_on() -> None:
    """Only thread 0 polls with acquire; the others read after the barrier, or, wrongly, without it."""
    body = """
    mul.wide.u32 %rd5, %r1, 4;
    add.s64 %rd6, %rd2, %rd5;
    setp.eq.u32 %p1, %r1, 0;
    setp.ne.u32 %p2, %r2, 0;
    @%p2 bra receive;
    st.global.b32 [ %rd6 ], {{ %r1 }};
    bar.sync 0;
    @%p1 red.release.gpu.global.add.u32 [ %rd1 ], 1;
    bra end;
receive:
    ld.global.b32 {{ %r9 }}, [ %rd6 ];
    shr.u32 %r8, %r1, 5;
    setp.ne.u32 %p4, %r8, 0;
    @%p4 bra other;
wait:
    ld.acquire.gpu.global.b32 {{ %r3 }}, [ %rd1 ];
    setp.eq.s32 %p3, %r3, 0;
    @%p3 bra wait;
other:
    {barrier}
    ld.global.b32 {{ %r4 }}, [ %rd6 ];
    st.global.b32 [ %rd6 + 256 ], {{ %r4 }};
end:
"""
    for barrier, expected in (("bar.sync 0;", True), ("", False)):
        right = []
        for seed in SEEDS:
            first, second = np.zeros(1, np.uint32), np.full(128, 999, np.uint32)
            run(body.format(barrier=barrier), first, second, threads=64, programs=2, weak=True, seed=seed)
            right.append(bool((second[64:] == np.arange(64)).all()))
        assert all(right) == expected


def test_data_that_is_its_own_flag_needs_no_order() -> None:
    """The poll exchange: a relaxed or volatile load until the value is not the sentinel."""
    body = """
    mul.wide.u32 %rd5, %r1, 4;
    add.s64 %rd6, %rd2, %rd5;
    setp.ne.u32 %p2, %r2, 0;
    @%p2 bra receive;
    st.global.b32 [ %rd6 ], {{ %r1 }};
    bra end;
receive:
    {poll} {{ %r3 }}, [ %rd6 ];
    setp.eq.s32 %p3, %r3, 999;
    @%p3 bra {target};
    st.global.b32 [ %rd6 + 256 ], {{ %r3 }};
end:
"""
    for poll, target, ends in (
        ("ld.volatile.global.b32", "receive", True),
        ("ld.relaxed.gpu.global.b32", "receive", True),
        ("ld.global.b32", "receive", False),  # what its cache has it may give for ever
    ):
        for seed in SEEDS:
            first, second = np.zeros(1, np.uint32), np.full(128, 999, np.uint32)
            options: Any = {"threads": 64, "programs": 2, "weak": True, "stale": 1.0, "seed": seed, "limit": 4000}
            if ends:
                run(body.format(poll=poll, target=target), first, second, **options)
                assert (second[64:] == np.arange(64)).all()
            else:
                with pytest.raises(Fault, match="no end"):
                    run(body.format(poll=poll, target=target), first, second, **options)


def test_a_thread_sees_its_own_store_and_others_see_it_after_a_barrier() -> None:
    """Through global memory, ordinary accesses: each reads what the thread 32 further on wrote, or its own."""
    body = """
    mul.wide.u32 %rd5, %r1, 4;
    add.s64 %rd6, %rd2, %rd5;
    xor.b32 %r3, %r1, {other};
    mul.wide.u32 %rd7, %r3, 4;
    add.s64 %rd8, %rd2, %rd7;
    st.global.b32 [ %rd6 ], {{ %r1 }};
    {barrier}
    ld.global.b32 {{ %r4 }}, [ %rd8 ];
    st.global.b32 [ %rd6 + 256 ], {{ %r4 }};
"""
    for other, barrier, expected in ((0, "", True), (32, "bar.sync 0;", True), (32, "", False)):
        right = []
        for seed in SEEDS:
            second = np.full(128, 999, np.uint32)
            run(
                body.format(other=other, barrier=barrier),
                np.zeros(1, np.uint32),
                second,
                threads=64,
                weak=True,
                seed=seed,
            )
            right.append(bool((second[64:] == np.arange(64) ^ other).all()))
        assert all(right) == expected, (other, barrier)


def test_stores_to_one_place_stay_in_order() -> None:
    body = "mad.wide.u32 %rd3, %r1, 4, %rd2;\n" + "\n".join(
        f"mov.b32 %r3, {i};\nst.global.b32 [ %rd3 ], {{ %r3 }};" for i in range(8)
    )
    for seed in SEEDS:
        second = np.zeros(32, np.uint32)
        run(body, np.zeros(1, np.uint32), second, weak=True, seed=seed, drain=0.1)
        assert (second == 7).all()


def test_a_prefetch_changes_nothing_and_leads_into_a_buffer() -> None:
    first, second = np.arange(8, dtype=np.uint32), np.zeros(1, np.uint32)
    run("prefetch.global.L2 [ %rd1 + 28 ];", first, second)
    assert first.tolist() == list(range(8))
    with pytest.raises(Fault, match="prefetch: byte 32 and 1 on of first, 32 bytes"):
        run("prefetch.global.L2 [ %rd1 + 32 ];", first, second)


@pytest.mark.parametrize("access", ["ld.global.b32 {{ %r3 }}, [ {at} ];", "st.global.b32 [ {at} ], {{ %r1 }};"])
def test_one_element_out_of_bounds_is_noticed(access: str) -> None:
    body = "mad.wide.u32 %rd3, %r1, 4, %rd2;\n" + access.format(at="%rd3")
    run(body, np.zeros(1, np.uint32), np.zeros(32, np.uint32))
    number = text(body).split("\n").index(body.split("\n")[1]) + 1
    with pytest.raises(Fault, match=f"line {number}: .*byte 124 and 4 on of second, 124 bytes"):
        run(body, np.zeros(1, np.uint32), np.zeros(31, np.uint32))


def test_misaligned_and_unknown_addresses_are_noticed() -> None:
    with pytest.raises(Fault, match="8 bytes at an address that 8 does not divide"):
        run("ld.global.b64 { %rd3 }, [ %rd1 + 4 ];", np.zeros(8, np.uint32), np.zeros(1, np.uint32))
    with pytest.raises(Fault, match="8 bytes at an address that 8 does not divide"):
        run("st.global.v2.b32 [ %rd1 + 4 ], { %r1, %r1 };", np.zeros(8, np.uint32), np.zeros(1, np.uint32))
    with pytest.raises(Fault, match="in no buffer"):
        run("mov.b64 %rd4, 16;\nld.global.b64 { %rd3 }, [ %rd4 ];", np.zeros(8, np.uint32), np.zeros(1, np.uint32))
    with pytest.raises(Fault, match="shared memory, 4 bytes at 2 of 4096"):
        run("mov.b32 %r4, 2;\nld.shared.b32 { %r3 }, [ %r4 ];", np.zeros(8, np.uint32), np.zeros(1, np.uint32))
    with pytest.raises(Fault, match="shared memory, 4 bytes at 4096 of 4096"):
        run("mov.b32 %r4, 4096;\nld.shared.b32 { %r3 }, [ %r4 ];", np.zeros(8, np.uint32), np.zeros(1, np.uint32))


def test_warps_that_wait_for_ever_are_noticed() -> None:
    body = "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra end;\nbar.sync 0;\nend:"
    with pytest.raises(Fault, match="wait at a barrier that others never reach"):
        run(body + "\nmov.b32 %r3, 0;", np.zeros(1, np.uint32), np.zeros(1, np.uint32), threads=64)
    with pytest.raises(Fault, match="no end after"):
        run("again:\nbra again;", np.zeros(1, np.uint32), np.zeros(1, np.uint32), limit=1000)


# -- shared memory

SWAP = """
    shl.b32 %r3, %r1, 2;
    {write}
    {barrier}
    xor.b32 %r4, %r3, {other};
    ld.shared.b32 {{ %r5 }}, [ %r4 ];
    {after}
"""


def swap(*, other: int = 128, threads: int = 64, **changed: Any) -> bool:
    """Whether it is a race: in every order of the warps, or in none."""
    body = SWAP.format(
        other=other, **{"write": "st.shared.b32 [ %r3 ], { %r1 };", "barrier": "bar.sync 0;", "after": ""} | changed
    )
    buffers = np.zeros(64, np.uint32), np.zeros(1, np.uint32)
    (raced,) = {bool(run(body, *buffers, threads=threads, seed=seed).races) for seed in SEEDS}
    return raced


def test_a_missing_barrier_is_a_race() -> None:
    assert not swap()
    assert swap(barrier="")
    assert not swap(other=0, barrier="")  # each its own


def test_a_write_behind_a_read_is_a_race() -> None:
    assert not swap(after="bar.sync 0;\nst.shared.b32 [ %r3 ], { %r1 };")
    assert swap(after="add.s32 %r6, %r1, 1;\nst.shared.b32 [ %r3 ], { %r6 };")


def test_within_the_one_warp_of_a_program_threads_need_a_warp_barrier() -> None:
    assert not swap(other=4, threads=32, barrier="bar.warp.sync -1;")
    assert swap(other=4, threads=32, barrier="")


def test_within_one_of_several_warps_threads_need_a_barrier_of_theirs() -> None:
    """What one thread has stored another one loads; a copy that one thread has waited for, too."""
    assert not swap(other=4, barrier="bar.warp.sync -1;")
    assert swap(other=4, barrier="")
    later = "{}add.s32 %r6, %r1, 1;\nst.shared.b32 [ %r3 ], {{ %r6 }};"
    assert not swap(other=4, after=later.format("bar.warp.sync -1;\n"))
    assert swap(other=4, after=later.format(""))
    assert not swap(other=0, after=later.format(""))
    one_place = "and.b32 %r4, %r1, 32;\nst.shared.b32 [ %r4 ], {{ %r{} }};"
    assert not swap(other=0, write=one_place.format(4), after="")
    assert swap(other=0, write=one_place.format(1), after="")


def test_a_write_behind_the_loads_of_several_threads_is_a_race() -> None:
    """Of one warp, in one instruction: also for the last of them."""
    read = "ld.shared.b32 { %r5 }, [ 0 ];\nsetp.eq.u32 %p1, %r1, 31;\nmov.b32 %r3, 0;\n"
    last: Any = {
        "write": "mov.b32 %r6, 0;\n" + read.replace("[ 0 ]", "[ %r6 ]"),
        "barrier": "",
        "other": 0,
        "threads": 32,
    }
    assert swap(**last, after="@%p1 st.shared.b32 [ %r6 ], { %r1 };")
    assert not swap(**last, after="bar.warp.sync -1;\n@%p1 st.shared.b32 [ %r6 ], { %r1 };")


def test_what_nobody_has_written_is_garbage() -> None:
    """In registers and in shared memory."""
    body = "shl.b32 %r3, %r1, 2;\nmad.wide.u32 %rd3, %r1, 4, %rd1;\nmad.wide.u32 %rd4, %r1, 4, %rd2;\n"
    body += "ld.shared.b32 { %r4 }, [ %r3 ];\nst.global.b32 [ %rd3 ], { %r4 };\nst.global.b32 [ %rd4 ], { %r5 };"
    found = set[int](), set[int]()
    for seed in SEEDS:
        buffers = np.zeros(32, np.uint32), np.zeros(32, np.uint32)
        run(body, *buffers, seed=seed)
        for one, buffer in zip(found, buffers, strict=True):
            one |= set(buffer.tolist())
    assert len(found[0]) > 6 and len(found[1]) > 6


def test_two_warps_may_write_the_same_value() -> None:
    same = "and.b32 %r3, %r3, 127;\nand.b32 %r7, %r1, 31;\nst.shared.b32 [ %r3 ], {{ %r{} }};"
    assert not swap(write=same.format(7), other=0)
    assert swap(write=same.format(1), other=0)


def test_an_access_of_no_thread_is_none() -> None:
    """Where the predicate is false for all, nothing is loaded, stored or copied."""
    body = """
    setp.gt.u32 %p1, %r1, 99;
    @%p1 st.shared.v2.b32 [ %r1 ], { %r1, %r1 };
    @%p1 ld.shared.b32 { %r5 }, [ %r1 ];
    @%p1 cp.async.ca.shared.global [ %r1 ], [ %rd1 + 1 ], 0x4;
    @%p1 ld.global.b32 { %r5 }, [ %rd1 + 1 ];
    @%p1 st.global.b32 [ %rd1 + 1 ], { %r5 };
    @%p1 atom.relaxed.gpu.global.add.u32 %r4, [ %rd1 + 1 ], 2;
    cp.async.wait_all;
"""
    machine = run(body, np.zeros(1, np.uint32), np.zeros(1, np.uint32), threads=64, weak=True)
    assert not machine.races
