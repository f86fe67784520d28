"""Train every preset on the bundled Chinese lyrics and write its perplexity at each report.

    python -m bench.presets            # about a quarter of an hour on two cores

The README's preset table shows these rows.
"""

from __future__ import annotations

import argparse
import sys
import warnings

import torch

from bench.measure.provenance import print_table, provenance, write_csv
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


def main() -> int:
    """Print the table, write bench/results/presets-DEVICE.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    warnings.simplefilter("ignore")  # the bidirectional preset says what it is
    text = bundled_corpus("zh")
    rows = []
    for name in PRESETS:
        rows += rows_of(name, text, device)
        print(name, [round(float(str(row["perplexity"])), 4) for row in rows if row["preset"] == name], flush=True)
    print_table(rows)
    print(f"written to {write_csv(f'presets-{device.type}', rows, provenance(device))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
