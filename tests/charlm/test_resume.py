"""A run that goes on from its checkpoint is the run that was never interrupted, bit for bit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from fastcells.charlm import Config, Diverged, Interrupted, RunFolder, Training, Vocabulary, load
from fastcells.charlm import train as train_model
from fastcells.charlm.cli import main
from fastcells.charlm.snapshot import restore, take

TEXT = "the quick brown fox jumps over the lazy dog and the dog looks at the fox " * 8
VOCABULARY = Vocabulary(TEXT)
IDS = VOCABULARY.encode(TEXT)
SMALL = Config(hidden=16, batch=4, steps=9, epochs=3)  # 16 steps an epoch
CONFIGS = {
    "gru-consecutive": SMALL,
    "lstm-random": replace(SMALL, cell="lstm", sampling="random"),
    "rnn-sgd-clip": replace(SMALL, cell="rnn", optimizer="sgd", clip=0.1, layers=2, warmup=20),
    "bfloat16": replace(SMALL, dtype="bfloat16"),
    "float16": replace(SMALL, dtype="float16"),
    "all-of-it": replace(
        SMALL, cell="lstm", layers=2, dropout=0.3, tied=True, optimizer="adamw", weight_decay=0.1, validation=0.1
    ),
    "slstm": replace(SMALL, cell="SLSTM"),  # four states
    "accumulate": replace(SMALL, accumulate=3, batch=2, steps=6),
}
Losses = list[tuple[int, float]]


def training(config: Config) -> Training:
    return Training(IDS, len(VOCABULARY), config)


def run(training: Training, until: int | None = None) -> Losses:
    """The losses of the epochs that end before step `until`."""
    losses: Losses = []
    training.run(
        on_epoch=lambda _, epoch: losses.append((epoch.number, epoch.loss)),
        stop=lambda: training.place.step == until,
    )
    return losses


def through_files(snapshot: tuple[dict[str, Tensor], dict[str, object]], path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.save_checkpoint(*snapshot)
    return folder


@pytest.mark.parametrize("until", [1, 7, 14, 16, 31, 32, 41])
@pytest.mark.parametrize("name", CONFIGS)
def test_bit_for_bit(name: str, until: int, tmp_path: Path) -> None:
    whole = training(CONFIGS[name])
    expected = run(whole)
    first = training(CONFIGS[name])
    losses = run(first, until)
    assert first.place.step == until
    folder = through_files(take(first), tmp_path)
    torch.manual_seed(99)  # another process has another state
    second = training(CONFIGS[name])
    restore(second, *folder.checkpoint())
    losses += run(second)
    assert losses == expected and len(losses) == 3
    assert first.per_epoch in (16, 14)  # so that `until` lies in an epoch, and at its end
    for (key, a), b in zip(whole.weights().items(), second.weights().values(), strict=True):
        assert torch.equal(a, b), key
    assert second.place.best_epoch == whole.place.best_epoch
    for (key, a), b in zip(whole.kept().items(), second.kept().items(), strict=True):
        assert torch.equal(a, b[1]), key


LEFT_OUT: dict[str, Callable[[str], bool]] = {
    "carried state": lambda key: key.startswith("state."),
    "moments": lambda key: key.startswith("optimizer."),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_is_left_out_shows(what: str, tmp_path: Path) -> None:
    """A control: the comparison sees it if a part of the state is not restored."""
    first = training(SMALL)
    run(first, 20)
    tensors, values = take(first)
    second = training(SMALL)
    restore(second, {k: t for k, t in tensors.items() if not LEFT_OUT[what](k)}, json.loads(json.dumps(values)))
    assert run(second) != run(training(SMALL))[1:]


def test_train_returns_the_best_weights() -> None:
    losses: dict[int, float] = {}
    weights: dict[int, dict[str, Tensor]] = {}

    def record(model: torch.nn.Module, epoch: object) -> None:
        losses[epoch.number] = epoch.loss
        weights[epoch.number] = {k: t.clone() for k, t in model.state_dict().items()}
        if epoch.number == 2:  # from here on it is worse
            with torch.no_grad():
                model.output.bias[0] = 3.0

    model = train_model(IDS, len(VOCABULARY), replace(SMALL, lr=1e-3), on_epoch=record)
    best = min(losses, key=losses.__getitem__)
    assert best == 2
    assert all(torch.equal(t, weights[best][k]) for k, t in model.state_dict().items())


@pytest.mark.parametrize(("after", "good"), [(3, 0), (20, 1)])
def test_an_interrupt_brings_the_model(after: int, good: int) -> None:
    steps = 0

    def interrupt(_: int) -> None:
        nonlocal steps
        steps += 1
        if steps == after:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        train_model(IDS, len(VOCABULARY), SMALL, on_step=interrupt)
    assert caught.value.good == good
    assert caught.value.model.output.bias.abs().sum() > 0


def test_a_loss_that_stays_high_is_divergence() -> None:
    config = replace(SMALL, optimizer="sgd", lr=1e4, schedule="none", epochs=30)
    with pytest.raises(Diverged, match=r"diverged in epoch 1\d .*--lr, --schedule cosine, a --warmup or a --clip"):
        train_model(IDS, len(VOCABULARY), config)
    with pytest.raises(Diverged):  # too short a run to wait for it
        train_model(IDS, len(VOCABULARY), replace(config, epochs=1))


ARGUMENTS = ["--hidden", "16", "--batch", "4", "--steps", "9", "--length", "5", "--device", "cpu"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT)
    return path


def interrupted(corpus: Path, out: Path, step: int, monkeypatch: pytest.MonkeyPatch, epochs: int = 3) -> int:
    """Ctrl-C, once, at a step of the command line's run."""
    with monkeypatch.context() as patch:
        patch.setattr("fastcells.charlm.train_command.StopRequest", lambda: _StopAt(step))
        return main(["train", str(corpus), "--out", str(out), "--epochs", str(epochs), *ARGUMENTS])


