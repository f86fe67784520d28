"""Programs that meet in global memory: what nothing orders is a race, or shows an older value. Faults are planted."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tests.ptx.memory import Buffer, Memory, View
from tests.ptx.small import run
from tests.ptx.values import Array

SEEDS = range(12)
# Program 0 stores to `second` and says so in `first`; program 1 waits, loads, and stores beside what it has loaded.
MESSAGE = """
    mul.wide.u32 %rd5, %r1, 4;
    add.s64 %rd6, %rd2, %rd5;
    setp.ne.u32 %p2, %r2, 0;
    @%p2 bra receive;
    {store} [ %rd6 ], {{ %r1 }};
    bar.sync 0;
    setp.eq.u32 %p1, %r1, 0;
    {send}
    bra end;
receive:
    {before}
wait:
    {poll} {{ %r3 }}, [ %rd1 ];
    setp.eq.s32 %p3, %r3, 0;
    @%p3 bra wait;
    {after}
    {load} {{ %r4 }}, [ %rd6 ];
    st.global.b32 [ %rd6 + 256 ], {{ %r4 }};
end:
"""
RIGHT = {
    "store": "st.global.b32",
    "send": "@%p1 red.release.gpu.global.add.u32 [ %rd1 ], 1;",
    "before": "",
    "poll": "ld.acquire.gpu.global.b32",
    "after": "",
    "load": "ld.global.b32",
}


def message(seed: int, **changed: str) -> tuple[bool, int]:
    """Whether all of it arrived, and how many races there were."""
    first, second = np.zeros(2, np.uint32), np.full(128, 999, np.uint32)
    body = MESSAGE.format(**(RIGHT | changed))
    machine = run(body, first, second, threads=64, programs=2, weak=True, seed=seed)
    return bool((second[64:] == np.arange(64)).all()), len(machine.races)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"send": "@%p1 st.release.gpu.global.b32 [ %rd1 ], { 1 };"},
        {"send": "fence.acq_rel.gpu;\n@%p1 st.relaxed.gpu.global.b32 [ %rd1 ], { 1 };"},
        {"poll": "ld.relaxed.gpu.global.b32", "after": "fence.acq_rel.gpu;"},
        # An atomic operation goes on with what another one has released.
        {"send": "@%p1 red.release.gpu.global.add.u32 [ %rd1 ], 1;\n@%p1 red.relaxed.gpu.global.add.u32 [ %rd1 ], 1;"},
    ],
    ids=["red", "store", "fence-store", "fence-load", "twice"],
)
def test_a_message_in_order_arrives_without_a_race(changed: dict[str, str]) -> None:
    assert {message(seed, **changed) for seed in SEEDS} == {(True, 0)}


@pytest.mark.parametrize(
    "changed",
    [
        {"send": "@%p1 red.relaxed.gpu.global.add.u32 [ %rd1 ], 1;"},
        {"poll": "ld.relaxed.gpu.global.b32"},
        {"poll": "ld.relaxed.gpu.global.b32", "after": "ld.acquire.gpu.global.b32 { %r9 }, [ %rd1 + 4 ];"},
        {"poll": "ld.relaxed.gpu.global.b32", "after": "setp.eq.u32 %p4, %r1, 0;\n@%p4 fence.acq_rel.gpu;"},
        # What publishes is no longer what was released.
        {"send": "@%p1 fence.acq_rel.gpu;\n@%p1 st.global.b32 [ %rd1 ], { 1 };"},
        # Loads that cannot race may come in any order.
        {"poll": "ld.relaxed.gpu.global.b32", "load": "ld.relaxed.gpu.global.b32"},
        {"poll": "ld.relaxed.gpu.global.b32", "load": "ld.volatile.global.b32"},
        # Seen is not acquired: the ordinary load may come from a cache that the other one passes by.
        {"poll": "ld.relaxed.gpu.global.b32", "after": "ld.volatile.global.b32 { %r9 }, [ %rd6 ];"},
    ],
    ids=["no-release", "no-acquire", "another-flag", "another-thread", "weak-flag", "relaxed", "volatile", "seen"],
)
def test_a_message_out_of_order_is_lost_sometimes(changed: dict[str, str]) -> None:
    results = [message(seed, **changed) for seed in SEEDS]
    assert not all(arrived for arrived, _ in results)
    if "load" not in changed:
        assert any(races for _, races in results)


def races(body: str, *, together: bool = True, weak: bool = False, programs: int = 2, **options: Any) -> int:
    first, second = np.zeros(64, np.uint32), np.zeros(64, np.uint32)
    head = "mad.wide.u32 %rd3, %r1, 4, %rd1;\nmad.wide.u32 %rd4, %r2, 128, %rd3;\nadd.s32 %r3, %r1, %r2;\n"
    options = {"programs": programs, "together": together, "weak": weak} | options
    return len(run(head + body, first, second, **options).races)


@pytest.mark.parametrize("weak", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_programs_that_touch_one_place_race(together: bool, weak: bool) -> None:
    """%rd3 leads to the same 128 bytes in both programs, %rd4 to each one's own."""
    how: dict[str, Any] = {"together": together, "weak": weak}
    own = "ld.global.b32 { %r4 }, [ %rd4 ];\nst.global.b32 [ %rd4 ], { %r3 };\nld.global.b32 { %r4 }, [ %rd4 ];"
    assert races(own, **how) == 0
    assert races("ld.global.b32 { %r4 }, [ %rd3 ];", **how) == 0
    assert races("red.relaxed.gpu.global.add.u32 [ %rd3 ], 1;", **how) == 0
    assert races("st.global.b32 [ %rd3 ], { %r3 };", **how) > 0
    one_stores = "setp.eq.u32 %p1, %r2, {};\n@%p1 st.global.b32 [ %rd3 ], {{ %r3 }};\n@!%p1 {}"
    for who in (0, 1):  # one of them stores before the other loads, one after it
        assert races(one_stores.format(who, "ld.global.b32 { %r4 }, [ %rd3 ];"), **how) > 0


