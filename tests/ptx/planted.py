"""Faults planted in a kernel, in the process that compiles: each is to be noticed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fastcells.errors import KernelFault
from fastcells.kernels.triton import exchange, fault, launch_split
from tests.ptx import broken
from tests.ptx.cases import Case, Result, run
from tests.ptx.launch import Edit
from tests.ptx.memory import Fault
from tests.ptx.parse import Text

BROKEN: dict[str, dict[str, Any]] = {
    "off-by-one counter": {"wait": broken.wait_for_one_less},
    "wrong mask": {"publish": broken.publish_unmasked},
    "no barrier before the release": {"arrive": broken.arrive_without_barrier},
    "out of bounds": {"gather": broken.gather_past_the_row},
}


def run_broken(case: Case, name: str) -> str:
    """What the machine says of a case whose exchange has this fault: "right", or how it was noticed."""
    exchanged = replace(exchange.EXCHANGES[case.exchange], **BROKEN[name])
    with mock.patch.dict(exchange.EXCHANGES, {case.exchange: exchanged}):
        return verdict(case)


def run_edited(case: Case, kernel: str, edit: Edit) -> str:
    return verdict(replace(case, options=replace(case.options, edits={kernel: edit})))


def verdict(case: Case) -> str:
    """How a run ends, in a word."""
    try:
        result: Result = run(case)
    except KernelFault:
        return "gave up"
    except Fault as noticed:
        return "no end" if "no end" in str(noticed) else "bad access"
    if any(result.races.values()):
        return "race"
    return "right" if result.right else "wrong"


def publish_late(text: Text) -> Text:
    """The last store before the release of an arrival trades places with it."""
    instructions = list(text.instructions)
    release = next(i for i, x in enumerate(instructions) if x.parts[0] in ("atom", "red") and "release" in x.parts)
    store = max(i for i in range(release) if instructions[i].opcode.startswith("st.global"))
    instructions[release], instructions[store] = instructions[store], instructions[release]
    return replace(text, instructions=tuple(instructions))


def run_without(case: Case, absent: int, patience: int) -> tuple[str, list[Tensor]]:
    """A forward pass of which one program never comes: how it ends, and what it returns."""
    returned: list[Tensor] = []
    machine = {**case.options.machine, "absent": frozenset({absent})}
    alone = replace(case, backward=False, options=replace(case.options, machine=machine))
    original = launch_split.split_forward

    def keep(*given: Any) -> Any:
        out = original(*given)
        returned.extend(t for t in (out.hidden, *out.last) if t is not None)
        return out

    with (
        mock.patch.object(fault, "PATIENCE", patience),
        mock.patch.object(fault, "raise_fault"),
        mock.patch.object(launch_split, "split_forward", keep),
    ):
        end = verdict(alone)
    word = int(fault.fault_word(torch.device("cpu")).item())
    fault.fault_word(torch.device("cpu")).zero_()
    return f"{end}, fault word {word}", returned