class _StopAt:
    """A StopRequest that is asked for after so many steps."""

    def __init__(self, step: int) -> None:
        self.left = step

    def listening(self) -> object:
        import contextlib

        return contextlib.nullcontext()

    @property
    def asked(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize("step", [5, 16, 40])
def test_the_command_line_goes_on(
    step: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(corpus), "--out", str(tmp_path / "a"), "--epochs", "3", *ARGUMENTS]) == 0
    assert interrupted(corpus, tmp_path / "b", step, monkeypatch) == 130
    captured = capsys.readouterr()
    assert f"interrupted after step {step} of 48" in captured.err
    assert f"go on with: fastcells train --resume {tmp_path / 'b'}" in captured.out
    load(tmp_path / "b")
    (tmp_path / "corpus.txt").unlink()  # the run has what it needs
    assert main(["train", "--resume", str(tmp_path / "b"), "--device", "cpu"]) == 0
    assert f"goes on after step {step} of 48" in capsys.readouterr().out
    a, b = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")
    assert [(r["epoch"], r["loss"]) for r in a.metrics()] == [(r["epoch"], r["loss"]) for r in b.metrics()]
    assert (a.path / "weights.safetensors").read_bytes() == (b.path / "weights.safetensors").read_bytes()
    assert "goes on after" in (b.path / "log.txt").read_text()


