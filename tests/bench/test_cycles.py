"""The model of cycles: machine code is read rightly, and runs as long as it does by hand; a slower row is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.measure import cycles
from bench.measure.multiprocessor import ASSUMED, Assumptions, simulate
from bench.measure.sass import NO_SCOREBOARD, Instruction, body, decode, loops, main_loop, walk

ROOT = Path(__file__).parents[2]


def listing(*lines: str) -> str:
    """What cuobjdump would print: lines of "text | stall result read waits", of which those that are left out are none.

    Scoreboards are numbers or "-", those waited for are the digits of a word.
    """
    printed = ["\tcode for sm_90", "\t\tFunction : kernel"]
    for i, line in enumerate(lines):
        text, _, control = line.partition("|")
        stall, result, read, waits, *_ = [*control.split(), *["1", "-", "-", ""][len(control.split()) :]]
        boards = [NO_SCOREBOARD if board == "-" else int(board) for board in (result, read)]
        mask = sum(1 << int(board) for board in waits)
        # Bit 45 (yield), bits 58 on (operands that are kept) and the lowest ones (operands) say nothing of the time.
        word = 0x4000_2000_0000_0A5F | int(stall) << 41 | boards[0] << 46 | boards[1] << 49 | mask << 52
        printed.append(f"        /*{16 * i:04x}*/                   {text.strip()} ;   /* 0x0000000000007919 */")
        printed.append(f"                                                            /* 0x{word:016x} */")
    return "\n".join(printed)


def code_of(*lines: str) -> list[Instruction]:
    return decode(listing(*lines))


def issued(*lines: str, warps: int = 1, assumed: Assumptions = ASSUMED) -> list[list[int]]:
    """When each warp issues each instruction."""
    return simulate(code_of(*lines), warps, assumed=assumed).issued


# Instructions as cuobjdump printed them, of a split kernel for sm_90.
PRINTED = """
        /*1a90*/               @P1 LDG.E.128.STRONG.SYS R40, desc[UR8][R44.64] ;                /* 0x000000082c281981 */
                                                                                                /* 0x000ea2000c1f5d00 */
        /*1b10*/                   VIMNMX.U16x2 R55, R76, R40, !PT ;                            /* 0x000000284c377248 */
                                                                                                /* 0x004fe40007fe0200 */
        /*1c10*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;                                /* 0x0000000000007b1d */
                                                                                                /* 0x000fec0000010000 */
