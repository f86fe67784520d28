"""`python -m tests.support.killed_runs --kills 50`: runs that are killed and resumed end as if they never had been.

Each kill is a `kill -9` of a forked process that runs the command line: at a random moment, or inside a save, at the
nth of its calls to the system. Ctrl-C is tried in the same way (--signal, --times). Prints a line for each, and fails
unless losses and weights are the uninterrupted run's.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from fastcells.charlm import RunFolder, files, load
from fastcells.charlm.cli import main

TEXT = "the quick brown fox jumps over the lazy dog and the dog looks at the fox " * 12
OFTEN = ["--save-every", "0.0005"]  # 30 ms: a third of the time goes into saving
OPTIONS = ["--hidden", "16", "--batch", "4", "--steps", "9", "--device", "cpu", "--length", "5", *OFTEN]
CALLS = ("open", "write", "fsync", "replace", "sync_folder")


def run(arguments: list[str], *, inside: str = "", after: int = 0) -> int:
    """The command line in a process of its own. inside: the call before which it kills itself, the `after`th time."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    torch.set_num_threads(1)
    os.setpgid(0, 0)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    status = 99
    try:
        if inside:
            _kill_inside(inside, after)
        status = main(arguments)
    except KeyboardInterrupt:  # the second one came when all was done
        status = 130
    finally:
        os._exit(status)


def _kill_inside(call: str, after: int) -> None:
    left = after
    owner, name = {
        "open": (files.Path, "open"),
        "write": (files.safetensors.torch, "save"),
        "fsync": (files.os, "fsync"),
        "replace": (files.os, "replace"),
        "sync_folder": (files, "sync_folder"),
    }[call]
    original = getattr(owner, name)

    def killing(*args: object, **options: object) -> object:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(owner, name, killing)


def ended(process: int, limit: float = 120.0) -> int:
    """The exit status of a process, negative for a signal."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise SystemExit(f"still running after {limit} s")


def result(folder: Path) -> tuple[list[tuple[float, float]], bytes]:
    """Losses by epoch, and the weights."""
    rows = [(row["epoch"], row["loss"]) for row in RunFolder(folder).metrics()]
    return rows, (folder / "weights.safetensors").read_bytes()


def trial(
    folder: Path, corpus: Path, epochs: int, duration: float, kills: int, how: signal.Signals, times: int
) -> list[str]:
    """One run, killed so many times on its way. Returns what was done."""
    done: list[str] = []
    while True:
        new = not (folder / "config.json").exists()
        if new and folder.exists():  # killed before the run began: the user is told to remove it
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
        begin = ["train", str(corpus), "--out", str(folder), "--epochs", str(epochs), *OPTIONS]
        arguments = begin if new else ["train", "--resume", str(folder), "--device", "cpu", *OFTEN]
        if len(done) == kills:
            status = ended(run(arguments))
            assert status == 0, f"{arguments} ended with {status} after {done}"
            return done
        inside = random.choice(CALLS) if how == signal.SIGKILL and random.random() < 0.4 else ""
        process = run(arguments, inside=inside, after=random.randint(1, 30))
        if not inside:
            wait = random.uniform(0.0, duration)
            time.sleep(wait)
            for _ in range(times):
                os.kill(process, how)
                time.sleep(0.01)
        status = ended(process)
        done.append(inside or f"{how.name} after {wait:.2f} s")
        assert status in (0, 130, -how), f"{done[-1]}: ended with {status}"
        if (folder / "config.json").exists():
            load(folder)


def command() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--each", type=int, default=5, help="kills of one run")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", default="SIGKILL", choices=["SIGKILL", "SIGINT", "SIGTERM"])
    parser.add_argument("--times", type=int, default=1, help="how often the signal is sent")
    options = parser.parse_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name, "corpus.txt")
        corpus.write_text(TEXT)
        start = time.monotonic()
        arguments = ["train", str(corpus), "--out", f"{name}/whole", "--epochs", str(options.epochs), *OPTIONS]
        assert ended(run(arguments)) == 0
        duration = time.monotonic() - start
        expected = result(Path(name, "whole"))
        kills = 0
        while kills < options.kills:
            folder = Path(name, f"run-{kills}")
            how = signal.Signals[options.signal]
            done = trial(folder, corpus, options.epochs, duration, options.each, how, options.times)
            kills += len(done)
            assert result(folder) == expected, f"another result after {done}"
            print(f"the same after {', '.join(done)}", flush=True)
    print(f"{kills} kills, no run lost, losses and weights identical")


if __name__ == "__main__":
    command()
