"""The benches of the trainer run end to end; what they require is required."""

from __future__ import annotations

import sys

import pytest

from bench import corpus
from tests.support.commands import Command

pytestmark = pytest.mark.slow


def test_busy(command: Command) -> None:
    done = command("-m", "bench.busy", "--spinning", "1", "--rounds", "1", "--epochs", "2", "--require", "1e-9")
    assert done.returncode == 1, done.stderr
    assert "one thread" in done.stdout and "1 processes spin beside it: the default takes" in done.stdout


def test_corpus(command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    done = command("-m", "bench.corpus", "--mb", "1", "--require", "1000", "1000")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:5] == ["text_mb", "seconds", "cpu", "mb", "1"] and "written" not in done.stdout
    found = dict(zip(("seconds", "cpu", "mb"), map(float, done.stdout.split()[5:8]), strict=True))
    assert found["cpu"] > 0 and found["seconds"] > 0
    monkeypatch.setattr(corpus, "measured", lambda folder, size: found)
    monkeypatch.setattr(sys, "argv", ["corpus", "--mb", "1", "--require", "1000", "0.001"])
    assert corpus.main() == 1 and "more than required" in capsys.readouterr().err


def test_loss(command: Command) -> None:
    small = ["--device", "cpu", "--rows", "140", "--hidden", "32", "--vocabulary", "30", "--rounds", "3"]
    done = command("-m", "bench.loss", *small)
    assert done.returncode == 0 and "nn_peak_mb" in done.stdout, done.stderr
    done = command("-m", "bench.loss", *small, "--require", "1e9")
    assert done.returncode == 1 and "was required" in done.stderr
