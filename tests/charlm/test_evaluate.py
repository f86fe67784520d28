"""Texts that are measured and not learned: the loss, the split, early stopping, and `fastcells eval`."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastcells.charlm import CharLM, Config, InputError, RunFolder, Training, Vocabulary, load, perplexity
from fastcells.charlm.cli import main
from fastcells.charlm.evaluate import bits, mean_loss, split
from fastcells.charlm.saver import Saver
from fastcells.charlm.snapshot import restore, take

TEXT = "the quick brown fox jumps over the lazy dog and the dog looks at the fox " * 12
VOCABULARY = Vocabulary(TEXT)
IDS = VOCABULARY.encode(TEXT)
SMALL = Config(hidden=16, batch=4, steps=9, epochs=4, dtype="float64", validation=0.2, test=0.1)
EVERY = pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])


@EVERY
@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_mean_loss(cell: str, batch: int) -> None:
    """Each row as one long sequence, from a state of zeros."""
    model = CharLM(len(VOCABULARY), replace(SMALL, cell=cell)).double()
    rows = min(batch, len(IDS) // 2)
    text = IDS[: len(IDS) // rows * rows].view(rows, -1)
    with torch.no_grad():
        logits, _ = model(text[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten()).item()
    found = [mean_loss(model, ids, batch, 9) for ids in (IDS, IDS.numpy().astype(np.uint16))]
    assert found[0] == found[1] == pytest.approx(expected, rel=1e-6)  # summed in float32, piece by piece
    assert model.training


def test_bits() -> None:
    assert bits(math.log(8)) == pytest.approx(3)


def test_the_parts_follow_each_other() -> None:
    learned, validation, test = split(IDS, 0.2, 0.1)
    assert torch.equal(torch.cat([learned, validation, test]), IDS)
    assert (len(validation), len(test)) == (int(len(IDS) * 0.2), int(len(IDS) * 0.1))
    assert [len(p) for p in split(IDS, 0.0, 0.0)] == [len(IDS), 0, 0]
    with pytest.raises(InputError, match=r"--validation 0\.001 of 876 characters is 0: too few"):
        split(IDS, 0.001, 0.0)


@pytest.mark.parametrize("evaluate", [None, 4])
def test_the_best_weights_are_those_of_the_lowest_validation_loss(evaluate: int | None) -> None:
    training = Training(IDS, len(VOCABULARY), replace(SMALL, evaluate=evaluate, epochs=3, lr=0.05))
    found: list[float] = []
    training.run(
        on_epoch=lambda _, epoch: found.append(epoch.valid),
        on_evaluation=found.append,
    )
    assert len(found) == (3 if evaluate is None else 3 + sum(s % 4 == 0 and s % 16 != 0 for s in range(1, 49)))
    assert training.place.best_loss == min(found)
    best = training.keep_best()
    assert mean_loss(best, training.validation, 4, 9) == min(found)


def test_measuring_changes_nothing() -> None:
    """The learned text alone, with and without a look at the rest."""
    losses = []
    for share in (0.2, 0.0):
        ids = IDS if share else split(IDS, 0.2, 0.1)[0]
        training = Training(ids, len(VOCABULARY), replace(SMALL, validation=share, test=share / 2))
        of_run: list[float] = []
        training.run(on_epoch=lambda _, epoch, of_run=of_run: of_run.append(epoch.loss))
        losses.append(of_run)
    assert losses[0] == losses[1]


def test_patience() -> None:
    config = replace(SMALL, epochs=50, patience=3, lr=1e-30, schedule="none")
    training = Training(IDS, len(VOCABULARY), config)
    assert training.run()
    assert (training.place.epoch, training.place.best_epoch) == (4, 1)
    again = Training(IDS, len(VOCABULARY), config)
    restore(again, *take(training))
    assert again.done() and again.run()
    assert again.place.epoch == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0.6}, "validation must be a share of the text between 0 and 0.5, got 0.6"),
        ({"test": True}, "test must be a share"),
        ({"patience": 0}, "patience must be a positive integer, got 0"),
        ({"validation": 0.0, "patience": 2}, "need a text to look at: set validation"),
        ({"validation": 0.0, "evaluate": 2}, "need a text to look at: set validation"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **options)


ARGUMENTS = ["--hidden", "16", "--batch", "4", "--steps", "9", "--epochs", "3", "--length", "5", "--device", "cpu"]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "corpus.txt").write_text(TEXT)
    arguments = ["--out", str(tmp_path / "run"), "--validation", "0.2", "--test", "0.1", "--evaluate", "5"]
    assert main(["train", str(tmp_path / "corpus.txt"), *arguments, *ARGUMENTS]) == 0
    return tmp_path / "run"


def test_what_a_run_says_of_its_parts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = (run / "log.txt").read_text()
    assert "876 characters, of which 175 for validation and 87 for the test" in log
    assert re.search(r"epoch    3/3  perplexity +\d+\.\d+  validation +\d+\.\d+, \d\.\d+ bits a character", log)
    rows = RunFolder(run).metrics()
    assert all(row["valid_perplexity"] == pytest.approx(perplexity(row["valid_loss"])) for row in rows)
    by_time = RunFolder(run).by_time.rows()
    assert [row["step"] for row in by_time] == [s for s in range(5, 49, 5) if s % 16]
    assert all(row["valid_loss"] > 0 for row in by_time)
    model, _, config = load(run)
    measured = mean_loss(model, split(IDS, 0.2, 0.1)[2], config.batch, config.steps)
    assert f"test perplexity {perplexity(measured):.3f}, {bits(measured):.3f} bits a character" in log


def test_the_best_within_an_epoch_is_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved after each step: the file follows every look that finds better weights."""
    kept: list[dict[str, torch.Tensor]] = []
    finish = Saver.finish

    def finishing(self: Saver, **options: bool) -> Path | None:
        kept.append(RunFolder(self.run.path).weights())
        kept.append(self.training.kept())
        return finish(self, **options)

    monkeypatch.setattr(Saver, "finish", finishing)
    (tmp_path / "corpus.txt").write_text(TEXT)
    arguments = ["--out", str(tmp_path / "run"), "--validation", "0.2", "--evaluate", "5", "--save-every", "0"]
    assert main(["train", str(tmp_path / "corpus.txt"), *arguments, *ARGUMENTS]) == 0
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in kept[0].items())


