"""Code and tests of packages that use recurrent layers, run with torch.nn's classes and with ours in their place.

    python -m bench.downstream --install DIR [--packages NAME ...] [--no-tests] [--write]

Installs what is missing into DIR (never torch), runs every package's cases of `bench.cases.downstream_cases` and the
recurrent part of its own tests, and prints a table. Exit status 1 if any result of ours is not torch.nn's.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.cases.downstream_packages import PACKAGES, Package
from bench.measure.downstream_swap import OUT, SIDE, Ran, Results, load
from bench.measure.provenance import RESULTS, provenance, write_csv

HERE = Path(__file__).parent
CASES = "bench.cases.downstream_cases"
OURS = ("fastcells", "fastcells-c", "convert")
TESTED = ("torch.nn", "fastcells", "fastcells-c")
# A float32 result that torch happens to hit exactly, a scalar loss for one, may be this many roundings off in ours.
ROUNDINGS = 16


@dataclass(frozen=True)
class Row:
    """One case or test: what each side gave, and whether ours is torch.nn's: yes, NO, or the known reason."""

    package: str
    version: str
    kind: str
    name: str
    sides: dict[str, str]
    same: str


class NotHere(Exception):
    """A package cannot be had on this machine; the text says why."""


def install(package: Package, folder: Path) -> str:
    """Its version, installed with what it needs into folder/site, and its source unpacked in folder if it has tests.

    Raises:
        NotHere: pip finds no archive, or the installation failed.
    """
    site = folder / "site"
    if _version(package.name, site) is None:
        missing = [n for n in package.needs if _version(n.partition("<")[0], site) is None]
        _pip("install", "--target", str(site), package.name, *missing)
    version = _version(package.name, site)
    assert version is not None
    if package.tests and not source(package, folder, version).exists():
        downloads = folder / "downloads"
        _pip("download", "-d", str(downloads), "--no-binary", package.name, f"{package.name}=={version}")
        archive = downloads / f"{source(package, folder, version).name}.tar.gz"
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return version


def source(package: Package, folder: Path, version: str) -> Path:
    """Where the package's source archive is unpacked."""
    return folder / f"{package.name.replace('-', '_')}-{version}"


def _version(name: str, site: Path) -> str | None:
    found = importlib.metadata.distributions(name=name, path=[str(site)])
    return next((distribution.version for distribution in found), None)


