"""Our kernels on this GPU over a grid of shapes: first whether they are right, many at once, then how fast, alone.

    python -m bench.device --seconds 120 --part check    # writes device-check.csv
    python -m bench.device --seconds 90 --part time      # what is right by that file
    python -m bench.device --tiny                        # a rehearsal of both: one shape, on any device

The first part compiles, so it runs in a process for each core. A process that hangs or dies costs its case alone. Only
what was right is timed, beside torch.nn in the same process and on the same CUDA graphs.
"""

from __future__ import annotations

import argparse
import csv
import faulthandler
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from queue import Empty, Queue

import torch

from bench.cases.case import CELLS, GPU_FORMATS, Case, lesson
from bench.cases.model import Skipped
from bench.cases.task import matmul_precision
from bench.measure.duel import Row, prepare
from bench.measure.guard import GuardError
from bench.measure.provenance import RESULTS, origin_line, print_table, provenance, write_csv
from bench.measure.timing import calls_per_measurement, compare, ratio, summary

SHAPES = ((32, 256), (32, 512), (32, 128), (128, 256), (8, 256), (32, 1024), (1, 256), (32, 64), (128, 512), (8, 1024))
IMPLEMENTATIONS = ("gluon", "triton")
MODES = ("forward", "forward+backward")
STEPS = 128
MORE_SHAPES = ((16, 768), (32, 384), (32, 192))
# What else decides: float16, which cuDNN has persistent kernels for; float32 without TF32; both directions; few steps.
OTHERS = [
    *(Case("", "forward", T=STEPS, B=B, I=H, H=H, dtype="float16") for B, H in ((32, 256), (16, 768), (32, 128))),
    *(Case("", "forward", T=STEPS, B=32, I=H, H=H, precision="strict") for H in (256, 512)),
    *(
        Case("", "forward", T=STEPS, B=32, I=256, H=256, dtype=d, precision=p, bidirectional=True)
        for d, p in GPU_FORMATS
    ),
    *(Case("", "forward", T=35, B=32, I=256, H=256, dtype=d, precision=p) for d, p in GPU_FORMATS),
]
LATE = 15  # seconds that a case has which is under way when the time is over
HANGS = 60  # seconds of one case, compilation included, after which its process is ended

COLUMNS = ("cell", "mode", "dtype", "precision", "bidirectional", "ids", "T", "B", "H", "graph")

Job = tuple[Case, str]


def jobs(options: argparse.Namespace) -> list[Job]:
    """The language model's step, then a grid, what matters most first; `modes` says what is done with each."""
    if options.tiny:
        return [(Case("GRU", "forward", T=3, B=2, I=8, H=8, precision="strict"), impl) for impl in ("torch", "triton")]
    sizes = product((*SHAPES, *MORE_SHAPES), GPU_FORMATS)
    grid = [Case("", "forward", T=STEPS, B=B, I=H, H=H, dtype=d, precision=p) for (B, H), (d, p) in sizes]
    lessons = [replace(lesson(""), dtype=d, precision=p) for d, p in GPU_FORMATS]
    cases = product([*lessons, *grid, *OTHERS], CELLS, options.impl)
    return [(replace(case, cell=cell), impl) for case, cell, impl in cases]


def modes(case: Case) -> tuple[str, ...]:
    """What is checked and timed: without gradients, and with them."""
    return (case.mode,) if case.mode == "training step" else MODES


def verdict(job: Job, device: torch.device) -> str:
    """Both modes against torch.nn: "right", "declined: ...", or what is wrong."""
    case, impl = job
    try:
        for mode in modes(case):
            with matmul_precision(case):
                prepare(replace(case, mode=mode), f"fastcells-{impl}", device)
    except Skipped as reason:
        return f"declined: {reason}"
    except GuardError as error:
        return f"WRONG: {error}"
    except Exception as error:  # a compiler's or a driver's refusal is a finding too
        return f"WRONG: {type(error).__name__}: {str(error)[:300]}"
    return "right"


def work(device: torch.device, all_jobs: Sequence[Job]) -> None:
    """A worker: the index of a job in, a line of JSON out."""
    for line in sys.stdin:
        faulthandler.dump_traceback_later(HANGS, exit=True)
        start = time.perf_counter()
        found = verdict(all_jobs[int(line)], device)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps({"verdict": found, "seconds": round(time.perf_counter() - start, 1)}), flush=True)
        if "CUDA error" in found:
            sys.exit(1)  # nothing more runs in this process: the next case gets a new one


