"""`python -m tests.support.fuzzed_files --count 2000`: damaged runs, corpora and archives, each a clear line or usable.

Each file of a run, and each kind of corpus, is changed by chance (bytes flipped, cut out, doubled; values of JSON and
of headers replaced), then used by the command line, which is stopped after a step. An error has to be one line without
a traceback, in seconds, with less than 1 GB in all, and no file may have changed by it.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import random
import shutil
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from fastcells.charlm.cli import main

TEXT = "the quick brown fox jumps over the lazy dog\n歌词 and the dog looks at the fox\n" * 8
SMALL = ["--hidden", "8", "--batch", "4", "--steps", "5", "--length", "3", "--device", "cpu"]
VALUES = [None, True, -1, 0, 1.5, 10**9, 10**30, "", "x", [], {}, float("nan"), float("inf"), [[[]]], "歌"]
SECONDS, MEGABYTES = 30.0, 1024.0


class StopAtOnce:
    """A StopRequest that is always asked for."""

    asked = True

    def listening(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def changed(data: bytes, chance: random.Random) -> bytes:
    """A few bytes flipped, cut out, doubled or made up."""
    for _ in range(chance.choice([1, 1, 1, 2, 5, 40])):
        at = chance.randrange(len(data) + 1)
        size = chance.choice([1, 1, 2, 8, 64, 1 << 12])
        made = chance.choice([bytes(size), b"\xff" * size, chance.randbytes(size), data[at : at + size] * 2])
        data = data[:at] + chance.choice([b"", made]) + data[at + chance.choice([0, 1, size]) :]
    return data


def changed_json(data: bytes, chance: random.Random) -> bytes:
    """A value replaced somewhere, or a key taken out or put in."""
    value = json.loads(data)

    def change(node: object) -> object:
        if isinstance(node, dict) and node and chance.random() < 0.9:
            key = chance.choice(list(node))
            if chance.random() < 0.1:
                del node[key]
            elif chance.random() < 0.1:
                node["new"] = node.pop(key)
            else:
                node[key] = change(node[key])
            return node
        if isinstance(node, list) and node and chance.random() < 0.7:
            index = chance.randrange(len(node))
            node[index] = change(node[index])
            return node
        if isinstance(node, str) and node.startswith("{"):
            return changed_json(node.encode(), chance).decode()
        return chance.choice([*VALUES, node * 2 if isinstance(node, int | str) else None])

    return json.dumps(change(value)).encode()


def changed_header(data: bytes, chance: random.Random) -> bytes:
    """The JSON at the front of a file of tensors, with its length right or wrong."""
    length = struct.unpack("<Q", data[:8])[0]
    header = changed_json(data[8 : 8 + length], chance)
    size = len(header) if chance.random() < 0.9 else chance.choice([0, 1 << 20, 1 << 40, (1 << 64) - 1])
    return struct.pack("<Q", size) + header + data[8 + length :]


def run_files(chance: random.Random, run: Path) -> tuple[str, list[str], Path]:
    """A file of a run changed; what is done with the run."""
    name = chance.choice(["config.json", "vocabulary.json", "weights.safetensors", "checkpoint.safetensors"] * 3 + REST)
    path = run / name
    ways: list[Callable[[bytes, random.Random], bytes]] = [changed]
    if name.endswith(".json"):
        ways.append(changed_json)
    if name.endswith(".safetensors"):
        ways.append(changed_header)
    way = chance.choice(ways)
    path.write_bytes(way(path.read_bytes(), chance))
    resume = ["train", "--resume", str(run), "--epochs", "3", "--device", "cpu"]
    uses = [resume, ["generate", str(run), "--prefix", "the", "--length", "3", "--device", "cpu"]]
    uses.append(["eval", str(run), str(run.parent / "corpus.txt"), "--device", "cpu"])
    weights = [1, 1, 1] if name != "checkpoint.safetensors" and name not in REST else [1, 0, 0]
    return f"{name} by {way.__name__}", chance.choices(uses, weights)[0], path


REST = ["ids.npy", "metrics.csv", "progress.csv", "log.txt"]


def corpora(chance: random.Random, run: Path) -> tuple[str, list[str], Path]:
    """A corpus changed, as it is or packed before."""
    kind = chance.choice(["txt", "txt.gz", "zip", "zip", "utf-16.txt"])
    path = run.parent / f"fuzzed.{kind}"
    data = TEXT.encode("utf-16" if kind == "utf-16.txt" else "utf-8")
    if kind == "txt.gz":
        data = gzip.compress(data)
    if kind == "zip":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
            archive.writestr("a.txt", data)
            archive.writestr("b/c.txt", data[:100])
        data = packed.getvalue()
    path.write_bytes(changed(data, chance))
    options = ["--control", chance.choice(["error", "keep", "drop"]), "--newlines", chance.choice(["keep", "space"])]
    if chance.random() < 0.2:
        options += ["--encoding", chance.choice(["gb18030", "latin-1", "utf-16", "utf-7", "big5"])]
    return f"{kind} by changed", ["train", str(path), "--out", str(run.parent / "new"), *options, *SMALL], path


def contents(folder: Path) -> dict[str, bytes]:
    """All files below."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def trial(seed: int, base: Path, folder: Path) -> str:
    """One change and its use. Returns what came out, or raises AssertionError."""
    chance = random.Random(seed)
    shutil.copytree(base, folder)
    try:
        what, arguments, path = chance.choice([run_files, run_files, corpora])(chance, folder / "run")
        before = contents(folder)
        out, err = io.StringIO(), io.StringIO()
        start = time.monotonic()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(arguments)
        seconds = time.monotonic() - start
        error = err.getvalue()
        story = f"seed {seed}, {what}: {arguments[0]} ended with {status}: {error.strip()[:300]}"
        assert status in (0, 2, 3, 130), story
        assert "Traceback" not in error and seconds < SECONDS, f"{story} ({seconds:.1f} s)"
        if status == 2:
            lines = [line for line in error.splitlines() if "warning" not in line]
            assert len(lines) == 1 and lines[0].startswith("fastcells: error: ") and len(lines[0]) < 1000, story
            assert contents(folder) == before, f"{story}: files have changed"
        used = peak_megabytes()
        assert used < MEGABYTES, f"{story}: {used:.0f} MB"
        del path
        return {0: "used", 2: "refused"}.get(status, "stopped")
    finally:
        shutil.rmtree(folder)


def peak_megabytes() -> float:
    """The most that this process has had in memory; not ru_maxrss, which begins with what its parent had."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def command() -> None:
    """Try many, and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, int] = {}
    failed = 0
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        base = Path(name, "base")
        base.mkdir()
        (base / "corpus.txt").write_text(TEXT)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            made = ["train", str(base / "corpus.txt"), "--out", str(base / "run"), "--epochs", "2", *SMALL]
            assert main([*made, "--report-every", "0"]) == 0
        stack.enter_context(mock.patch("fastcells.charlm.train_command.StopRequest", StopAtOnce))
        stack.enter_context(mock.patch("torch.compile", lambda model: model))  # a wish of a configuration, of a minute
        for seed in range(options.seed, options.seed + options.count):
            try:
                outcome = trial(seed, base, Path(name, "trial"))
                found[outcome] = found.get(outcome, 0) + 1
            except BaseException as error:
                failed += 1
                print(f"FAILED seed {seed}: {type(error).__name__}: {str(error)[:600]}", flush=True)
                if isinstance(error, KeyboardInterrupt) or failed > 20:
                    raise
    print(f"{sum(found.values())} trials: {found}; {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    command()
