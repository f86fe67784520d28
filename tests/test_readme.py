"""The README is true: its quickstart runs, its preset table is the code's, its commands and files exist."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest

from fastcells.charlm import PRESETS
from fastcells.charlm.cli import _parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
with (ROOT / "bench/results/presets-cpu.csv").open() as file:
    ROWS = list(csv.DictReader(file))
MEASURED = {name: [row for row in ROWS if row["preset"] == name] for name in PRESETS}


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language; "" for those that name none."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
    return [text for name, text in fences if name == language]


def test_quickstart_has_eight_lines_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    quickstart = blocks("python")[0]
    assert len(quickstart.splitlines()) == 8
    exec(compile(quickstart, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    expected = [line.split("# ", 1)[1] for line in quickstart.splitlines() if "print(" in line]
    assert printed == expected


def shown(perplexity: float) -> str:
    """Three significant digits of what is above 1."""
    digits = 1 if perplexity >= 9.95 else 2 if perplexity >= 1.1 else 3 if perplexity >= 1.01 else 4
    return f"{perplexity:.{digits}f}"


def test_preset_table() -> None:
    rows = re.findall(r"^\| `([a-z-]+)`(?: \(default\))? \|((?:[^|\n]+\|){8})$", README, re.M)
    assert [name for name, _ in rows] == list(PRESETS)
    for name, rest in rows:
        config = PRESETS[name]
        model, init, optimizer, lr, clip, sampling, epochs, perplexities = (
            cell.strip() for cell in rest.rstrip("|").split("|")
        )
        words = [f"{config.layers}-layer"] * (config.layers > 1) + ["bidirectional"] * config.bidirectional
        words += [config.cell.upper()] + [config.nonlinearity] * (config.cell == "rnn")
        words += ["reset-before"] * (not config.reset_after)
        assert model == " ".join(words) + (f", hidden {config.hidden}" if config.hidden != 256 else "")
        given = (init, optimizer.lower(), sampling, int(epochs))
        assert given == (config.init, config.optimizer, config.sampling, config.epochs)
        assert float(lr) == config.lr
        assert (None if clip == "none" else float(clip)) == config.clip
        assert perplexities == ", ".join(shown(float(row["perplexity"])) for row in MEASURED[name])


def test_commands_parse() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if "fastcells " in line]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line.split("| ")[-1], comments=True)
        if words[0] == "fastcells":
            _parser().parse_args(words[1:])


def test_the_tree_is_the_tree() -> None:
    (tree,) = (block for block in blocks("") if block.startswith("fastcells/"))
    folder = ROOT
    for line in tree.splitlines():
        if not line.strip():
            continue
        name = line.split()[0]
        if not line.startswith(" "):
            folder = ROOT / name if name.endswith("/") else ROOT
            assert (ROOT / name).exists(), name
        else:
            assert (folder / name).exists(), f"{folder.name}/{name}"


def test_no_machine_path_and_no_registry() -> None:
    assert not re.search(r"(^|[\s`(])/\w+/\w", README)  # an absolute path
    assert "://" not in re.sub(r"https://(arxiv\.org|pytorch\.org|d2l\.ai|github\.com)/", "", README)


def test_speed_table_is_the_measured_one() -> None:
    with (ROOT / "bench/results/charlm-cpu.csv").open() as file:
        measured = {row["cell"]: row for row in csv.DictReader(file)}
    rows = re.findall(r"^\| (GRU|LSTM|RNN) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+)x \|$", README, re.M)
    assert [name for name, *_ in rows] == list(measured)
    for name, ours, theirs, speedup in rows:
        row = measured[name]
        assert (ours, theirs) == (f"{float(row['ours_ms']):.1f}", f"{float(row['nn_onehot_ms']):.1f}")
        assert speedup == f"{float(row['speedup']):.2f}"
    assert all(measured["GRU"][key] in README for key in ("device", "torch", "commit"))
