"""What `impl="auto"` runs, as far as it has been measured: remembered, shipped with fastcells, or measured now.

call -> in this process -> in the user's file -> shipped -> a trial, where one is worth it and nothing forbids it
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch

from fastcells.backends import BACKENDS
from fastcells.backends.base import WAITING, Call, Choice
from fastcells.kernels.triton import fault
from fastcells.modes import compiling
from fastcells.spec.recurrent import DENSE
from fastcells.tuning import memory as memories
from fastcells.tuning.clock import clock_of
from fastcells.tuning.kind import Kind, in_bucket, kind_of
from fastcells.tuning.machine import Machine, machine
from fastcells.tuning.memory import ADVANTAGE, BASELINE, Memory, Verdict
from fastcells.tuning.trial import candidates, in_trial, multiplications, trial

FEWEST_STEPS = 2  # a single step takes as long as a look-up and more
WORTH = 1000.0  # microseconds of a call on a CPU from which on a trial pays
A_THREAD = 2e4  # multiplications that a thread of a CPU does in a microsecond, about
log = logging.getLogger("fastcells")

NOT_YET = "not measured on this device yet, which the first call of this kind does"
FOR_GOOD = "no trial of this kind pays on this device"
FAULT = "its programs waited for each other in vain (KernelFault)"

Report = Callable[[Kind, Verdict], None]


@dataclass
class _Tuning:
    """While `tune` runs: every kind is measured once, whatever is known of it."""

    report: Report
    done: set[str]


class _Found:
    """What a kind of call runs."""

    def __init__(self, choice: Choice, faster: float) -> None:
        self.choice = choice
        self.faster = faster  # times as fast as torch's own, which takes a packed batch without its padding


_found: dict[tuple[object, ...], _Found | None] = {}
_unmeasured: set[tuple[object, ...]] = set()  # kinds of which no file had a verdict when they were looked up
_faulted: set[torch.device] = set()
_changes = [0]  # how often what is found may have become another
_memory: list[Memory] = []  # one, once it has been asked for
_lock = threading.RLock()
_tuning: ContextVar[_Tuning | None] = ContextVar("tuning", default=None)
_looking: ContextVar[bool] = ContextVar("looking", default=False)


def measured(call: Call) -> Choice | None:
    """The implementation that a trial has found for calls like this one; None where nothing is known of them.

    A call of FEWEST_STEPS or more, of plain tensors, that nothing looks through.
    """
    if torch.compiler.is_compiling():
        return _compiled(call) if compiling() else None
    key = _key(call)
    try:
        found = _found[key]
    except KeyError:
        if key in _unmeasured and _forbidden(call) is not None:
            return None
        found = _look_up(call, key)
    if found is None:
        return None
    if call.padding > 1.0 and found.choice.impl != BASELINE and found.faster < ADVANTAGE * call.padding:
        return None  # torch's own takes the steps that there are, ours all
    return found.choice


def changes() -> int:
    """A number that is another one when what runs a call may be something else than before."""
    return _changes[0]


def _key(call: Call) -> tuple[object, ...]:
    """What `kind_of` depends on, and what costs the least to ask: this runs in front of every call."""
    w = call.w_hh
    cpu = w.is_cpu
    return (
        call.spec.key,
        call.token_ids,
        (call.T - 1).bit_length(),
        (call.B - 1).bit_length(),
        w.shape,
        (call.w_ih.shape[1] - 1).bit_length(),
        call.dtype if torch._C._is_any_autocast_enabled() else w.dtype,
        w.requires_grad and torch.is_grad_enabled(),
        call.options,
        call.directions,
        torch.get_num_threads() if cpu else (w.device, torch.backends.cudnn.rnn.fp32_precision),  # type: ignore[attr-defined]
    )


def _look_up(call: Call, key: tuple[object, ...]) -> _Found | None:
    """As `measured`, for a kind that this process has not seen."""
    if not _measurable(call):
        return None
    with _lock:
        if key in _found:
            return _found[key]
        kind, where = kind_of(call), _machine(call)
        verdict = None if _tuning.get() is not None else _known(str(kind), where)
        if verdict is None:
            hindrance = _hindrance(call, kind, where)
            if hindrance is not None:
                if hindrance is FOR_GOOD:
                    _found[key] = None
                _unmeasured.add(key)
                return None
            verdict = _try(call, kind, where)
        found = None if verdict is None else _as_found(call, verdict)
        _found[key] = found
        _changes[0] += 1
        return found


def _measurable(call: Call) -> bool:
    """Whether there is a device that can be timed, and something to compute of which a problem can be made up."""
    w, spec = call.w_hh, call.spec
    made_up = not spec.extra and spec.recurrent is DENSE
    return w.device.type in ("cpu", "cuda") and w.numel() > 0 and call.B > 0 and made_up


def _machine(call: Call) -> Machine:
    return machine(call.w_hh.device, torch.get_num_threads())


def _hindrance(call: Call, kind: Kind, where: Machine) -> str | None:
    """Why no trial may run now, or None."""
    forbidden = _forbidden(call)
    if forbidden is not None or _tuning.get() is not None:
        return forbidden
    if len(_candidates(call)) < 2:
        return FOR_GOOD
    if call.w_hh.is_cpu and (_microseconds(call, kind) < WORTH or memories.shipped(where.device) is not None):
        return FOR_GOOD
    return NOT_YET if _looking.get() else None


def _forbidden(call: Call) -> str | None:
    """Why nothing may be measured now, whatever it is, or None."""
    if call.w_hh.is_cuda and clock_of(call.w_hh.device).capturing():
        return "a CUDA graph is being captured"
    if _tuning.get() is not None:
        return None
    if os.environ.get("FASTCELLS_TUNE") == "0":
        return "FASTCELLS_TUNE=0"
    if torch.are_deterministic_algorithms_enabled():
        return "torch is to run deterministic algorithms only"
    return "torch.autograd looks for anomalies" if torch.is_anomaly_enabled() else None


def _candidates(call: Call) -> list[Choice]:
    return [choice for choice in candidates(call) if not faulted(choice, call.w_hh.device)]


def noted(call: Call, choice: Choice) -> Choice:
    """A choice by rule, whose reason tells who only looks that the first call will be measured.

    A call of FEWEST_STEPS or more.
    """
    if torch.compiler.is_compiling() or not _looking.get() or _key(call) in _found:
        return choice
    if not _measurable(call):
        return choice
    kind, where = kind_of(call), _machine(call)
    pending = _known(str(kind), where) is None and _hindrance(call, kind, where) is NOT_YET
    return replace(choice, reason=f"{choice.reason}; {NOT_YET}") if pending else choice


def _microseconds(call: Call, kind: Kind) -> float:
    """Of a call on a CPU: a guess that tells one of a microsecond from one of a millisecond."""
    work = call.T * multiplications(call, kind.training)
    return work / A_THREAD / torch.get_num_threads()


def _known(kind: str, where: Machine) -> Verdict | None:
    remembered = memory().verdicts(where).get(kind)
    return remembered or (memories.shipped(where.device) or {}).get(kind)


def _try(call: Call, kind: Kind, where: Machine) -> Verdict | None:
    """The verdict of a trial, which the user's file keeps; None if it failed altogether."""
    tuning, name, again = _tuning.get(), str(kind), False
    if tuning is not None:
        again = name not in tuning.done
        if not again:
            return _known(name, where)
        tuning.done.add(name)
    try:
        verdict = trial(call, kind.training, _candidates(call), clock_of(call.w_hh.device))
    except (RuntimeError, MemoryError) as error:  # of the user's own call, if it is no better, torch will tell him
        log.warning("no trial of %s: %s", name, error)
        return None
    verdict = memory().add(where, name, verdict, replace=again)
    if tuning is not None:
        tuning.report(kind, verdict)
    return verdict