"""


def test_decode_reads_the_control_fields() -> None:
    load, maximum, barrier = decode(PRINTED)
    assert load == Instruction(0x1A90, "@P1 LDG.E.128.STRONG.SYS R40, desc[UR8][R44.64]", 1, 2, 7, ())
    assert (load.opcode, load.base, load.kind) == ("LDG.E.128.STRONG.SYS", "LDG", "global")
    assert (load.element_bytes, load.conditional, load.operands[0]) == (16, True, "R40")
    assert (maximum.stall, maximum.waits, maximum.kind, maximum.conditional) == (2, (2,), "other", False)
    assert (barrier.stall, barrier.result, barrier.read, barrier.waits, barrier.kind) == (6, 7, 7, (), "barrier")


@pytest.mark.parametrize("stall", [1, 15])
@pytest.mark.parametrize("boards", ["- -", "0 5", "5 0"])
@pytest.mark.parametrize("waits", ["", "0", "135", "012345"])
def test_decode_tells_the_control_fields_apart(stall: int, boards: str, waits: str) -> None:
    (found,) = code_of(f"FADD R1, R1, R2 | {stall} {boards} {waits}")
    result, read = (NO_SCOREBOARD if board == "-" else int(board) for board in boards.split())
    assert (found.stall, found.result, found.read, found.waits) == (stall, result, read, tuple(map(int, waits)))


def test_nothing_to_decode_is_an_error() -> None:
    with pytest.raises(ValueError, match="no instruction"):
        decode("cuobjdump info    : File '/tmp/x.cubin' does not contain device code")


def nested(last: str) -> list[Instruction]:
    """A loop over batch tiles, in it the one over time, in it a poll; and a piece that was moved out of the way."""
    return code_of(
        "S2R R0, SR_CTAID.Y",
        "MOV R1, R0",  # 1: batch tiles
        "FADD R1, R1, R1",  # 2: time
        "LDG.E R1, [R2]",  # 3: poll
        "@P0 BRA 0x30",
        "@P3 BRA 0xd0",
        "HMMA.16816.F32.BF16 R4, R4, R8, R4",
        "HMMA.16816.F32.BF16 R4, R4, R8, R4",
        "@P1 BRA 0x20",
        f"{last}",
        "@!P2 BRA P5, 0x10",
        "EXIT",
        "BRA 0xc0",
        "FADD R9, R9, R9",
        "BRA 0x60",
    )


@pytest.mark.parametrize(
    ("last", "found"),
    [
        pytest.param("STG.E [R2], R4", (2, 8), id="all in the inner loop"),
        pytest.param("HMMA.16816.F32.BF16 R4, R4, R8, R4", (1, 10), id="one outside of it"),
    ],
)
def test_the_loop_over_time_is_found_within_the_one_over_batch_tiles(last: str, found: tuple[int, int]) -> None:
    code = nested(last)
    assert main_loop(code) == found
    assert loops(code) == [(3, 4), (2, 8), (1, 10), (6, 14)]


def test_a_loop_holds_what_was_moved_out_of_its_way_and_a_turn_does_not_go_there() -> None:
    code = nested("NOP")
    assert body(code, (2, 8)) == {*range(2, 9), 13, 14}
    assert walk(code, (2, 8)) == list(range(2, 9))


def test_a_turn_takes_the_branch_around_what_leaves_the_loop() -> None:
    code = code_of(
        "NOP",
        "FADD R1, R1, R1",
        "@!P0 BRA 0x50",
        "STG.E [R2], R1",  # gave up waiting
        "BRA 0x80",
        "@P1 BRA 0x70",  # only some threads do the next one: it counts
        "FADD R3, R3, R3",
        "@P2 BRA 0x10",
        "EXIT",
    )
    assert walk(code, (1, 7)) == [1, 2, 5, 6, 7]


@pytest.mark.parametrize("before", ["FADD R1, R1, R1", "HMMA.16816.F32.BF16 R4, R4, R8, R4", "STG.E [R2], R1"])
@pytest.mark.parametrize("skipped", ["STG.E [R4], R5", "FADD R5, R5, R5"])
@pytest.mark.parametrize("end", ["NOP", "BSYNC B0"])
def test_a_turn_leaves_out_what_is_done_after_a_wait_in_vain(before: str, skipped: str, end: str) -> None:
    code = code_of(
        "NOP",
        "NOP",
        "LDG.E.STRONG.SYS R1, [R2]",
        "@P0 BRA P5, 0x20",
        before,
        "@!P1 BRA 0x80",
        "MOV R5, 1",
        skipped,  # sets the fault word
        end,
        "@P2 BRA 0x10",
        "EXIT",
    )
    in_vain = "FADD" in before and "STG" in skipped and end == "NOP"
    assert walk(code, (1, 9)) == [1, 2, 3, 4, 5, *([] if in_vain else [6, 7]), 8, 9]


def test_a_poll_whose_jump_back_has_no_predicate_ends() -> None:
    code = code_of("NOP", "NOP", "LDG.E R1, [R2]", "@P0 BRA 0x50", "BRA 0x20", "NOP", "@P2 BRA 0x10", "EXIT")
    assert walk(code, (1, 6)) == [1, 2, 3, 5, 6]


def test_a_launch_runs_its_loops_with_products_as_often_as_it_is_told() -> None:
    code = code_of(
        "MOV R1, R2",  # then gates, in it the inner dimension, in it a wait
        "NOP",
        "LDG.E R1, [R2]",
        "@P0 BRA 0x20",
        "HMMA.16816.F32.BF16 R4, R4, R8, R4",
        "@P1 BRA 0x20",
        "@P2 BRA 0x10",
        "@P3 EXIT",
        "EXIT",
    )
    inner, outer = [2, 3, 4, 5], [1, 2, 3, 4, 5]
    assert walk(code, trips=(3, 2)) == [0, *2 * [*outer, *inner, *inner, 6], 7, 8]


def test_a_stall_count_is_waited_for() -> None:
    assert issued("FADD R1, R1, R2 | 4", "FADD R1, R1, R2 | 2", "FADD R1, R1, R2") == [[0, 4, 6]]


def test_a_scoreboard_is_waited_for() -> None:
    """The load's 29 cycles; the address register is free after 12."""
    lines = "LDS R1, [R2] | 2 0 1", "MOV R3, R4", "MOV R2, R4 | 1 - - 1", "FADD R1, R1, R5 | 1 - - 0"
    assert issued(*lines) == [[0, 2, 12, 29]]


