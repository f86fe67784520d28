"""`fastcells doctor`: its table, its exit status, and that it sees a fault."""

from __future__ import annotations

import re

import pytest
import torch

from fastcells import doctor, functional
from fastcells.backends.cpu import native
from fastcells.charlm.cli import main

C = native.obstacle() is None  # there is none where there was no compiler
BF16 = native.bf16_obstacle() is None


@pytest.mark.slow
def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    if C:
        assert re.search(r"GRU, token ids \[35, 32\] +cpu \(cpu\): C with \w+ instructions", out)
        assert re.search(r"C on the CPU +\w+ instructions, in torch's OpenMP threads", out)
    else:
        assert re.search(r"C on the CPU +the C module was not built: .*; impl='cpu' cannot run", out)
    assert out.count("] right\n") == 3 * 5 * 3 + 5 * C * (1 + BF16)  # implementations, cells, dtypes; in C
    assert out.count("cannot run: there is no kernel for torch.") == (2 - BF16) * 5 and "WRONG" not in out
    assert out.endswith("everything that runs here is right\n")


@pytest.mark.parametrize("which", ["forward", "gradients"])
@pytest.mark.slow
def test_a_fault_is_seen(which: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gru = functional.gru

    def wrong(*args: torch.Tensor, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        out, h_n = gru(*args, **options)
        if which == "forward":
            return out * 1.001, h_n
        return out + 0.001 * (out - out.detach()), h_n  # the same values, gradients larger by a thousandth

    monkeypatch.setattr(functional, "gru", wrong)
    monkeypatch.setattr(doctor, "CELLS", {name: doctor.CELLS[name] for name in ("rnn tanh", "gru", "gru reset-before")})
    assert doctor.main() == 1
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.endswith("WRONG") and "float32" in line]
    assert {line.split()[1] for line in lines} == {"gru"} and len(lines) == 6 + 2 * C
    assert out.endswith("checks are WRONG\n")


def test_what_cannot_run_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said: list[str] = []
    assert doctor.main(said.append) == 0
    assert sum("cannot run: the weights are on cpu" in line for line in said) == 3 * 5 * 3  # triton, triton-step, gluon


def test_a_gpu_checks_the_split_kernels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(doctor, "check", lambda *arguments: asked.append(arguments))
    list(doctor.checks(torch.device("cuda")))
    assert sum(arguments[4:] == (doctor.SPLIT_H,) for arguments in asked) == 5 * 3
    assert len(asked) == (5 + 1) * 5 * 3
