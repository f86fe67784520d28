"""Several processes under torchrun: the curve of one, a lost process, and a model in parts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastcells.charlm import Config, InputError, RunFolder, Training, load
from fastcells.charlm.cli import main
from fastcells.charlm.world import World

pytestmark = pytest.mark.slow

TEXT = "the quick brown fox jumps over the lazy dog and the dog looks at the fox " * 12
SMALL = ["--hidden", "16", "--batch", "4", "--steps", "9", "--device", "cpu", "--length", "5", "--threads", "1"]
EPOCHS = ["--epochs", "5"]  # 120 steps
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT)
    return path


def started(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*TORCHRUN, *arguments], env=environment, start_new_session=True, **pipes)


def output(process: subprocess.Popen[str], status: int = 0) -> str:
    try:
        out, _ = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its workers too
        raise
    assert process.returncode == status, out
    return out


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in RunFolder(run).metrics()]


VARIANTS = {
    "consecutive": [],
    "random": ["--sampling", "random", "--optimizer", "sgd", "--loss", "sum", "--lr", "0.01", "--clip", "5"],
}


def test_the_curve_of_one_process(corpus: Path, tmp_path: Path) -> None:
    together = {}
    for name, options in VARIANTS.items():
        command = ["-m", "fastcells", "train", str(corpus), "--out", str(tmp_path / f"{name}-2"), *SMALL, *EPOCHS]
        together[name] = started(*command, *options)
    for name, options in VARIANTS.items():
        alone = ["train", str(corpus), "--out", str(tmp_path / f"{name}-1"), *SMALL, *EPOCHS, *options]
        assert main(alone) == 0
        out = output(together[name])
        assert "2 processes, each with 2 rows" in out
        assert out.count("saved in") == 1, "one process speaks"
        expected, found = losses(tmp_path / f"{name}-1"), losses(tmp_path / f"{name}-2")
        assert found == pytest.approx(expected, rel=1e-6) and len(found) == 5
        assert found[0] - found[-1] > 0.1, "it learns"
        load(tmp_path / f"{name}-2")
        checkpoints = [RunFolder(tmp_path / f"{name}-{n}").checkpoint()[0] for n in (1, 2)]
        assert {k: t.shape for k, t in checkpoints[0].items()} == {k: t.shape for k, t in checkpoints[1].items()}


def test_a_lost_process(corpus: Path, tmp_path: Path) -> None:
    """With restarts the job goes on from its checkpoint; without, it ends with an error, and can be resumed."""
    assert main(["train", str(corpus), "--out", str(tmp_path / "whole"), *SMALL, *EPOCHS]) == 0
    module = ["-m", "tests.support.processes", "lose", "60", "train", str(corpus)]
    options = [*SMALL, *EPOCHS, "--save-every", "0"]
    restarted = started("--max-restarts=1", *module, "--out", str(tmp_path / "restarted"), *options)
    ended = started("--max-restarts=0", *module, "--out", str(tmp_path / "ended"), *options)
    out = output(restarted)
    assert "goes on after step 60 of 120" in out
    assert losses(tmp_path / "restarted") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
    out = output(ended, status=1)
    assert "fastcells: error: a process was lost, and step 60 is kept: go on with --resume" in out
    assert main(["train", "--resume", str(tmp_path / "ended"), "--device", "cpu", "--threads", "1"]) == 0
    assert losses(tmp_path / "ended") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def test_a_wrong_input_is_said_once(tmp_path: Path) -> None:
    out = output(started("-m", "fastcells", "train", str(tmp_path / "nothing.txt"), *SMALL), status=1)
    assert out.count("fastcells: error: no such corpus") == 1


def test_a_model_in_parts() -> None:
    """FSDP2 takes our layers as it takes torch's."""
    out = output(started("-m", "tests.support.processes", "shard"))
    assert "process 0: the same losses" in out and "process 1: the same losses" in out


def test_rows_have_to_divide() -> None:
    with pytest.raises(InputError, match="a batch of 4 rows does not divide among 3 processes"):
        Training(torch.zeros(100, dtype=torch.int64), 2, Config(batch=4, steps=5), world=World(0, 3))
