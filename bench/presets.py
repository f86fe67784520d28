"""Train every preset on the bundled Chinese lyrics and write its perplexity at each report.

    python -m bench.presets                      # about a quarter of an hour on two cores
    python -m bench.presets --preset gru         # this one anew; the other rows stay as they are

The README's preset table shows these rows.
"""

from __future__ import annotations

import argparse
import csv
import sys
import warnings

import torch

from bench.measure.provenance import RESULTS, print_table, provenance, write_csv
from fastcells.charlm import PRESETS, CharLM, Epoch, Vocabulary, bundled_corpus, train


def rows_of(name: str, text: str, device: torch.device) -> list[dict[str, object]]:
    """One row for each report of one preset."""
    config, vocabulary = PRESETS[name], Vocabulary(text)
    rows: list[dict[str, object]] = []

    def record(_: CharLM, epoch: Epoch) -> None:
        if epoch.number % config.report == 0:
            rows.append({"preset": name, "epoch": epoch.number, "perplexity": epoch.perplexity, "seed": config.seed})

    train(vocabulary.encode(text), len(vocabulary), config, device=device, on_epoch=record)
    return rows


def kept(result: str, name: str) -> list[dict[str, object]]:
    """A preset's rows of the last time, with their provenance."""
    with (RESULTS / f"{result}.csv").open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file) if row["preset"] == name]


def main() -> int:
    """Print the table, write bench/results/presets-DEVICE.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", action="append", choices=list(PRESETS), help="only this one; may be repeated")
    options = parser.parse_args()
    device, chosen = torch.device(options.device), options.preset or list(PRESETS)
    warnings.simplefilter("ignore")  # the bidirectional preset says what it is
    text = bundled_corpus("zh")
    result, origin = f"presets-{device.type}", provenance(device)
    del origin["kind"]  # the file's name says it
    rows: list[dict[str, object]] = []
    for name in PRESETS:
        if name in chosen:
            rows += [{**row, **origin} for row in rows_of(name, text, device)]
            print(name, [round(float(str(row["perplexity"])), 4) for row in rows if row["preset"] == name], flush=True)
        else:
            rows += kept(result, name)
    print_table([{key: row[key] for key in ("preset", "epoch", "perplexity", "seed")} for row in rows])
    print(f"written to {write_csv(result, rows, {})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
