"""Inference on a CPU: `auto` beside torch.nn, ONNX Runtime and OpenVINO, one layer of I = H in float32.

    python -m bench.inference                        # the grid, one thread and two: hours
    python -m bench.inference --quick                # 24 shapes: minutes
    python -m bench.inference --cells LSTM --B 1     # a part of the grid
    python -m bench.inference --packed               # `layer.pack()` having been called

All have the same weights and input, and as many threads; weights, inputs and outputs are compared before timing. They
run in turn in each round, each after a rest in which the threads of the one before stop looking for work. A runtime
that is not installed (pip install onnxruntime openvino) is left out with a line that says so; `compared` says with whom
a row was. `ratio` is to the fastest of them. Rows take their places in
bench/results/inference-cpu.csv, and those of packed weights in the README; another machine's go `--into` another file.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from statistics import geometric_mean

import torch
from torch import Tensor

import fastcells
from bench.cases.case import CELLS, Case
from bench.cases.contenders import ours, torch_nn
from bench.cases.runtimes import RUNTIMES, Start, label, missing, one_node
from bench.cases.task import Task
from bench.measure.duel import FEWEST, LONG, Row
from bench.measure.guard import must_agree, must_be, tolerance
from bench.measure.inference_section import PACKED, TOLERATED, update
from bench.measure.limit import matmuls
from bench.measure.profile import operators
from bench.measure.provenance import RESULTS, ROOT, origin_line, print_table, provenance, write_csv
from bench.measure.results_file import key, number, read
from bench.measure.timing import calls_per_measurement, compare, once, ratio, summary

NAME, UNPACKED = "inference-cpu", "fastcells-auto"
CPU = torch.device("cpu")
GRID = {"T": (1, 8, 35, 256), "B": (1, 2, 8, 32, 128), "H": (64, 128, 256, 512, 1024)}
QUICK = {"T": (1, 35), "B": (1, 32), "H": (64, 256)}
TINY = {"T": (1, 3), "B": (1, 2), "H": (8,)}
REST = 0.02  # seconds; ONNX Runtime's threads spin for 14 ms after a call, torch's for 3
ASKED = 1.3  # times as fast as ONNX Runtime, at B=1 and H up to 512
SHOWN = ("cell", "threads", "T", "B", "H", "path", "ms", "nn_ms", *(f"{r}_ms" for r in RUNTIMES), "limit_ms", "ratio")


def prepare(
    case: Case, runtimes: Mapping[str, Start], packed: bool = False
) -> tuple[dict[str, Callable[[], object]], str]:
    """What is timed by name, all proven to compute the same, and which path of ours runs.

    packed: whether our weights are kept packed.

    Raises:
        GuardError: the comparison would mean nothing.
    """
    task = Task(case, CPU)
    model, baseline = ours("auto")(task), torch_nn(task)
    assert model.module is not None and baseline.module is not None and model.choice is not None
    assert isinstance(task.x, Tensor)
    x, layer, theirs = task.x.detach(), model.module.eval(), baseline.module.eval()
    expected, weights = theirs(x)[0], list(theirs.parameters())
    must_agree(list(layer.parameters()), weights, 0.0)
    choice = model.choice
    if packed:
        assert isinstance(layer, fastcells.RNN | fastcells.GRU | fastcells.LSTM)
        choice = fastcells.explain(layer.pack(), x)["l0"]
    must_be(choice, operators(partial(layer, x)))
    must_agree([layer(x)[0]], [expected], tolerance(case))
    runs: dict[str, Callable[[], object]] = {"ours": partial(layer, x), "nn": partial(theirs, x)}
    for name, start in runtimes.items():
        written = one_node(task.layer, x)
        session = start(written, x.clone(), torch.get_num_threads())
        session.run()
        must_agree(list(fastcells.load_onnx(written).parameters()), weights, 0.0)
        must_agree([session.x], [x], 0.0)
        must_agree([session.out()], [expected], tolerance(case))
        runs[name] = session.run
    limit = matmuls(case, CPU)
    assert limit is not None
    return {**runs, "limit": limit}, choice.path


def row_of(case: Case, runtimes: Mapping[str, Start], rounds: int, packed: bool = False) -> Row:
    """Milliseconds of each, and how many times those of ours they take. Raises as `prepare`.

    A case that takes long has fewer rounds, as in bench.layers.
    """
    runs, path = prepare(case, runtimes, packed)
    others = [name for name in runs if name not in ("ours", "limit")]
    # Measurements of all take as long: on a busy machine a longer one would be interrupted more often.
    inner = {name: calls_per_measurement([run]) for name, run in runs.items()}
    fitting = int(rounds * LONG / once(runs["nn"])) if inner["nn"] == 1 else rounds
    rounds = min(rounds, max(FEWEST, fitting))
    samples = compare(runs, rounds=rounds, warmup=1, inner=inner, rest=REST)
    medians = {name: summary(times).median for name, times in samples.items()}
    ratios = {name: ratio(samples[name], samples["ours"]) for name in others}
    fastest = min(others, key=lambda name: medians[name])
    return {
        **asdict(case),
        **{"contender": PACKED if packed else UNPACKED, "path": path, "ms": medians["ours"]},
        **{f"{name}_ms": medians.get(name) for name in ("nn", *RUNTIMES, "limit")},
        **{"fastest": fastest, "ratio": ratios[fastest]},
        **{f"{name}_ratio": ratios.get(name) for name in ("nn", *RUNTIMES)},
        "limit_ratio": ratio(samples[fastest], samples["limit"]),
        **{"rounds": rounds, "inner": inner["ours"]},
        "compared": ", ".join(["torch.nn", *map(label, runtimes)]),
    }


def say(rows: Sequence[Row], worst: int) -> None:
    """The slowest rows beside the fastest of the others, geometric means, and how many rows are what is asked."""
    ordered = sorted(rows, key=lambda row: number(row, "ratio"))
    print_table([{column: row[column] for column in SHOWN} for row in ordered[:worst]])
    for column in ("ratio", "nn_ratio", *(f"{name}_ratio" for name in RUNTIMES), "limit_ratio"):
        found = [number(row, column) for row in rows if row[column] is not None]
        if found:
            print(
                f"{column}: {geometric_mean(found):.2f} (geometric mean), {min(found):.2f} at worst, {len(found)} rows"
            )
    print(f"{sum(number(row, 'ratio') < TOLERATED for row in rows)} rows below {TOLERATED} of the fastest")
    single = [row for row in rows if row["B"] == 1 and number(row, "H") <= 512 and row["onnxruntime_ratio"] is not None]
    below = sum(number(row, "onnxruntime_ratio") < ASKED for row in single)
    print(f"{below} of {len(single)} rows of B=1 and H up to 512 below {ASKED} times ONNX Runtime")


def keep(row: Row, name: str) -> None:
    """Put a row in its place of the results: a runtime that ends the process later takes none with it."""
    path = RESULTS / f"{name}.csv"
    last = read(path) if path.exists() else []
    write_csv(name, list({(key(each), each["threads"], each["device"]): each for each in (*last, row)}.values()))


def main() -> int:
    """Print the worst rows and write all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of every contender, one after another")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    for letter in GRID:
        parser.add_argument(f"--{letter}", type=int, nargs="+", help="in place of the grid's")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="grid", action="store_const", const=QUICK)
    size.add_argument("--tiny", dest="grid", action="store_const", const=TINY, help="so small that it says nothing")
    parser.set_defaults(grid=GRID)
    parser.add_argument("--packed", action="store_true", help="by layer.pack()")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--worst", type=int, default=15, metavar="N", help="rows that are printed")
    parser.add_argument("--into", default=NAME, metavar="NAME", help=f"bench/results/NAME.csv; the README shows {NAME}")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    options = parser.parse_args()
    runtimes = {}
    for name, start in RUNTIMES.items():
        lacking = missing(name)
        if lacking is None:
            runtimes[name] = start
        else:
            print(f"without {lacking}")
    sizes = [getattr(options, letter) or options.grid[letter] for letter in GRID]
    rows: list[Row] = []
    try:
        for threads in options.threads:
            torch.set_num_threads(threads)
            origin = provenance(CPU)
            print(origin_line(origin))
            for T, B, H, cell in itertools.product(*sizes, options.cells):
                with torch.no_grad():
                    case = Case(cell, "forward", T=T, B=B, I=H, H=H)
                    rows.append(row_of(case, runtimes, options.rounds, options.packed) | origin)
                print(f"{cell} T={T} B={B} H={H}: {rows[-1]['ratio']:.2f} to {rows[-1]['fastest']}", flush=True)
                if not options.no_write:
                    keep(rows[-1], options.into)
    except KeyboardInterrupt:  # the grid takes long: what is there is worth keeping
        print("interrupted")
    if not rows:
        return 1
    say(rows, options.worst)
    if not options.no_write:
        readme, path = ROOT / "README.md", f"bench/results/{options.into}.csv"
        if options.into == NAME:
            readme.write_text(update(readme.read_text("utf-8"), read(RESULTS / f"{NAME}.csv"), path), "utf-8")
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