def test_several_results_of_one_scoreboard_are_waited_for() -> None:
    """One row of 512 bytes takes 4 cycles of shared memory, so its result comes 29 + 3 after it."""
    assert issued("LDS.128 R4, [R2] | 1 0", "LDS R1, [R2] | 1 0", "FADD R1, R1, R4 | 1 - - 0") == [[0, 4, 33]]
    assert issued("LDG.E R4, [R2] | 1 0", "LDS R1, [R2] | 1 0", "FADD R1, R1, R4 | 1 - - 0") == [[0, 1, 602]]


def test_a_barrier_waits_for_the_last_of_four_warps() -> None:
    """They get shared memory one after another for 4 cycles, so the last comes at 12 + 32; the others wait."""
    lines = "LDS.128 R4, [R2] | 1 0", "BAR.SYNC.DEFER_BLOCKING 0x0 | 6 - - 0", "FADD R4, R4, R4"
    assert issued(*lines, warps=4) == [[4 * w, 4 * w + 32, 12 + 32 + 25 + 6] for w in range(4)]


def test_a_busy_pipe_is_waited_for() -> None:
    assert issued("MUFU.EX2 R1, R2", "MUFU.EX2 R3, R4", "FADD R5, R6, R7") == [[0, 8, 9]]
    # Five warps: the first and the last share a sub-core and its pipe, not the others.
    assert issued("MUFU.EX2 R1, R2", warps=5) == [[0], [0], [0], [0], [8]]


def test_a_sub_core_issues_one_instruction_a_cycle_in_turn() -> None:
    assert issued("FADD R1, R2, R3", "FADD R4, R5, R6", warps=9)[::4] == [[0, 3], [1, 4], [2, 5]]


def test_products_that_add_to_one_another_wait() -> None:
    product = "HMMA.16816.F32.BF16 {d}, R40, R44, {c} | 1"
    chained = product.format(d="R8", c="RZ"), product.format(d="R4", c="R8"), product.format(d="R0", c="R4")
    assert issued(*chained) == [[0, 33, 66]]
    apart = product.format(d="R8", c="RZ"), product.format(d="R4", c="R12"), product.format(d="R0", c="R16")
    assert issued(*apart) == [[0, 8, 16]]


def test_shared_memory_gives_128_bytes_a_cycle() -> None:
    """4 warps of 2 loads of 512 bytes are 32 cycles; another one comes after them."""
    times = issued(*["LDSM.16.M88.4 R4, [R2] | 1"] * 2, warps=4)
    assert sorted(time for warp in times for time in warp) == list(range(0, 32, 4))
    assert issued("LDS R1, [R2]", "LDS.64 R2, [R4]", "STS [R2], R5", "LDSM.16.M88.2 R6, [R7]", "LDS.U16 R1, [R2]") == [
        [0, 1, 3, 4, 6]
    ]


@pytest.mark.parametrize(("commits", "ready"), [(0, 618), (1, 608), (2, 20)])
def test_copies_to_shared_memory_are_waited_for_in_the_order_of_their_commits(commits: int, ready: int) -> None:
    """512 bytes take 8 cycles on their way, so that the first are there at 608, and those 10 cycles later at 618."""
    copy = "LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] | 1", "LDGDEPBAR | 9 0"
    assert issued(*copy, *copy, f"DEPBAR.LE SB0, 0x{commits:x} | 1", "FADD R1, R1, R1") == [
        [0, 1, 10, 11, ready, ready + 1]
    ]


