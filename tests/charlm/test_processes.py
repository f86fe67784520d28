"""Several processes under torchrun: the curve of one, a lost process, and a model in parts."""

from __future__ import annotations

import json
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


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What two processes did, one command after another: their folder, and what they said."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "corpus.txt").write_text(TEXT)
    train = ["train", str(folder / "corpus.txt"), *SMALL, *EPOCHS]
    commands = [[*train, "--out", str(folder / name), *options] for name, options in VARIANTS.items()]
    commands += [["train", str(folder / "nothing.txt"), *SMALL]]
    return folder, output(started("-m", "tests.support.processes", "each", json.dumps(commands)))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_curve_of_one_process(name: str, together: tuple[Path, str], tmp_path: Path) -> None:
    folder, out = together
    alone = tmp_path / "alone"
    assert main(["train", str(folder / "corpus.txt"), "--out", str(alone), *SMALL, *EPOCHS, *VARIANTS[name]]) == 0
    command = list(VARIANTS).index(name)
    assert all(f"process {rank}, command {command}: status 0" in out for rank in (0, 1))
    assert out.count("2 processes, each with 2 rows") == out.count("saved in") == len(VARIANTS), "one process speaks"
    expected, found = losses(alone), losses(folder / name)
    assert found == pytest.approx(expected, rel=1e-6) and len(found) == 5
    assert found[0] - found[-1] > 0.1, "it learns"
    load(folder / name)
    checkpoints = [RunFolder(path).checkpoint()[0] for path in (alone, folder / name)]
    assert {k: t.shape for k, t in checkpoints[0].items()} == {k: t.shape for k, t in checkpoints[1].items()}


def test_a_lost_process(corpus: Path, tmp_path: Path) -> None:
    """The job goes on from its checkpoint, as often as it may start again; then it ends, and can be resumed."""
    assert main(["train", str(corpus), "--out", str(tmp_path / "whole"), *SMALL, *EPOCHS]) == 0
    train = ["train", str(corpus), "--out", str(tmp_path / "lost"), *SMALL, *EPOCHS, "--save-every", "0"]
    out = output(started("--max-restarts=1", "-m", "tests.support.processes", "lose", "[60, 90]", *train), status=1)
    assert "fastcells: error: a process was lost, and step 60 is kept: go on with --resume" in out
    assert "goes on after step 60 of 120" in out
    assert "fastcells: error: a process was lost, and step 90 is kept: go on with --resume" in out
    assert main(["train", "--resume", str(tmp_path / "lost"), "--device", "cpu", "--threads", "1"]) == 0
    assert losses(tmp_path / "lost") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def test_a_wrong_input_is_said_once(together: tuple[Path, str]) -> None:
    _, out = together
    assert out.count("fastcells: error: no such corpus") == 1
    assert all(f"process {rank}, command {len(VARIANTS)}: status 2" in out for rank in (0, 1))


def test_a_model_in_parts(together: tuple[Path, str]) -> None:
    """FSDP2 takes our layers as it takes torch's."""
    _, out = together
    assert "process 0: the same losses" in out and "process 1: the same losses" in out


def test_rows_have_to_divide() -> None:
    with pytest.raises(InputError, match="a batch of 4 rows does not divide among 3 processes"):
        Training(torch.zeros(100, dtype=torch.int64), 2, Config(batch=4, steps=5), world=World(0, 3))
