"""A model of one multiprocessor that runs the warps of one program: when each issues each instruction.

The warps of a program are dealt to the sub-cores. A sub-core issues one instruction a cycle, of the warp that has
waited longest among those that may go on: ptxas's stall count has passed, the scoreboards that its instruction waits
for are free, its pipe is. So fixed latencies are ptxas's own, and `Assumptions` lists all that is not.

All warps run the same code, one program has the multiprocessor to itself, other programs are neither late nor in the
way, and shared memory has no bank conflicts.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from bench.measure.sass import NO_SCOREBOARD, Instruction


def _assumed(value: int, why: str) -> Any:
    return field(default=value, metadata={"why": why})


@dataclass(frozen=True)
class Assumptions:
    """Everything that the model does not read off the machine code: cycles, unless it says otherwise."""

    sub_cores: int = _assumed(4, "of a multiprocessor; warp w belongs to sub-core w modulo this")
    global_load: int = _assumed(600, "LDG, LDGSTS: from memory, as inputs are that nobody has read yet")
    strong_load: int = _assumed(300, "LDG.STRONG: from the L2 cache, as a poll and what others have published")
    atomic: int = _assumed(300, "ATOMG: to the L2 cache and back")
    fence: int = _assumed(300, "MEMBAR: until the L2 cache has answered the stores before it, one way and back")
    l2_bytes: int = _assumed(64, "bytes a cycle between a multiprocessor and the L2 cache")
    local_load: int = _assumed(33, "LDL: a spill that is in the L1 cache")
    shared_load: int = _assumed(29, "LDS")
    ldmatrix: int = _assumed(33, "LDSM")
    shared_bytes: int = _assumed(128, "bytes a cycle of shared memory, for the whole multiprocessor")
    barrier: int = _assumed(25, "BAR: from the last warp's arrival until all go on")
    mma_result: int = _assumed(33, "HMMA to an HMMA that adds to its result; ptxas itself keeps 24 apart on sm_90")
    mma_pipe: int = _assumed(8, "HMMA: its sub-core's tensor core is busy, m16n8k16 in 16 bit and m16n8k8 in tf32")
    mufu: int = _assumed(23, "MUFU: exponential, reciprocal, tanh")
    mufu_pipe: int = _assumed(8, "MUFU, F2F, I2F, F2I: their pipe is busy")
    integer_pipe: int = _assumed(2, "integer, comparison, packed conversion: half rate")
    shuffle: int = _assumed(24, "SHFL, REDUX")
    conversion: int = _assumed(12, "F2F, I2F, F2I, R2UR, VOTE")
    special_register: int = _assumed(20, "S2R, S2UR, CS2R where it sets a scoreboard")
    constant_load: int = _assumed(10, "LDC: in the constant cache")
    other_result: int = _assumed(10, "any other instruction that sets a scoreboard")
    operands_read: int = _assumed(12, "until an instruction has read its operands, where it says so by a scoreboard")

    def lines(self) -> list[str]:
        """The table as text."""
        return [f"{item.name:<17}{getattr(self, item.name):>5}  {item.metadata['why']}" for item in fields(self)]


ASSUMED = Assumptions()
RESULTS = {  # where the latency of a result stands
    "shared_load": ("LDS", "ATOMS"),
    "ldmatrix": ("LDSM",),
    "mufu": ("MUFU",),
    "shuffle": ("SHFL", "REDUX", "CREDUX"),
    "conversion": ("F2F", "I2F", "F2I", "R2UR", "VOTE"),
    "special_register": ("S2R", "S2UR", "CS2R"),
    "constant_load": ("LDC", "LDCU"),
    "atomic": ("ATOMG", "ATOM"),
    "global_load": ("LDG", "LD", "LDGSTS"),
    "local_load": ("LDL",),
    "mma_result": ("HMMA", "IMMA"),
}
RESULT_OF = {base: name for name, bases in RESULTS.items() for base in bases}
# fmt: off
INTEGER = (
    "IADD3", "LOP3", "ISETP", "SHF", "LEA", "PRMT", "SEL", "VIMNMX", "VIMNMX3", "IMNMX", "VIADD", "F2FP",
    "I2FP", "FSETP", "FMNMX", "PLOP3", "FSEL", "HSETP2", "BREV", "FLO", "POPC", "SGXT", "BMSK", "IABS",
)
# fmt: on
GLOBAL = ("LDG", "LD", "STG", "ST", "LDGSTS", "LDL", "STL", "ATOMG", "ATOM", "REDG", "RED", "CCTL")
SHARED = ("LDS", "STS", "LDSM", "STSM", "ATOMS")
# What the model does not follow: other matrix units, mailboxes of the copy engine, calls.
UNKNOWN = re.compile(r"HGMMA|QGMMA|UTC\w*|SYNCS|UTMA\w*|CALL|RET|BRX|BRXU|WARPGROUP\w*")


@dataclass(frozen=True)
class Cost:
    """What an instruction takes: a pipe for so long, and its result's latency."""

    pipe: str
    busy: int
    result: int
    made: tuple[int, ...] = ()  # registers of a matrix instruction's sum, 4 each
    added: tuple[int, ...] = ()  # and of what it adds to