def _as_found(call: Call, verdict: Verdict) -> _Found:
    choices = {choice.name: choice for choice in _candidates(call)}
    choice = choices.get(verdict.chosen) or choices[BASELINE]
    times = verdict.microseconds
    faster = times[BASELINE] / times[choice.name] if {BASELINE, choice.name} <= times.keys() else 1e9
    return _Found(replace(choice, reason=_reason(verdict)), faster)


def _reason(verdict: Verdict) -> str:
    """ "measured on this device on 2026-11-26: triton split 8x8x1 8x16x2 41 us, torch 212 us"; the chosen one first."""
    order = sorted(verdict.microseconds, key=lambda name: (name != verdict.chosen, verdict.microseconds[name]))
    times = ", ".join(f"{name} {verdict.microseconds[name]:,.0f} us" for name in order[:3])
    return f"measured on this device on {verdict.date}: {times}"


def memory() -> Memory:
    """The user's file of verdicts."""
    if not _memory:
        _memory.append(Memory())
    return _memory[0]


def reset() -> None:
    """Forget what this process knows, and which file it used: as a new process begins."""
    with _lock:
        _found.clear()
        _unmeasured.clear()
        _faulted.clear()
        _memory.clear()
        _changes[0] += 1


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """A context in which no trial runs: `explain` only asks."""
    token = _looking.set(True)
    try:
        yield
    finally:
        _looking.reset(token)