def check(options: argparse.Namespace) -> list[dict[str, object]]:
    """A row for each job, from worker processes."""
    count = len(jobs(options))
    waiting: Queue[int] = Queue()
    for index in range(count):
        waiting.put(index)
    found: list[dict[str, object]] = [{"verdict": "out of time", "seconds": 0.0} for _ in range(count)]
    end = time.monotonic() + options.seconds
    processes: list[subprocess.Popen[str]] = []
    command = [sys.executable, "-m", "bench.device", "--worker", "--device", options.device]
    command += [*(["--tiny"] if options.tiny else []), "--impl", *options.impl]

    def serve(_: int) -> None:
        process = None
        while time.monotonic() < end:
            try:
                index = waiting.get_nowait()
            except Empty:
                break
            if process is None or process.poll() is not None:
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                processes.append(process)
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{index}\n")
            process.stdin.flush()
            if line := process.stdout.readline():
                found[index] = json.loads(line)
            elif time.monotonic() < end + LATE:
                found[index] |= {"verdict": f"WRONG: its process hung or died, exit status {process.wait()}"}

    def stop() -> None:
        for process in processes:
            process.kill()

    timer = threading.Timer(options.seconds + LATE, stop)
    timer.start()
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(serve, range(options.jobs)))
    timer.cancel()
    stop()
    return found


def timed(job: Job, device: torch.device, rounds: int) -> Iterator[Row]:
    """Milliseconds of both modes, as a CUDA graph where there are any; at the first shape also called from Python."""
    case, impl = job
    first = SHAPES[0] == (case.B, case.H)
    graphs = (False,) if device.type == "cpu" else (True, False) if first else (True,)
    for mode, graph in product(modes(case), graphs):
        one = replace(case, mode=mode, graph=graph)
        with matmul_precision(one):
            duel = prepare(one, f"fastcells-{impl}", device)
            runs: dict[str, Callable[[], object]] = {"ours": duel.ours.run, "nn": duel.theirs.run}
            samples = compare(runs, rounds=rounds, inner=calls_per_measurement(list(runs.values())))
        ours, theirs = summary(samples["ours"]).median, summary(samples["nn"]).median
        yield {
            **{name: getattr(one, name) for name in COLUMNS},
            "impl": impl,
            "path": "" if duel.choice is None else duel.choice.path,
            "ms": ours,
            "nn_ms": theirs,
            "us_per_step": ours * 1e3 / one.T,
            "nn_us_per_step": theirs * 1e3 / one.T,
            "ratio": ratio(samples["nn"], samples["ours"]),
            "rounds": rounds,
        }


def time_all(chosen: Sequence[Job], device: torch.device, options: argparse.Namespace) -> list[Row]:
    """Until --seconds are over."""
    rows: list[Row] = []
    end = time.monotonic() + options.seconds
    for job in chosen:
        if time.monotonic() > end:
            break
        faulthandler.dump_traceback_later(HANGS, exit=True)
        try:
            rows += timed(job, device, options.rounds)
        except Exception as error:  # one case that fails when it is timed must not cost the others
            print(f"{job[0]} {job[1]}: {type(error).__name__}: {str(error)[:200]}")
        faulthandler.cancel_dump_traceback_later()
    return rows


def main() -> int:
    """Print both tables and write them to --out; exit status 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="worker processes")
    parser.add_argument("--part", choices=("check", "time"), help="one of both")
    parser.add_argument("--seconds", type=float, default=120, help="of each part; after them no new case begins")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--impl", nargs="+", choices=IMPLEMENTATIONS, default=IMPLEMENTATIONS)
    parser.add_argument("--tiny", action="store_true", help="a rehearsal")
    parser.add_argument("--out", type=Path, help="folder for the tables (default: bench/results)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.worker:
        work(device, jobs(options))
        return 0
    origin = provenance(device)
    print(origin_line(origin))
    said = [] if options.part == "time" else report_check(check(options), origin, options)
    if options.part != "check":
        times = time_all(right(options), device, options)
        if times:
            print_table(times)
            print(f"written to {write_csv('device', times, origin, options.out)}")
    words = ("right", "WRONG", "declined", "out of time")
    print(", ".join(f"{sum(line.startswith(word) for line in said)} {word}" for word in words))
    return 1 if any(line.startswith("WRONG") for line in said) else 0


def report_check(found: list[dict[str, object]], origin: Mapping[str, str], options: argparse.Namespace) -> list[str]:
    """Write the table of verdicts, print what is wrong; the verdicts."""
    all_jobs = jobs(options)
    rows = [{**asdict(case), "impl": impl, **row} for (case, impl), row in zip(all_jobs, found, strict=True)]
    write_csv("device-check", rows, origin, options.out)
    said = [str(row["verdict"]) for row in found]
    for (case, impl), line in zip(all_jobs, said, strict=True):
        if line.startswith("WRONG"):
            print(f"{case} {impl}: {line}")
    return said


def right(options: argparse.Namespace) -> list[Job]:
    """What device-check.csv says is right."""
    with ((options.out or RESULTS) / "device-check.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [job for job, row in zip(jobs(options), rows, strict=True) if row["verdict"] == "right"]


if __name__ == "__main__":
    sys.exit(main())