def cost(instruction: Instruction, assumed: Assumptions) -> Cost:
    """The pipe of an instruction, how long it is busy for one warp, and the cycles until the result."""
    base, opcode = instruction.base, instruction.opcode
    result = getattr(assumed, RESULT_OF.get(base, "other_result"))
    if base in ("HMMA", "IMMA"):
        return Cost("mma", assumed.mma_pipe, result, _four(instruction, 0), _four(instruction, 3))
    if base in GLOBAL:
        strong = base in ("LDG", "LD") and "STRONG" in opcode
        busy = max(1, 32 * instruction.element_bytes // assumed.l2_bytes)
        return Cost("global", busy, busy + (assumed.strong_load if strong else result))
    if base in SHARED:
        matrices = re.search(r"88\.([24])$", opcode)
        size = int(matrices[1]) * 128 if matrices else 32 * instruction.element_bytes
        busy = max(1, size // assumed.shared_bytes)
        return Cost("shared", busy, result + busy - 1)
    if base in ("MUFU", "F2F", "I2F", "F2I"):
        return Cost("mufu", assumed.mufu_pipe, result)
    if base in INTEGER:
        return Cost("integer", assumed.integer_pipe, result)
    return Cost("", 0, result)


def _four(instruction: Instruction, operand: int) -> tuple[int, ...]:
    """The four registers of an operand of a matrix instruction; none if it is the zero register."""
    found = re.search(r"\bR(\d+)", instruction.operands[operand]) if len(instruction.operands) > operand else None
    return tuple(range(int(found[1]), int(found[1]) + 4)) if found else ()


@dataclass
class Warp:
    """Where one warp is, and what it waits for."""

    sub_core: int
    at: int = 0  # instructions issued
    free: int = 0  # its stall has passed
    last: int = -1  # when it issued its last one
    boards: list[int] = field(default_factory=lambda: [0] * 6)
    sums: dict[int, int] = field(default_factory=dict)  # register: when a matrix instruction's result is there
    copying: int = 0  # when the copies to shared memory since the last commit are there
    copies: list[int] = field(default_factory=list)  # and those of each commit


@dataclass(frozen=True)
class Timeline:
    """When each warp issued each instruction, and had its result."""

    issued: list[list[int]]
    results: list[list[int]]

    @property
    def end(self) -> int:
        """Cycles until the last warp has issued its last instruction."""
        return 1 + max(times[-1] for times in self.issued)

    def period(self, instructions: int) -> float:
        """Cycles of a turn of `instructions`, once the first turns have passed: of the slowest warp, over two turns."""
        return max((times[-instructions] - times[-3 * instructions]) / 2 for times in self.issued)


def simulate(program: Sequence[Instruction], warps: int, turns: int = 1, assumed: Assumptions = ASSUMED) -> Timeline:
    """Run `warps` warps through the program, `turns` times without a pause."""
    costs = [cost(instruction, assumed) for instruction in program]
    length = len(program)
    team = [Warp(w % assumed.sub_cores) for w in range(warps)]
    pipes: Counter[tuple[str, int]] = Counter()  # until when each is busy
    slots = [0] * assumed.sub_cores  # the next cycle in which a sub-core may issue
    issued: list[list[int]] = [[] for _ in team]
    results: list[list[int]] = [[] for _ in team]
    waiting: list[int] = []  # at a barrier
    queue = [(0, -1, w) for w in range(warps)]

    def pipe_of(warp: Warp, name: str) -> tuple[str, int]:
        return name, -1 if name in ("shared", "global") else warp.sub_core

    def earliest(warp: Warp) -> int:
        instruction, needs = program[warp.at % length], costs[warp.at % length]
        times = [warp.free, slots[warp.sub_core], *(warp.boards[board] for board in instruction.waits)]
        if needs.pipe:
            times.append(pipes[pipe_of(warp, needs.pipe)])
        if needs.added:
            times += [warp.sums.get(register, 0) for register in needs.added]
        if instruction.base == "DEPBAR":
            times.append(_copied(warp, instruction))
        return max(times)

    while queue:
        time, _, w = heapq.heappop(queue)
        warp = team[w]
        now = earliest(warp)
        if now > time:  # others were faster; the earliest time of a warp only grows
            heapq.heappush(queue, (now, warp.last, w))
            continue
        instruction, needs = program[warp.at % length], costs[warp.at % length]
        slots[warp.sub_core] = now + 1
        if needs.pipe:
            pipes[pipe_of(warp, needs.pipe)] = now + needs.busy
        warp.free, warp.last = now + max(1, instruction.stall), now
        done = now + needs.result
        if instruction.base == "LDGSTS":
            warp.copying = max(warp.copying, done)
            done = now + assumed.operands_read
        elif instruction.base == "LDGDEPBAR":
            done = warp.copying
            warp.copies.append(done)
            warp.copying = 0
        elif instruction.base == "MEMBAR":
            warp.free = now + assumed.fence
        for register in needs.made:
            warp.sums[register] = done
        if instruction.result != NO_SCOREBOARD:
            warp.boards[instruction.result] = max(warp.boards[instruction.result], done)
        if instruction.read != NO_SCOREBOARD:
            warp.boards[instruction.read] = max(warp.boards[instruction.read], now + assumed.operands_read)
        issued[w].append(now)
        results[w].append(done)
        warp.at += 1
        if instruction.base == "BAR" and ".ARV" not in instruction.opcode:
            waiting.append(w)
            if len(waiting) < warps:
                continue
            for other in waiting:
                team[other].free = now + assumed.barrier + max(1, instruction.stall)
            released, waiting = waiting, []
        else:
            released = [w]
        for other in released:
            if team[other].at < turns * length:
                heapq.heappush(queue, (team[other].free, team[other].last, other))
    return Timeline(issued, results)


def _copied(warp: Warp, instruction: Instruction) -> int:
    """When all copies to shared memory but the last few commits are there: DEPBAR.LE SB0, how many."""
    found = re.search(r"\bSB\d, 0x([0-9a-f]+)", instruction.text)
    older = warp.copies[: len(warp.copies) - int(found[1], 16)] if found else warp.copies
    return max(older, default=0)