@contextlib.contextmanager
def tuning(report: Report) -> Iterator[None]:
    """A context in which every kind of call is measured, once, and reported."""
    with _lock:
        _found.clear()
        _changes[0] += 1
    token = _tuning.set(_Tuning(report, set()))
    try:
        yield
    finally:
        _tuning.reset(token)
        _changes[0] += 1


def on_fault(device: torch.device) -> None:
    """A kernel whose programs wait for each other has given up: calls on this device go on with what else is right.

    What the user's file says of them is changed too. The trial of another kind of call leaves such kernels out.
    """
    if in_trial():  # which finds out by itself
        return
    with _lock:
        _faulted.add(device)
        for key in [key for key, found in _found.items() if found is not None and found.choice.path in WAITING]:
            del _found[key]
        where = machine(device, torch.get_num_threads())
        for kind, verdict in memory().verdicts(where).items():
            names = [name for name in verdict.microseconds if name.partition(" ")[2].startswith(WAITING)]
            if verdict.chosen in names:
                memory().add(where, kind, verdict.without(names, FAULT), replace=True)
                log.warning("%s is out for %s: %s", verdict.chosen, kind, FAULT)


def faulted(choice: Choice, device: torch.device) -> bool:
    """Whether a choice is of the kernels that have given up on this device."""
    return choice.path in WAITING and device in _faulted


fault.told.append(on_fault)


def _compiled(call: Call) -> Choice | None:
    """What is known, under torch.compile: constants of the graph. Only sizes of which something is known are guards."""
    kind = kind_of(call._replace(T=1, B=1))
    for T, B, impl, reason in _constants(kind.but_for_time_and_batch, str(call.w_hh.device)):
        if in_bucket(call.T, T) and in_bucket(call.B, B):
            backend = BACKENDS[impl]
            return None if backend.obstacle(call) is not None else backend.choose(call, reason)
    return None


def _constants(kind: str, device: str) -> list[tuple[int, int, str, str]]:
    """T, B, implementation and reason of each verdict on a kind of call, by the name that it has but for T and B."""
    where = machine(torch.device(device), torch.get_num_threads())
    known = {**(memories.shipped(where.device) or {}), **memory().verdicts(where)}
    found = []
    for name, verdict in known.items():
        if name.startswith(f"{kind} T<="):
            T, B = (int(word.partition("<=")[2]) for word in name.split()[-2:])
            found.append((T, B, verdict.chosen.split()[0], _reason(verdict)))
    return found


# What torch.compiler.assume_constant_result does, without the import of torch._dynamo, which takes seconds.
_constants._dynamo_marked_constant = True  # type: ignore[attr-defined]
