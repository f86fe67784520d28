"""Modelled, not measured: cycles of a kernel's time step or launch, and of its way from a poll to what it publishes.

What is run is the machine code as `sass.walk` goes through it, on the multiprocessor of `multiprocessor.py`. What that
leaves out is the same for every kernel: how long a store is under way, and the poll that just missed it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.measure.multiprocessor import ASSUMED, UNKNOWN, Assumptions, Timeline, simulate
from bench.measure.sass import CLASSES, Instruction, loops, main_loop, walk

NOTE = "modelled, not measured"
TURNS = 5  # of the loop over time; the last two count


@dataclass(frozen=True)
class Figures:
    """What the model says of a kernel: of one time step, or of a whole launch."""

    cycles: int
    chain: int | None  # from the last poll's result to the store that publishes; None without an exchange
    exchanges: int  # such ways in a step, whose sum `chain` is
    classes: dict[str, int]  # instructions of a warp, by class
    unknown: tuple[str, ...]  # opcodes that the model does not know: not to be trusted

    @property
    def instructions(self) -> int:
        return sum(self.classes.values())


def time_step(code: Sequence[Instruction], warps: int, assumed: Assumptions = ASSUMED) -> Figures:
    """A turn of the loop over time.

    Raises:
        ValueError: there is no loop.
    """
    span = main_loop(code)
    if span is None:
        raise ValueError("no loop in the machine code")
    path = walk(code, span)
    program = [code[i] for i in path]
    timeline = simulate(program, warps, TURNS, assumed)
    inner = [loop for loop in loops(code) if span[0] <= loop[0] and loop[1] < span[1]]
    polling = [any(first <= i <= last for first, last in inner) for i in path]
    ways = exchange_ways(program, polling, timeline, TURNS)
    cycles = round(timeline.period(len(program)))
    return Figures(cycles, sum(ways) if ways else None, len(ways), *_counts(program))


def whole_launch(
    code: Sequence[Instruction], warps: int, trips: tuple[int, ...], assumed: Assumptions = ASSUMED
) -> Figures:
    """All of a program; what it takes to start a launch is left out. trips: as `walk` takes them."""
    program = [code[i] for i in walk(code, trips=trips)]
    return Figures(simulate(program, warps, 1, assumed).end, None, 0, *_counts(program))


def exchange_ways(program: Sequence[Instruction], polling: Sequence[bool], timeline: Timeline, turns: int) -> list[int]:
    """Cycles of each way from a poll's result to the next publishing store, in the last turn but one.

    polling: whether an instruction is in an inner loop, as polls are that have to be repeated. What publishes is the
    first store after a poll, of those that say how strong they are (an arrival that is counted does) if there are any.
    From when the last warp has its last poll's result until the last one has stored.
    """
    loads = [i for i, one in enumerate(program) if _shared_read(one)]
    polls = {i for i in loads if polling[i]} or set(loads)
    outside = [i for i, one in enumerate(program) if not polling[i] and one.base in ("STG", "ST", "RED", "REDG")]
    strong = [i for i in outside if "STRONG" in program[i].opcode]
    stores = set(strong or outside)
    length, ways, pending = len(program), [], []
    first = (turns - 2) * length
    for at in range(first, first + 2 * length):  # a store may publish in the next turn what a poll in this one brought
        if at % length in polls:
            pending.append(at)
        elif at % length in stores and pending:
            if pending[-1] < first + length:
                arrived = max(results[poll] for results in timeline.results for poll in pending)
                ways.append(max(issued[at] for issued in timeline.issued) - arrived)
            pending = []
    return ways


def _shared_read(instruction: Instruction) -> bool:
    """Whether it reads what other programs write meanwhile."""
    strong = instruction.base in ("LDG", "LD") and "STRONG" in instruction.opcode
    return strong or instruction.base in ("ATOMG", "ATOM")


def _counts(program: Sequence[Instruction]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Instructions by class, and the opcodes that the model does not know."""
    counted = Counter(instruction.kind for instruction in program)
    # A call with a predicate is a branch that is not taken: ptxas leaves loops by it on sm_80.
    unknown = {i.base for i in program if UNKNOWN.fullmatch(i.base) and not (i.base == "CALL" and i.conditional)}
    return {name: counted[name] for name in (*CLASSES, "other")}, tuple(sorted(unknown))