def test_a_store_behind_another_programs_load_needs_an_order() -> None:
    """Program 0 loads, then says that it has; program 1 waits, and stores there."""
    body = """
    setp.ne.u32 %p2, %r2, 0;
    @%p2 bra other;
    ld.global.b32 {{ %r4 }}, [ %rd3 + 4 ];
    {barrier}
    setp.eq.u32 %p1, %r1, 0;
    @%p1 red.{order}.gpu.global.add.u32 [ %rd2 ], 1;
    bra end;
other:
    ld.{wait}.gpu.global.b32 {{ %r5 }}, [ %rd2 ];
    setp.eq.s32 %p3, %r5, 0;
    @%p3 bra other;
    st.global.b32 [ %rd3 + 4 ], {{ %r1 }};
end:
"""
    right = {"barrier": "bar.sync 0;", "order": "release", "wait": "acquire"}
    for seed in SEEDS:
        assert races(body.format(**right), seed=seed, weak=True) == 0
        assert races(body.format(**right | {"order": "relaxed"}), seed=seed, weak=True) > 0
        assert races(body.format(**right | {"wait": "relaxed"}), seed=seed, weak=True) > 0


def received(body: str, seed: int, places: int = 64, **options: Any) -> Array:
    first, second = np.zeros(64, np.uint32), np.zeros(places, np.uint32)
    run("mad.wide.u32 %rd3, %r1, 4, %rd2;\n" + body, first, second, weak=True, seed=seed, drain=0.05, **options)
    return second


def test_a_thread_s_own_stores_keep_their_order() -> None:
    """A wide one and a narrow one into it; a store and an atomic operation behind it."""
    for seed in SEEDS:
        out = received("mov.b32 %r3, 5;\nst.global.b32 [ %rd3 ], { %r3 };\nst.global.b16 [ %rd3 + 2 ], { 9 };", seed)
        assert (out[:32] == 5 + (9 << 16)).all()
        atomic = "mov.b32 %r3, 5;\nst.global.b32 [ %rd3 ], { %r3 };\natom.relaxed.gpu.global.add.u32 %r4, [ %rd3 ], 2;"
        out = received(atomic + "\nst.global.b32 [ %rd3 + 128 ], { %r4 };", seed)
        assert (out[:32] == 7).all() and (out[32:] == 5).all()