def test_what_was_measured_after_the_checkpoint_is_measured_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kill leaves it: rows of later epochs, the last one cut off."""
    run = tmp_path / "run"
    assert interrupted(corpus, run, 20, monkeypatch) == 130
    with (run / "metrics.csv").open("a") as file:
        file.write("2,9.0,9.0,,,,0.01,1.0,1.0\n3,9.0,9")
    (run / "progress.csv").write_text("seconds,step,epoch,loss\n1,10,0,1.0\n1,30,1,1.0\n")
    assert main(["train", "--resume", str(run), "--device", "cpu"]) == 0
    rows = RunFolder(run).metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3] and all(row["loss"] < 9 for row in rows)
    assert "\n1,30" not in (run / "progress.csv").read_text()


def test_a_finished_run_goes_on_with_more_epochs(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", str(corpus), "--out", str(run), "--epochs", "1", *ARGUMENTS]) == 0
    before = (run / "weights.safetensors").read_bytes()
    assert main(["train", "--resume", str(run), "--device", "cpu"]) == 0
    assert "all 1 epochs are done" in capsys.readouterr().out
    assert (run / "weights.safetensors").read_bytes() == before
    assert main(["train", "--resume", str(run), "--epochs", "2", "--device", "cpu"]) == 0
    assert [row["epoch"] for row in RunFolder(run).metrics()] == [1, 2]
    assert json.loads((run / "config.json").read_text())["epochs"] == 2
    assert main(["train", "--resume", str(run), "--hidden", "8"]) == 2
    assert "--hidden cannot be changed by --resume; what can is epochs" in capsys.readouterr().err


def test_one_process_at_a_time(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", str(corpus), "--out", str(run), "--epochs", "1", *ARGUMENTS]) == 0
    hold = "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)"
    held = subprocess.Popen([sys.executable, "-c", f"{hold}; print(flush=True); time.sleep(60)", run], stdout=-1)
    assert held.stdout is not None and held.stdout.readline()
    try:
        assert main(["train", "--resume", str(run), "--device", "cpu"]) == 2
        assert f"another process is training in {run}" in capsys.readouterr().err
    finally:
        held.kill()
        held.communicate()


def damage(folder: RunFolder, change: Callable[[dict[str, Tensor], dict[str, object]], None]) -> None:
    tensors, values = folder.checkpoint()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors, values)
    folder.save_checkpoint(tensors, values)


DAMAGE: dict[str, Callable[[dict[str, Tensor], dict[str, object]], object]] = {
    "a weight is missing": lambda tensors, _: tensors.pop("model.output.bias"),
    "a weight of another shape": lambda tensors, _: tensors.update({"model.output.bias": torch.zeros(3)}),
    "no sum": lambda tensors, _: tensors.pop("loss.epoch"),
    "a random state": lambda tensors, _: tensors.update({"random.shuffle": torch.zeros(7, dtype=torch.uint8)}),
    "a key without a dot": lambda tensors, _: tensors.update({"x": torch.zeros(1)}),
    "no place": lambda _, values: values.pop("place"),
    "a place outside": lambda _, values: values["place"].update(done=10**9),
    "a place that is no number": lambda _, values: values["place"].update(step="x"),
    "a moment is missing": lambda tensors, _: tensors.pop("optimizer.0.step"),
    "a moment of another shape": lambda tensors, _: tensors.update({"optimizer.0.exp_avg": torch.zeros(3)}),
    "an unknown number": lambda _, values: values["place"].update(speed=1),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_named(
    what: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    interrupted(corpus, run, 5, monkeypatch, epochs=1)
    damage(RunFolder(run), DAMAGE[what])
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert re.search(r"checkpoint\.safetensors:?( it)? is damaged or belongs to another (run|model): \S", error)
    assert error.count("\n") == 1
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_ids_that_changed_are_noticed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    interrupted(corpus, run, 5, monkeypatch, epochs=1)
    data = bytearray((run / "ids.npy").read_bytes())
    data[-1] ^= 1
    (run / "ids.npy").write_bytes(data)
    assert main(["train", "--resume", str(run)]) == 2
    assert "ids.npy is damaged: its hash is not that of the run" in capsys.readouterr().err


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(tmp_path / "nothing")]) == 2
    assert "no such run folder" in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "is no run: config.json is missing" in capsys.readouterr().err


def test_tensors_are_plain_safetensors(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(corpus, tmp_path / "run", 20, monkeypatch)
    names = set(safetensors.torch.load_file(tmp_path / "run" / "checkpoint.safetensors"))
    assert {"model.output.weight", "best.output.weight", "optimizer.0.exp_avg", "state.0", "random.torch"} <= names
    files = sorted(p.name for p in (tmp_path / "run").iterdir())
    expected = ["checkpoint.safetensors", "config.json", "ids.npy", "log.txt", "metrics.csv", "vocabulary.json"]
    assert files == [*expected, "weights.safetensors"]
