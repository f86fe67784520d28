"""One training step of the character language model: token ids here, `nn.*` on explicit one-hots there.

    python -m bench.charlm                 # the lesson's shape: T=35, B=32, V=1027, H=256
    python -m bench.charlm --require 1.5   # exit status 1 if a GRU step is less than 1.5 times as fast

A step is: (one-hot,) recurrent layer, linear layer, cross-entropy, backward, Adam. Both sides start from the same
weights; before timing, their losses and all gradients are compared.
"""

from __future__ import annotations

import argparse
import copy
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastcells
from bench.guard import must_agree, must_run
from bench.provenance import print_table, provenance, write_csv
from bench.timing import compare, synchronizer
from fastcells import explain
from fastcells.charlm.model import Scores
from fastcells.dispatch import IMPLEMENTATIONS

CELLS = {"GRU": fastcells.GRU, "LSTM": fastcells.LSTM, "RNN": fastcells.RNN}
PATHS = {"auto": "c", "cpu": "c", "torch": "recurrence", "triton": "sequence", "triton-step": "step"}
# float32 sums over T*B = 1,120 terms in another order: a few hundred roundings of 6e-8, far below a wrong gradient.
# On a GPU both sides multiply in tf32, whose rounding is 5e-4.
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}


class Model(nn.Module):
    """A recurrent layer and a linear one: torch's own with `one_hot`, where ids are expanded first, or CharLM's."""

    def __init__(self, layer: nn.Module, hidden: int, vocabulary: int, *, one_hot: bool) -> None:
        super().__init__()
        self.layer = layer
        self.output = nn.Linear(hidden, vocabulary) if one_hot else Scores(hidden, vocabulary)
        self.one_hot = one_hot

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [T, B, V] for ids [T, B]."""
        x = F.one_hot(ids, self.output.out_features).to(self.output.weight.dtype) if self.one_hot else ids
        return self.output(self.layer(x)[0])


def step(model: Model, optimizer: torch.optim.Optimizer, ids: Tensor, targets: Tensor) -> Tensor:
    """One training step; returns the loss."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    loss.backward()
    optimizer.step()
    return loss.detach()


def row(
    cell: str, device: torch.device, T: int, B: int, V: int, H: int, rounds: int, impl: str = "auto"
) -> dict[str, object]:
    """Compare one cell and time it. RuntimeError if `impl` cannot run it here."""
    ours = Model(CELLS[cell](V, H, impl=impl), H, V, one_hot=False).to(device)
    theirs = Model(getattr(nn, cell)(V, H), H, V, one_hot=True).to(device)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    ids, targets = torch.randint(V, (2, T, B), device=device)
    choice = explain(ours.layer, ids)  # type: ignore[arg-type]
    must_run(choice, PATHS[impl])
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (ours, theirs)]

    losses = [step(m, torch.optim.SGD(m.parameters(), lr=0.0), ids, targets) for m in (ours, theirs)]
    gradients = [[p.grad for p in m.parameters() if p.grad is not None] for m in (ours, theirs)]
    must_agree([losses[0], *gradients[0]], [losses[1], *gradients[1]], TOLERANCE[device.type])

    timings, ratio = compare(
        {
            "ours": lambda: step(ours, optimizers[0], ids, targets),
            "theirs": lambda: step(theirs, optimizers[1], ids, targets),
        },
        rounds=rounds,
        synchronize=synchronizer(device),
    )
    return {
        "cell": cell,
        "impl": choice.impl,
        "path": choice.path,
        "T": T,
        "B": B,
        "V": V,
        "H": H,
        "dtype": "float32",
        "ours_ms": timings["ours"].median,
        "ours_quartiles": f"{timings['ours'].lower:.2f}-{timings['ours'].upper:.2f}",
        "nn_onehot_ms": timings["theirs"].median,
        "nn_quartiles": f"{timings['theirs'].lower:.2f}-{timings['theirs'].upper:.2f}",
        "rounds": rounds,
        "speedup": ratio("theirs", "ours"),
    }


def main() -> int:
    """Print the table, write bench/results/charlm-DEVICE.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--impl", choices=IMPLEMENTATIONS, default="auto")
    parser.add_argument("--require", type=float, metavar="X", help="fail if a GRU step is less than X times as fast")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    for name, value in (("steps", 35), ("batch", 32), ("vocabulary", 1027), ("hidden", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    shape = (options.steps, options.batch, options.vocabulary, options.hidden)
    rows = []
    for cell in CELLS:
        try:
            rows.append(row(cell, device, *shape, options.rounds, options.impl))
        except RuntimeError as error:
            if "cannot run" not in str(error):
                raise
            print(f"{cell} left out: {error}")
    origin = provenance(device)
    print(", ".join(f"{key} {value}" for key, value in origin.items() if value))
    if not rows:
        return 1
    print_table(rows)
    if not options.no_write:
        name = f"charlm-{device.type}" + (f"-{options.impl}" if options.impl != "auto" else "")
        print(f"written to {write_csv(name, rows, origin)}")
    speedup = next((float(str(r["speedup"])) for r in rows if r["cell"] == "GRU"), 0.0)
    if options.require is not None and speedup < options.require:
        print(f"the GRU step is {speedup:.2f} times as fast, and {options.require} was required", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