def test_without_a_barrier_a_release_leaves_other_threads_stores_behind() -> None:
    """Though the warps run in lockstep, and all have stored before one of them releases."""
    body = MESSAGE.replace("bar.sync 0;", "").format(**RIGHT)
    arrived = []
    for seed in SEEDS:
        first, second = np.zeros(1, np.uint32), np.full(128, 999, np.uint32)
        run(body, first, second, threads=64, programs=2, weak=True, seed=seed, groups=1, drain=0.05)
        arrived.append(bool((second[64:] == np.arange(64)).all()))
    assert not all(arrived)


def test_without_a_barrier_another_threads_store_may_not_be_there_yet() -> None:
    body = "xor.b32 %r3, %r1, 32;\nmad.wide.u32 %rd4, %r3, 4, %rd2;\nst.global.b32 [ %rd3 ], { %r1 };\n"
    body += "ld.global.b32 { %r4 }, [ %rd4 ];\nst.global.b32 [ %rd3 + 256 ], { %r4 };"
    for seed in SEEDS:
        second = received(body, seed, threads=64, groups=1, places=128)
        if (second[64:] != np.arange(64) ^ 32).any():
            return
    pytest.fail("always there")


class Chance(random.Random):
    """Every load that may be stale is, as long as the value is 0; none where it is 1."""

    value = 0.0

    def random(self) -> float:
        return self.value


class Two:
    """Two programs, the first thread of each, and two buffers."""

    def __init__(self) -> None:
        self.chance = Chance()
        self.memory = Memory(True, self.chance)
        self.memory.add(np.zeros(16, np.uint8), "data")
        self.memory.add(np.zeros(16, np.uint8), "flag")
        self.data, self.flag = self.memory.buffers
        self.sender, self.receiver = View(self.memory, 32), View(self.memory, 32)

    def store(self, by: View, values: list[int], at: int = 0) -> None:
        by.store(self.data, np.array([at]), np.array([values], np.uint8), np.array([0]), "weak", 1)

    def release(self, by: View) -> None:
        by.add_atomically(self.flag, 0, 1, 0, "release", 2)

    def load(self, by: View, buffer: Buffer, order: str = "weak") -> list[int]:
        found: list[int] = by.load(buffer, np.array([0]), 4, np.array([0]), order, 3)[0].tolist()
        return found

    def races(self) -> list[tuple[int, int]]:
        return [(race.line, race.other) for race in self.memory.races]


def test_an_acquire_of_an_older_value_acquires_what_that_was_released_with() -> None:
    two = Two()
    two.store(two.sender, [1] * 4)
    two.release(two.sender)
    assert two.load(two.receiver, two.flag, "acquire") == [0] * 4
    assert two.load(two.receiver, two.data) == [0] * 4
    assert two.races() == [(3, 1)]
    two.chance.value = 1.0
    assert two.load(two.receiver, two.flag, "acquire") == [1, 0, 0, 0]
    two.chance.value = 0.0
    assert two.load(two.receiver, two.data) == [1] * 4


@pytest.mark.parametrize(("order", "then"), [("weak", 1), ("volatile", 0)])
def test_what_a_load_has_seen_the_next_one_of_its_kind_sees(order: str, then: int) -> None:
    """But an ordinary load does not see what a volatile one has seen."""
    two = Two()
    two.store(two.sender, [1] * 4)
    two.release(two.sender)
    two.chance.value = 1.0
    assert two.load(two.receiver, two.data, order) == [1] * 4
    two.chance.value = 0.0
    assert two.load(two.receiver, two.data, order) == [1] * 4
    assert two.load(two.receiver, two.data) == [then] * 4


def test_a_stale_load_is_stale_only_where_it_may_be() -> None:
    two = Two()
    two.store(two.sender, [1, 1])
    two.release(two.sender)
    two.chance.value = 1.0
    two.load(two.receiver, two.flag, "acquire")
    two.chance.value = 0.0
    two.store(two.sender, [2, 2], at=2)
    two.release(two.sender)
    assert two.load(two.receiver, two.data) == [1, 1, 0, 0]


@pytest.mark.parametrize("released", [False, True])
def test_a_program_that_loads_too_does_not_hide_the_others_load(released: bool) -> None:
    two = Two()
    two.load(two.sender, two.data)
    if released:
        two.release(two.sender)
    two.chance.value = 1.0
    two.load(two.receiver, two.flag, "acquire")
    two.load(two.receiver, two.data)
    two.store(two.receiver, [1] * 4)
    two.receiver.release(0)
    assert bool(two.races()) != released