def test_eval(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), str(tmp_path / "corpus.txt")]) == 0
    model, vocabulary, config = load(run)
    loss = mean_loss(model, vocabulary.encode(TEXT), config.batch, config.steps)
    expected = f"perplexity {perplexity(loss):.4f}  {bits(loss):.4f} bits a character  876 characters\n"
    assert capsys.readouterr().out.endswith(expected)
    (tmp_path / "other.txt").write_text("the fox 鑫 " * 20)
    assert main(["eval", str(run), str(tmp_path / "other.txt")]) == 2
    assert "character '鑫' (U+946B) at position 8 does not occur" in capsys.readouterr().err
    assert main(["eval", str(run), str(tmp_path / "other.txt"), "--unknown", "skip"]) == 0
    assert main(["eval", str(run), str(tmp_path / "other.txt"), "--unknown", "replace"]) == 2
    assert "train with --min-count" in capsys.readouterr().err
    (tmp_path / "short.txt").write_text("t")
    assert main(["eval", str(run), str(tmp_path / "short.txt")]) == 2
    assert "a text of 1 characters cannot be measured" in capsys.readouterr().err


def test_newlines_and_rare_characters_go_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("if x:\n    y = 1\nQ" * 40)
    (tmp_path / "b.txt").write_text("z = 2\n" * 20 + "鑫")
    run = tmp_path / "run"
    texts = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    assert main(["train", *texts, "--out", str(run), "--newlines", "keep", "--min-count", "2", *ARGUMENTS]) == 0
    assert "1 characters are rarer than 2: each is \ufffd now" in capsys.readouterr().err
    _, vocabulary, _ = load(run)
    assert "\n" in vocabulary.characters and "\ufffd" in vocabulary.characters
    assert main(["generate", str(run), "--prefix", "if x:\n", "--length", "9"]) == 0
    assert capsys.readouterr().out.startswith("if x:\n")
    assert main(["generate", str(run), "--prefix", "if 鑫:\n"]) == 2
    assert "--unknown replace takes \ufffd for them" in capsys.readouterr().err
    assert main(["generate", str(run), "--prefix", "if 鑫:\n", "--unknown", "replace"]) == 0
    assert "if \ufffd:\n" in capsys.readouterr().out
    assert main(["eval", str(run), str(tmp_path / "b.txt"), "--unknown", "replace"]) == 0


def test_no_control_character_reaches_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("\x1b[2J\x9b ab" * 60)
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "a.txt"), "--out", str(run), *ARGUMENTS]) == 2
    assert "holds the control character U+001B at offset 0" in capsys.readouterr().err
    assert not run.exists()
    assert main(["train", str(tmp_path / "a.txt"), "--control", "keep", "--out", str(run), *ARGUMENTS]) == 0
    assert main(["generate", str(run), "--prefix", "\x1b[2", "--length", "30"]) == 0
    assert main(["train", str(tmp_path / "no\x1bsuch")]) == 2
    captured = capsys.readouterr()
    assert "\\x1b[2J" in captured.out and "no\\x1bsuch" in captured.err
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", captured.out + captured.err + (run / "log.txt").read_text())
