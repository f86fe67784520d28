"""The machine that a verdict holds for, and what `auto` does on a processor that nobody has measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcells import dispatch
from fastcells.backends.cpu import native
from fastcells.tuning import machine, verdicts
from fastcells.tuning.memory import Memory
from tests.support.trials import ToldClock, call_of

CPUINFO = {
    "AMD EPYC family 26 model 2": "processor : 0\ncpu family : 26\nmodel : 2\nmodel name : AMD EPYC\n",
    "aarch64 implementer 0x41 part 0xd40 variant 0x1": (
        "processor : 0\nFeatures : fp asimd\nCPU implementer : 0x41\nCPU architecture: 8\nCPU variant : 0x1\n"
        "CPU part : 0xd40\nCPU revision : 1\n\nprocessor : 1\nCPU implementer : 0x41\nCPU part : 0xd41\n"
    ),
}


@pytest.mark.parametrize("name", CPUINFO)
def test_the_name_of_a_processor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ARM's go by numbers; of several kinds in one machine by the first one's."""
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(Path, "read_text", lambda self: CPUINFO[name])
    assert machine.processor.__wrapped__() == name


@pytest.mark.skipif(native.obstacle() is not None, reason=str(native.obstacle()))
def test_neon_is_taken_by_trial_alone(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rule knows such a processor: torch's own runs, until a trial has found C to be faster."""
    monkeypatch.setattr(native, "instruction_set", lambda: "neon")
    monkeypatch.setattr(machine, "processor", lambda: "aarch64 implementer 0x41 part 0xd40 variant 0x1")
    monkeypatch.setattr(verdicts, "WORTH", 0.0)
    monkeypatch.setattr(verdicts, "clock_of", lambda device: ToldClock({"torch": 500.0, "cpu": 10.0}))
    with verdicts.looking():
        choice = dispatch.choose(call_of())
    assert choice.impl == "torch" and choice.reason.endswith(verdicts.NOT_YET)
    assert dispatch.choose(call_of()).impl == "cpu"
    (where,) = memory.everything()
    assert where.device.startswith("aarch64 implementer 0x41 part 0xd40 variant 0x1; neon; ")