def _pip(command: str, *arguments: str) -> None:
    line = [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", "--disable-pip-version-check", *arguments]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        raise NotHere((done.stderr.strip().splitlines() or [f"pip exited with {done.returncode}"])[-1])


def compare_cases(package: Package, version: str, folder: Path, module: str = CASES) -> list[Row]:
    """Every case of the package on every side, each in a process of its own."""
    ran: dict[str, dict[str, Ran]] = {}
    for side in ("float64", "torch.nn", *OURS):
        out = folder / f"{package.name}-{side}.pt"
        out.unlink(missing_ok=True)
        _child(folder, ["-m", "bench.measure.downstream_swap", side, module, package.name, str(out)])
        ran[side] = load(out) if out.exists() else {}
    died = Ran("the process died", {}, {})
    rows = []
    for name in ran["torch.nn"] or ["import"]:
        truth, theirs, *ours = (ran[side].get(name, died) for side in ran)
        verdicts = {side: verdict(r, theirs, truth) for side, r in zip(OURS, ours, strict=True)}
        cells = {"torch.nn": theirs.error or _accuracy(theirs, truth)}
        cells |= {side: verdicts[side] or _accuracy(r, truth) for side, r in zip(OURS, ours, strict=True)}
        broken = theirs.error or truth.error
        wrong = {side for side, text in verdicts.items() if text} | ({"torch.nn"} if broken else set())
        rows.append(Row(package.name, version, "case", name, cells, _same(wrong, package, name)))
    return rows


def verdict(ours: Ran, theirs: Ran, truth: Ran) -> str:
    """Why ours is not torch.nn's result, or an empty text: err(ours) <= 2 * err(torch.nn) + eps for every tensor."""
    if ours.error or truth.error:
        return ours.error or f"no truth, float64 ended with {truth.error}"
    if sum(ours.calls.values()) != sum(theirs.calls.values()) or "torch.nn" in ours.calls or not ours.calls:
        return f"our layers were not what ran:{_calls(ours.calls) or ' no call'}"
    if ours.results.keys() != theirs.results.keys():
        return f"only one of both has {', '.join(sorted(ours.results.keys() ^ theirs.results.keys()))}"
    scale = scales(truth.results)
    for name, exact in truth.results.items():
        rounding = ROUNDINGS * torch.finfo(torch.float32).eps * scale[name]
        limit = 2 * error(theirs.results[name], exact) + rounding
        if not error(ours.results[name], exact) <= limit:
            return f"{name} is {error(ours.results[name], exact):.1e} off, allowed {limit:.1e}"
    return ""


def error(actual: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference; infinite for NaN or another shape."""
    return _size(actual - exact) if actual.shape == exact.shape else float("inf")


def scales(results: Results) -> dict[str, float]:
    """Root mean square of each tensor; the largest one for a tensor that is zero but for float64's rounding.

    So is the gradient of a bias under a softmax: a sum of terms that cancel, whose size the others show.
    """
    sizes = {name: _size(t) for name, t in results.items()}
    largest = max(sizes.values(), default=0.0) or 1.0
    return {name: size if size > 1e-9 * largest else largest for name, size in sizes.items()}


def _size(t: Tensor) -> float:
    return t.square().mean().sqrt().nan_to_num(nan=float("inf")).item() if t.numel() else 0.0


def compare_tests(package: Package, version: str, folder: Path) -> list[Row]:
    """The package's own tests: a row for each that calls a recurrent layer or does not end alike, one for the rest."""
    ended: dict[str, dict[str, tuple[str, str]]] = {}
    for side in TESTED:
        out = folder / f"{package.name}-{side}.jsonl"
        out.unlink(missing_ok=True)
        line = ["-m", "pytest", "-p", "bench.measure.downstream_swap", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
        where = source(package, folder, version)
        log = _child(folder, [*line, "--tb=short", *package.tests], {SIDE: side, OUT: str(out)}, where)
        lines = [json.loads(text) for text in out.read_text().splitlines()] if out.exists() else []
        for test, outcome, calls, message in lines:
            tail = f": {message}" if outcome == "failed" else _calls(calls)
            ended.setdefault(test, {})[side] = outcome, tail
        if not lines:
            ended.setdefault("collection", {})[side] = "failed", f": {' '.join(log.split())[-200:]}"
    rows, others = [], 0
    for test, by_side in ended.items():
        outcomes = {side: by_side.get(side, ("not run", "")) for side in TESTED}
        wrong = {side for side in TESTED[1:] if outcomes[side][0] != outcomes["torch.nn"][0]}
        if not wrong and not any(tail for _, tail in outcomes.values()):
            others += 1
            continue
        cells = {side: outcome + tail for side, (outcome, tail) in outcomes.items()}
        rows.append(Row(package.name, version, "test", test, cells, _same(wrong, package, test)))
    alike = dict.fromkeys(TESTED, "alike")
    return [*rows, Row(package.name, version, "test", f"{others} that call no recurrent layer", alike, "yes")]


def _child(folder: Path, arguments: Sequence[str], more: dict[str, str] | None = None, cwd: Path = HERE.parent) -> str:
    """What it printed. It sees the folder's packages and this repository's, and ends after 10 minutes at the latest."""
    path = os.pathsep.join([str(folder), str(folder / "site"), str(HERE.parent)])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore"} | (more or {})
    line = [sys.executable, *arguments]
    try:
        done = subprocess.run(line, env=environment, cwd=cwd, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        return "out of time"
    return done.stdout + done.stderr


def _accuracy(ran: Ran, truth: Ran) -> str:
    scale = scales(truth.results)
    errors = [error(t, truth.results[name]) / scale[name] for name, t in ran.results.items() if name in scale]
    return f"{max(errors, default=0.0):.0e}{_calls(ran.calls)}"


def _calls(calls: dict[str, int]) -> str:
    return "".join(f" {name}:{count}" for name, count in sorted(calls.items()))


def _same(wrong: Iterable[str], package: Package, name: str) -> str:
    reasons = [
        (side, next((why for s, part, why in package.known if s == side and part in name), None)) for side in wrong
    ]
    if any(why is None for _, why in reasons):
        return "NO"
    return "; ".join(f"known, {side}: {why}" for side, why in sorted(reasons)) or "yes"


def write(rows: Sequence[Row]) -> Path:
    """The table as bench/results/downstream.csv, each row with its versions and where it ran.

    Rows of packages that did not run stay as they are there.
    """
    ran, path = {r.package for r in rows}, RESULTS / "downstream.csv"
    with path.open(newline="") as file:
        table: list[dict[str, object]] = [dict(row) for row in csv.DictReader(file) if row["package"] not in ran]
    for r in rows:
        sides = {side: r.sides.get(side, "") for side in ("torch.nn", *OURS)}
        what = {"package": r.package, "version": r.version, "what": r.kind, "name": r.name}
        table.append({**what, **sides, "same": r.same, **provenance(torch.device("cpu"))})
    return write_csv("downstream", table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and say whether all is the same."""
    parser = argparse.ArgumentParser(prog="python -m bench.downstream", description=__doc__.splitlines()[0])
    names = [package.name for package in PACKAGES]
    parser.add_argument("--install", type=Path, required=True, metavar="DIR", help="where packages are, or will be")
    parser.add_argument("--packages", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--no-tests", action="store_true", help="cases only")
    parser.add_argument("--write", action="store_true", help="write bench/results/downstream.csv")
    options = parser.parse_args(arguments)
    folder = options.install.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for package in (p for p in PACKAGES if p.name in options.packages):
        try:
            version = install(package, folder)
        except NotHere as error:
            print(f"{package.name}: could not be installed: {error}", flush=True)
            continue
        found = compare_cases(package, version, folder)
        if package.tests and not options.no_tests:
            found += compare_tests(package, version, folder)
        for row in found:
            cells = " | ".join(f"{side} {text[:120]}" for side, text in row.sides.items())
            print(f"{package.name} {version} | {row.kind} {row.name} | {cells} | same: {row.same}", flush=True)
        rows += found
    if options.write:
        print(write(rows))
    different = sum(row.same == "NO" for row in rows)
    print(f"{len(rows) - different} passed, {different} failed")
    return 1 if different or not rows else 0


if __name__ == "__main__":
    raise SystemExit(main())
