"""bench.memory runs, weighs what each library holds, and fails where ours is more than is allowed."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
from torch import Tensor, nn

from bench import memory
from fastcells.backends.cpu import native

if not Path("/proc/self/clear_refs").exists():
    pytest.skip("no /proc: resident memory cannot be read here", allow_module_level=True)


def test_what_a_process_keeps_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that keeps 8 MB more in each step is larger by so much at its peak, and between steps."""

    class Hoarding(nn.RNN):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            kept.append(mmap.mmap(-1, 8 << 20))  # the system's own, and not what other tests have freed
            kept[-1].write(b"\1" * (8 << 20))
            return super().forward(x)

    kept: list[mmap.mmap] = []
    plain = memory.train("nn", "RNN", "", 3, 8, "changing")
    monkeypatch.setattr(nn, "RNN", Hoarding)
    found = memory.train("nn", "RNN", "", 3, 8, "changing")
    assert float(str(plain["peak_mb"])) < 4 * memory.STEPS
    assert float(str(found["peak_mb"])) > 7 * memory.STEPS and float(str(found["steady_mb"])) > 3 * memory.STEPS


@pytest.mark.slow
@pytest.mark.skipif(native.obstacle() is not None, reason=str(native.obstacle()))
def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(memory, "sizes", lambda quick: [(3, 8)])
    monkeypatch.setattr(memory, "CELLS", ("GRU",))
    monkeypatch.setattr(memory, "LENGTHS", ("same",))
    command = ["bench.memory", "--no-write", "--impl", "cpu", "--require"]
    for share, status in (("1000", 0), ("0", 1)):
        monkeypatch.setattr(sys, "argv", [*command, share])
        assert memory.main() == status
        printed = capsys.readouterr()
        assert "nn_peak_mb" in printed.out and ("above 0.0 of torch.nn's" in printed.err) == bool(status)
