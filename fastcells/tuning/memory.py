"""Verdicts that outlive the process: a small JSON file in the user's cache folder, and one that ships with fastcells.

The file is written whole, beside the old one and then in its place, under a lock: many processes may share it. Where
it cannot be written (a read-only home, a full disk) verdicts live as long as the process does. A file that is not one
of ours is neither read nor overwritten, and said so once.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fastcells.cache_folder import cache_folder, write_whole
from fastcells.tuning.machine import Machine

FORMAT = "fastcells verdicts 1"
SHIPPED = Path(__file__).parent.parent / "data" / "verdicts.json"
MOST_MACHINES = 32  # in one file; those that were added first make room
LOCK_SECONDS = 5.0
log = logging.getLogger("fastcells")


@dataclass(frozen=True)
class Verdict:
    """What a trial found."""

    chosen: str  # the candidate, as `Candidate.name`
    date: str  # ISO
    steps: int  # T of the trial, and its batch
    batch: int
    microseconds: dict[str, float] = field(default_factory=dict)  # a call of each candidate that is right
    errors: dict[str, float] = field(default_factory=dict)  # of each, the largest error over what it may be
    out: dict[str, str] = field(default_factory=dict)  # what takes no part, and why

    def without(self, names: list[str], reason: str) -> Verdict:
        """The verdict once candidates have shown, after the trial, that they do not work."""
        left = {name: us for name, us in self.microseconds.items() if name not in names}
        chosen = self.chosen if self.chosen not in names else fastest(left)
        return Verdict(
            chosen, self.date, self.steps, self.batch, left, self.errors, {**self.out, **dict.fromkeys(names, reason)}
        )


BASELINE = "torch"
ADVANTAGE = 1.05  # how much faster than torch's own it has to be


def fastest(microseconds: dict[str, float]) -> str:
    """The candidate to choose: one of ours only where it is faster than torch by more than noise."""
    best = min(microseconds, key=lambda name: microseconds[name], default=BASELINE)
    if BASELINE in microseconds and microseconds[best] * ADVANTAGE > microseconds[BASELINE]:
        return BASELINE
    return best


Verdicts = dict[str, Verdict]  # by `str(Kind)`


class Memory:
    """The file of one user."""

    def __init__(self, path: Path | None = None) -> None:
        """path: by default verdicts.json in FASTCELLS_CACHE_DIR, or in the user's cache folder."""
        self.path = path or cache_folder() / "verdicts.json"
        self._warned = False

    def verdicts(self, machine: Machine) -> Verdicts:
        """Those of one machine, with these very versions."""
        return (self._read() or {}).get(machine, {})

    def everything(self) -> dict[Machine, Verdicts]:
        """All there is."""
        return self._read() or {}

    def add(self, machine: Machine, kind: str, verdict: Verdict, *, replace: bool = False) -> Verdict:
        """Keep a verdict, and return the one that holds.

        That is an earlier one, if another process has found it meanwhile: all of them have to run the same. replace:
        unless this one is to take its place.
        """
        try:
            with self._locked():
                machines = self._read()
                if machines is None:
                    return verdict
                verdicts = machines.pop(machine, {})  # what is added to counts as added last
                held = verdict if replace else verdicts.get(kind, verdict)
                machines[machine] = {**verdicts, kind: held}
                write_whole(self.path, as_text(dict(list(machines.items())[-MOST_MACHINES:])))
                return held
        except (OSError, Timeout, NotImplementedError) as error:  # NotImplementedError: a file system without locks
            log.warning("a verdict could not be kept in %s, and is measured again next time: %s", self.path, error)
            return verdict

    def forget(self) -> int:
        """Drop all verdicts; returns how many files that took: 1, or 0 if there was none."""
        try:
            self.path.unlink()
        except FileNotFoundError:
            return 0
        return 1

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock"), timeout=LOCK_SECONDS):
            yield

    def _read(self) -> dict[Machine, Verdicts] | None:
        """What the file holds; None if it is none of ours."""
        try:
            return parse(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            log.warning("%s cannot be read: %s", self.path, error)
            return None
        except ValueError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{self.path} is damaged or not a file of verdicts ({error}); it is left as it is and not used. "
                    '"fastcells doctor --forget" removes it.',
                    RuntimeWarning,
                    stacklevel=2,
                )
            return None


@cache
def shipped(device: str) -> Verdicts | None:
    """What was measured on such a device for this version of fastcells; None if it never was."""
    try:
        machines = parse(SHIPPED.read_bytes())
    except (OSError, ValueError):  # an installation without its data is no reason not to run
        return None
    return next((verdicts for machine, verdicts in machines.items() if machine.device == device), None)


def as_text(machines: dict[Machine, Verdicts]) -> str:
    """The file's text, a line for each verdict."""
    blocks = []
    for machine, verdicts in machines.items():
        lines = ",\n".join(f"    {json.dumps(kind)}: {json.dumps(asdict(v))}" for kind, v in sorted(verdicts.items()))
        device, versions = json.dumps(machine.device), json.dumps(machine.versions)
        blocks.append(f'  {{"device": {device}, "versions": {versions}, "verdicts": {{\n{lines}\n  }}}}')
    return f'{{"format": {json.dumps(FORMAT)}, "machines": [\n' + ",\n".join(blocks) + "\n]}\n"


def parse(text: bytes) -> dict[Machine, Verdicts]:
    """The inverse of `as_text`. ValueError: it is something else."""
    data = json.loads(text)  # a JSONDecodeError and a UnicodeDecodeError are ValueErrors
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"it does not say that its format is {FORMAT!r}")
    try:
        return {
            Machine(_text(entry["device"]), _text(entry["versions"])): {
                _kind(kind): _verdict(fields) for kind, fields in entry["verdicts"].items()
            }
            for entry in data["machines"]
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"what it holds has another form: {error!r}") from None


def _verdict(fields: dict[str, Any]) -> Verdict:
    verdict = Verdict(**fields)
    for name, values, kind in (
        ("microseconds", verdict.microseconds, float),
        ("errors", verdict.errors, float),
        ("out", verdict.out, str),
    ):
        if not all(isinstance(key, str) and isinstance(value, kind) for key, value in values.items()):
            raise ValueError(f"{name} is {values!r}")
    datetime.date.fromisoformat(_text(verdict.date))
    _text(verdict.chosen), _count(verdict.steps), _count(verdict.batch)
    return verdict


def _kind(value: Any) -> str:
    if not re.search(r" T<=\d+ B<=\d+$", _text(value)):
        raise ValueError(f"{value!r} is no kind of call")
    return str(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise TypeError(f"{value!r} is no number of steps or rows")
    return value
