"""The command line, in this process where possible: what it prints, writes and returns."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from fastcells.backends.cpu import native
from fastcells.charlm import Config, RunFolder
from fastcells.charlm.cli import main

SMALL = ["--hidden", "16", "--batch", "4", "--steps", "8", "--epochs", "2", "--length", "5", "--device", "cpu"]
TEXT = "we walked along the river and the river walked with us\n" * 4


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def trained(corpus: Path, tmp_path: Path) -> Path:
    assert main(["train", str(corpus), "--out", str(tmp_path / "run"), *SMALL]) == 0
    return tmp_path / "run"


def error_of(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.startswith("fastcells: error: ")
    return error


def test_train_then_generate(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(corpus), "--out", str(tmp_path / "run"), *SMALL]) == 0
    out = capsys.readouterr().out
    assert "corpus" in out and "220 characters" in out
    # What runs, at the shape that is trained: [batch, steps], not a single character.
    assert ("runs on cpu (cpu): C with" if native.obstacle() is None else "runs on torch (recurrence)") in out
    assert "perplexity" in out and "tokens/s" in out and "  - we" in out
    assert "\r" not in out  # plain lines: the output is not a terminal
    assert main(["generate", str(tmp_path / "run"), "--prefix", "the ", "--length", "7"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("the ") and len(out.rstrip("\n")) == 11


def test_same_seed_same_metrics(corpus: Path, tmp_path: Path) -> None:
    rows = []
    for name in ("a", "b"):
        assert main(["train", str(corpus), "--out", str(tmp_path / name), *SMALL]) == 0
        rows.append([row["loss"] for row in RunFolder(tmp_path / name).metrics()])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2


def test_every_preset_value_can_be_overridden(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.compile", lambda model: model)  # half a minute
    given = {
        "cell": "rnn",
        "nonlinearity": "relu",
        "reset_after": False,
        "layers": 2,
        "hidden": 8,
        "bidirectional": True,
        "tied": True,
        "dropout": 0.5,
        "init": "d2l",
        "optimizer": "sgd",
        "loss": "sum",
        "lr": 0.5,
        "schedule": "none",
        "warmup": 3,
        "clip": 0.25,
        "weight_decay": 0.125,
        "accumulate": 2,
        "sampling": "random",
        "epochs": 1,
        "report": 1,
        "steps": 5,
        "batch": 2,
        "validation": 0.25,
        "test": 0.125,
        "evaluate": 3,
        "patience": 9,
        "seed": 7,
        "dtype": "float64",
        "compile": True,
        "impl": "torch",
    }
    assert set(given) == {f.name for f in fields(Config)}
    assert all(getattr(Config(), name) != value for name, value in given.items())
    arguments = []
    for name, value in given.items():
        option = name.replace("_", "-")
        arguments += (
            [f"--{option}" if value else f"--no-{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
        )
    assert main(["train", str(corpus), "--out", str(tmp_path / "run"), "--length", "3", *arguments]) == 0
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {name: written[name] for name in given} == given
    assert written["provenance"]["corpus"] == str(corpus)


def test_clip_none_removes_a_presets_clip(corpus: Path, tmp_path: Path) -> None:
    arguments = ["--preset", "rnn-scratch", "--clip", "none", "--lr", "0.1", "--out", str(tmp_path / "run"), *SMALL]
    assert main(["train", str(corpus), *arguments]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["clip"] is None


def test_bundled_english_and_chars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--bundled", "en", "--chars", "500", "--out", str(tmp_path / "run"), *SMALL]
    assert main(arguments) == 0
    assert "corpus en: 500 characters" in capsys.readouterr().out


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert main(["train", "-", "--out", str(tmp_path / "run"), *SMALL]) == 0
    assert "220 characters" in capsys.readouterr().out


def test_default_folder_is_a_new_one(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["train", str(corpus), *SMALL]) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["gru-1", "gru-2"]


def test_plot(corpus: Path, tmp_path: Path) -> None:
    assert main(["train", str(corpus), "--plot", "--out", str(tmp_path / "run"), *SMALL]) == 0
    assert (tmp_path / "run" / "perplexity.png").read_bytes().startswith(b"\x89PNG")


def test_bidirectional_warns_once(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(corpus), "--bidirectional", "--out", str(tmp_path / "run"), *SMALL]) == 0
    assert capsys.readouterr().err.count("warning: a bidirectional language model sees") == 1


def test_progress_bar_on_a_terminal(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["train", str(corpus), "--out", str(tmp_path / "run"), *SMALL]) == 0
    assert "token/s" in terminal.getvalue() and "perplexity=" in terminal.getvalue()


def test_nan_loss_keeps_the_last_good_weights(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--optimizer", "sgd", "--lr", "1e38", "--out", str(tmp_path / "run"), *SMALL]
    assert main(["train", str(corpus), *arguments]) == 3
    assert "training diverged in epoch 1" in capsys.readouterr().err
    assert main(["generate", str(tmp_path / "run"), "--prefix", "we"]) == 0


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fastcells", *arguments]


@pytest.mark.slow
def test_a_terminal_without_the_characters(tmp_path: Path) -> None:
    """An ASCII terminal shows Chinese escaped; it does not end the training."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    arguments = ["train", "--chars", "300", "--out", str(tmp_path / "run"), *SMALL]
    done = subprocess.run(command(*arguments), capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"\\u6211\\u4eec" in done.stdout  # the prefix that means "we"


@pytest.mark.slow
def test_a_reader_who_goes_does_not_end_the_training(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(command("train", str(corpus), "--out", str(run), *SMALL), stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == 0
    assert main(["generate", str(run), "--prefix", "we"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.txt"], "no such corpus: nothing.txt"),
        (["--bundled", "en", "--chars", "35"], "the corpus has 35 characters, and one batch of 4 x 8 needs 36"),
        (["--bundled", "en", "--chars", "500", "--prefix", "歌"], "character '歌' (U+6B4C) at position 0"),
        (["--bundled", "en", "--chars", "500", "--prefix", ""], "the prefix '' has no character"),
        (["--bundled", "en", "--impl", "triton", "--dtype", "float64"], "impl='triton' cannot run: there is no kernel"),
        (["--bundled", "en", "--hidden", "99999999999"], ""),
        (["--bundled", "en", "--device", "meta"], "--device meta: "),
        (["--bundled", "en", "--device", "cuda:99"], "--device cuda:99: "),
        (["--bundled", "en", "--device", "gpu"], "--device gpu: "),
        (["--bundled", "en", "--lr", "-1"], "lr must be positive and finite, got -1.0"),
    ],
)
def test_bad_input_to_train(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, ["train", *SMALL, *arguments])
    assert not (tmp_path / "runs").exists()


def test_existing_run_folder(trained: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p.name: p.read_bytes() for p in trained.iterdir()}
    message = error_of(capsys, ["train", str(corpus), "--out", str(trained), *SMALL])
    assert "exists already: name another folder with --out, or remove it" in message
    assert {p.name: p.read_bytes() for p in trained.iterdir()} == before


def test_damaged_weights(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trained / "weights.safetensors").write_bytes(b"not weights")
    assert "weights.safetensors is damaged" in error_of(capsys, ["generate", str(trained), "--prefix", "we"])


def test_unknown_character_in_the_prefix(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(capsys, ["generate", str(trained), "--prefix", "we 鑫"])
    assert "character '鑫' (U+946B) at position 3" in error and "--unknown skip" in error
    assert main(["generate", str(trained), "--prefix", "we 鑫", "--unknown", "skip"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--preset", "gro"], "invalid choice: 'gro' (choose from"),
        (["train", "--hidden", "0"], "must be a positive integer, got '0'"),
        (["train", "--chars", "-5"], "must be a positive integer, got '-5'"),
        (["train", "--epochs", "many"], "must be a positive integer, got 'many'"),
        (["train", "--impl", "cuda"], "invalid choice: 'cuda'"),
        (["train", "--clip", "abc"], "must be a number or none, got 'abc'"),
        (["train", "--seed", str(2**64)], "must be an integer of 64 bits"),
        ([], "required: command"),
    ],
)
def test_bad_options(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_python_dash_m() -> None:
    out = subprocess.run([sys.executable, "-m", "fastcells", "--version"], capture_output=True, text=True, check=True)
    assert out.stdout.startswith("fastcells ")
