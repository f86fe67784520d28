"""A machine that runs a translated kernel: all programs, their warps in an order of chance.

    memory = Memory(weak=True, rng=random.Random(seed))
    Machine(translation, grid, shared_bytes, memory).run(parameters, together=True)

It raises Fault for an access out of bounds, and for programs that do not end; races are collected.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import numpy as np

from tests.ptx.memory import Fault, Memory, Race, View
from tests.ptx.operands import width
from tests.ptx.shared import SharedMemory
from tests.ptx.translate import Translation
from tests.ptx.values import UNSIGNED, Array
from tests.ptx.warps import WARP, Warps

BURSTS = (1, 1, 2, 5, 20)  # segments that warps run before others may


class Program:
    """One program of the grid: a CTA."""

    def __init__(self, machine: Machine, index: tuple[int, int, int], groups: int | None) -> None:
        self.machine, self.index = machine, index
        self.id = [np.array([i], np.uint32) for i in index]
        self.grid = [np.array([i], np.uint32) for i in machine.grid]
        self.ntid = np.array([machine.translation.text.threads], np.uint32)
        self.parameters = machine.parameters
        self.warps = machine.translation.text.threads // WARP
        garbage = machine.rng.randrange(256)
        self.shared = SharedMemory(machine.shared_bytes, machine.translation.granule, garbage, self.warps)
        self.view = View(machine.memory, self.warps * WARP)
        # Warps in one group run in lockstep; how many groups there are is a matter of chance, unless it is given.
        parts = min(self.warps, groups or machine.rng.randint(1, self.warps))
        cuts = [0, *sorted(machine.rng.sample(range(1, self.warps), parts - 1)), self.warps]
        self.groups: list[Warps] = []
        for first, last in pairwise(cuts):
            self.groups.append(Warps(self, np.arange(first * WARP, last * WARP)))

    def pass_barrier(self) -> None:
        self.shared.barrier()
        self.view.barrier()
        for group in self.groups:
            group.mark_copies()


class Machine:
    """One launch.

    groups: into how many groups the warps of a program are divided, None for any number.
    limit: segments after which a launch counts as one that does not end.
    drain: how probable it is that, each turn, some of a program's stores arrive.
    absent: programs that never run, by their number along the grid's first axis.
    """

    def __init__(
        self,
        translation: Translation,
        grid: tuple[int, ...],
        shared_bytes: int,
        memory: Memory,
        *,
        groups: int | None = None,
        limit: int = 2_000_000,
        drain: float = 0.3,
        absent: frozenset[int] = frozenset(),
    ) -> None:
        self.translation, self.shared_bytes, self.memory = translation, shared_bytes, memory
        self.grid = (*grid, 1, 1)[:3]
        self.rng: random.Random = memory.rng
        self.groups, self.limit, self.drain, self.absent = groups, limit, drain, absent
        self.executed = [0] * len(translation.segments)  # how often a warp has run each segment
        self.garbage = _garbage(translation, self.rng)
        self.steps = 0
        self.races: list[Race] = []
        self.parameters: dict[str, np.ndarray] = {}

    def run(self, arguments: list[int], *, together: bool) -> None:
        """together: whether all programs run at once, or one after another."""
        for (name, size), value in zip(self.translation.text.parameters, arguments, strict=True):
            self.parameters[name] = np.array([value % (1 << 8 * size)], UNSIGNED[8 * size])
        x, y, z = self.grid
        programs = [(i, j, k) for k in range(z) for j in range(y) for i in range(x) if i not in self.absent]
        with np.errstate(all="ignore"):
            if together:
                self._run([Program(self, index, self.groups) for index in programs])
            else:
                for index in programs:
                    self._run([Program(self, index, self.groups)])
        self.races += self.memory.races
        self.memory.write_back()

    def _run(self, programs: list[Program]) -> None:
        rng, live = self.rng, list(programs)
        while live:
            program = live[rng.randrange(len(live))]
            ready = [group for group in program.groups if group.state == "ready"]
            if not ready:
                raise Fault(f"program {program.index}: some warps wait at a barrier that others never reach")
            group = ready[rng.randrange(len(ready))]
            alone = len(live) == 1 and len(ready) == 1 and not self.memory.weak
            self._advance(group, 1000 if alone else rng.choice(BURSTS))
            if self.steps > self.limit:
                at = [(p.index, [g.next for g in p.groups]) for p in live]
                raise Fault(f"no end after {self.steps} segments; programs, and the segments they are at: {at}")
            if all(other.state == "barrier" for other in program.groups):
                program.pass_barrier()
                for other in program.groups:
                    other.state = "ready"
            elif all(other.state == "done" for other in program.groups):
                live.remove(program)
                self.races += program.shared.races
            if self.memory.weak:
                for other_program in programs:
                    if other_program.view.pending and rng.random() < self.drain:
                        other_program.view.drain()
        for program in programs:
            while program.view.pending:
                program.view.drain()

    def _advance(self, group: Warps, burst: int) -> None:
        segments, executed = self.translation.segments, self.executed
        for _ in range(burst):
            now = group.next
            executed[now] += group.n // WARP
            self.steps += 1
            group.next = segments[now](group)
            if group.next < 0:
                group.state = "done"
            if group.state != "ready" or group.next <= now:  # who goes round a loop may wait for another
                return

    def instructions(self) -> Counter[str]:
        """Executed warp instructions by class."""
        total: Counter[str] = Counter()
        for times, classes in zip(self.executed, self.translation.counts, strict=True):
            for name, number in classes.items():
                total[name] += number * times
        return total


def _garbage(translation: Translation, rng: random.Random) -> list[Array]:
    """What registers hold before they are written: a half that nobody reads is packed with another, say."""
    found: list[Array] = []
    for name in translation.registers:
        bits = 1 if name.startswith("%p") else width(name)
        found.append(np.array([rng.getrandbits(bits)], bool if bits == 1 else UNSIGNED[bits]))
    return found