def test_a_fence_and_a_strong_load_take_what_is_assumed() -> None:
    times = issued("MEMBAR.ALL.GPU | 6", "LDG.E.STRONG.GPU R1, [R2] | 1 0", "FADD R1, R1, R1 | 1 - - 0")
    assert times == [[0, 300, 602]]
    shorter = Assumptions(fence=100, strong_load=50)
    assert issued("MEMBAR.ALL.GPU | 6", "LDG.E.STRONG.GPU R1, [R2] | 1 0", "MOV R1, R1 | 1 - - 0", assumed=shorter) == [
        [0, 100, 152]
    ]


STEP = (
    "S2R R0, SR_CTAID.X",
    "MOV R9, R9 | 2",  # 1: time
    "LDG.E.STRONG.SYS R1, [R2] | 1 0",  # 2: poll; its result 302 later
    "ISETP.NE.AND P0, PT, R1, R3, PT | 13 - - 0",  # 304
    "@P0 BRA 0x20 | 5",  # 317
    "HMMA.16816.F32.BF16 R4, R4, R8, R4 | 15",  # 322
    "NOP | 9",  # 337
    "STG.E [R2], R4 | 1",  # 346
    "STG.E [R6], R4 | 1",  # 348: a store takes 2 cycles of the way to the L2 cache
    "@P1 BRA 0x10 | 5",  # 349
    "EXIT",
)


def test_a_time_step_and_its_way_from_poll_to_publish() -> None:
    found = cycles.time_step(code_of(*STEP), warps=1)
    assert (found.cycles, found.chain, found.exchanges, found.instructions) == (354, 346 - 304, 1, 9)
    counts = {"mma": 1, "ldmatrix": 0, "shared": 0, "global": 3, "barrier": 0, "shuffle": 0, "conversion": 0}
    assert found.classes == {**counts, "other": 5} and found.unknown == ()


def test_a_way_that_goes_on_in_the_next_turn_and_two_ways_in_one() -> None:
    """The poll at the end of the loop: what it brings is published by the first store of the next turn."""
    order = (0, 1, 5, 6, 7, 8, 2, 3, 4, 9, 10)
    late = [re.sub("BRA 0x20", "BRA 0x60", STEP[i]) for i in order]
    found = cycles.time_step(code_of(*late), warps=1)
    # ISETP 13, BRA 5, the jump back 5, MOV 2, HMMA 15 and NOP 9 before the store: 49; then two stores of 2 and the poll
    assert (found.cycles, found.chain, found.exchanges) == (49 + 2 + 2 + 302, 49, 1)
    twice = [*STEP[:9], *(re.sub("BRA 0x20", "BRA 0x90", line) for line in STEP[2:5]), *STEP[5:]]
    assert cycles.time_step(code_of(*twice), warps=1).exchanges == 2


def test_the_last_result_of_a_poll_counts_and_no_load_that_follows_it() -> None:
    both = (*STEP[:3], "LDG.E.STRONG.SYS R7, [R2+0x100] | 1 0", *STEP[3:])  # at 4, there at 306
    assert cycles.time_step(code_of(*both), warps=1).chain == 42
    gather = (*STEP[:5], "LDG.E.STRONG.GPU R7, [R2] | 1 0", "FADD R4, R7, R7 | 1 - - 0", *STEP[5:])  # 302 and 1 more
    assert cycles.time_step(code_of(*gather), warps=1).chain == 42 + 302 + 1


def test_an_arrival_that_is_counted_is_what_publishes() -> None:
    counted = (*STEP[:9], "REDG.E.ADD.STRONG.GPU [R8], R9 | 2", *STEP[9:])
    assert cycles.time_step(code_of(*counted), warps=1).chain == 350 - 304


def test_what_the_model_does_not_know_is_named() -> None:
    code = code_of(*STEP[:5], "HGMMA.64x64x16.F32.BF16 R4, R8, R4 | 1", "@!P5 CALL.REL.NOINC 0xa0 | 1", *STEP[5:])
    assert cycles.time_step(code, warps=4).unknown == ("HGMMA",)


def test_a_kernel_without_a_loop_over_time_is_refused() -> None:
    with pytest.raises(ValueError, match="no loop"):
        cycles.time_step(code_of("NOP", "EXIT"), warps=4)


def test_every_assumption_says_what_it_is() -> None:
    assert len(ASSUMED.lines()) == len(set(ASSUMED.lines())) >= 20
    assert all(re.fullmatch(r"\w+ +\d+  .{3,}", line) for line in ASSUMED.lines())
