"""The README is true: its quickstart runs, its preset table is the code's, its commands and files exist."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest

from bench.measure import device_section, inference_section
from bench.measure.results_file import read
from bench.measure.sections import part_of
from bench.report import section, update
from fastcells.charlm import PRESETS
from fastcells.charlm.options import parser

ROOT = Path(__file__).parents[2]
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
    presets = README.split("## The character language model")[1]  # another table has as many columns
    rows = re.findall(r"^\| `([a-z-]+)`(?: \(default\))? \|((?:[^|\n]+\|){9})$", presets, re.M)
    assert [name for name, _ in rows] == list(PRESETS)
    for name, rest in rows:
        config = PRESETS[name]
        model, init, optimizer, lr, schedule, clip, sampling, epochs, perplexities = (
            cell.strip() for cell in rest.rstrip("|").split("|")
        )
        words = [f"{config.layers}-layer"] * (config.layers > 1) + ["bidirectional"] * config.bidirectional
        words += [config.cell.upper()] + [config.nonlinearity] * (config.cell == "rnn")
        words += ["reset-before"] * (not config.reset_after)
        assert model == " ".join(words) + (f", hidden {config.hidden}" if config.hidden != 256 else "")
        given = (init, optimizer.lower(), schedule, sampling, int(epochs))
        assert given == (config.init, config.optimizer, config.schedule, config.sampling, config.epochs)
        assert float(lr) == config.lr
        assert (None if clip == "none" else float(clip)) == config.clip
        assert perplexities == ", ".join(shown(float(row["perplexity"])) for row in MEASURED[name])


def test_table_of_corpora() -> None:
    with (ROOT / "bench/results/corpus-cpu.csv").open() as file:
        rows = [
            (row["text_mb"], f"{float(row['seconds']):.1f}", f"{float(row['mb']):.0f}") for row in csv.DictReader(file)
        ]
    assert re.findall(r"^\| (\d+) \| ([\d.]+) \| (\d+) \|$", README, re.M) == rows


def test_commands_parse() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if "fastcells " in line]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line.split("| ")[-1], comments=True)
        if words[0] == "fastcells":
            parser().parse_args(words[1:])


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


def test_speed_section_is_generated() -> None:
    path, shown_rows = part_of(README, "bench")
    rows, name = read(ROOT / path), Path(path).stem
    assert shown_rows == section(rows, name)
    assert update(README, rows, name) == README
    for picture in re.findall(r"!\[[^]]+\]\(([^)]+)\)", shown_rows):
        assert (ROOT / picture).exists(), picture
    assert "| GRU |" in shown_rows and ".svg)" in shown_rows


def test_no_speed_is_typed() -> None:
    typed = re.sub(r"<!-- (bench|gpu|inference): .*?<!-- /\1 -->", "", README, flags=re.S)
    assert not re.search(r"\d\s*(x\b|times as fast|ms\b)", typed)


def test_gpu_section_is_generated() -> None:
    path, shown_rows = part_of(README, "gpu")
    with (ROOT / path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert device_section.update(README, rows, path) == README
    assert "| graph | T=128 | bfloat16 | 256 | 32 |" in shown_rows and "NVIDIA" in shown_rows
    assert sum(float(row["ratio"]) < 1 for row in rows if row["impl"] == "gluon") > 3, "what is slower is shown, too"


def test_inference_section_is_generated() -> None:
    path, shown_rows = part_of(README, "inference")
    rows = read(ROOT / path)
    assert inference_section.update(README, rows, path) == README
    assert "| 1 | 1 |" in shown_rows and "below 0.95 in" in shown_rows
