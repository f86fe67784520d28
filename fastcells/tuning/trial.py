"""A trial: every implementation that could run a call is checked against float64, and those that are right are timed.

A candidate is right if each of its results has at most twice the error of torch's own in the same dtype
(accuracy.py). Where chains of steep slopes make that a matter of luck, a second problem with other numbers decides. One
that is wrong on both, raises or gives NaN is out, with its reason. Those that are left are timed side by side, every
other round backwards, so that a slow moment of the machine hits all of them alike.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from fastcells.accuracy import allowed_error, relative_error
from fastcells.backends import BACKENDS
from fastcells.backends.base import ASKED_FOR, Backend, Call, Choice
from fastcells.tuning.clock import Clock
from fastcells.tuning.memory import ADVANTAGE, BASELINE, Verdict, fastest
from fastcells.tuning.problem import SEED, Problem

T = TypeVar("T")
log = logging.getLogger("fastcells")

INACCURATE = "times the error allowed"
FEWEST_STEPS = 4  # that a check or a measurement is cut to
CHECKED = {"cpu": 3e9, "cuda": 3e11}  # multiplications of a check, about: float64 is slow on many a GPU
TIMED = {"cpu": 5e9, "cuda": 1e13}  # of one call that is timed
MICROSECONDS = 100e3  # that all candidates are timed for, about
SHORTEST = 500.0  # microseconds of one measurement, of which the clock itself takes little
MOST_CALLS, FEWEST_ROUNDS, MOST_ROUNDS = 100, 5, 25
HOPELESS = 3.0  # times as slow as the fastest in the first round: not timed any further
ALIKE = 1.2  # times the fastest's: as long, where the host decides
HOST_BOUND = 0.7  # of a call's time, that the device takes at most where the host decides
SHARE = 3  # of the memory that is free, one part in so many is what a problem may take


def candidates(call: Call) -> list[Choice]:
    """torch's own, and what runs on this kind of device, in every variant."""
    kind = call.w_hh.device.type
    found = [BACKENDS[BASELINE].choose(call, ASKED_FOR)]
    for backend in BACKENDS.values():
        if kind in backend.devices and backend.obstacle(call) is None:
            found += backend.candidates(call)
    return found


def trial(call: Call, training: bool, choices: Sequence[Choice], clock: Clock) -> Verdict:
    """Check and time the candidates, torch's own being the first of them.

    Nothing that the caller has switched on is seen: autocast, grad mode, hooks on saved tensors, modes that watch
    operators. So most of it runs in a thread of its own; but not what is timed, since OpenMP gives another thread
    another team, beside which neither spins as it does for the caller.

    Raises:
        RuntimeError: torch's own does not run either; MemoryError: there is not enough for a few steps.
    """
    runs, errors, out, steps = isolated(lambda: _right(call, training, choices, clock))
    with undisturbed():
        microseconds = {name: round(us, 1) for name, us in compare(runs, clock).items()}
        chosen = settled(runs, microseconds, clock)
    date = datetime.date.today().isoformat()
    verdict = Verdict(chosen, date, steps, call.B, microseconds, errors, out)
    log.info("measured %s: %s", call.spec.name, verdict)
    return verdict


Runs = dict[str, Callable[[], object]]


def _right(
    call: Call, training: bool, choices: Sequence[Choice], clock: Clock
) -> tuple[Runs, dict[str, float], dict[str, str], int]:
    """What is to be timed, the errors, what is out and why, and T."""
    steps = _steps(call, training, TIMED, clock)
    checked = min(steps, _steps(call, training, CHECKED, clock))
    errors, out = _check(Problem(call, checked, training), choices, clock)
    again = [choice for choice in choices if INACCURATE in out.get(choice.name, "")]
    if again:
        others, still = _check(Problem(call, checked, training, SEED + 1), [choices[0], *again], clock)
        errors = {**others, **errors}
        out = {name: reason for name, reason in out.items() if name not in others} | still
    problem = Problem(call, steps, training)
    runs: Runs = {}
    for choice in choices:
        if choice.name in out:
            continue
        failure = _failure(choice.backend, clock, partial(problem.run, choice))
        if isinstance(failure, str):
            out[choice.name] = failure
        else:
            runs[choice.name] = partial(problem.run, choice)
    if BASELINE not in runs:
        raise RuntimeError(f"torch's own implementation does not run: {out[BASELINE]}")
    return runs, errors, out, steps


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """As in a new thread, as far as what is timed goes: torch's modes and switches are off, and gradients are on."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch._C.DisableTorchFunction())
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:  # only those on top are called
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t))
        yield


def _check(problem: Problem, choices: Sequence[Choice], clock: Clock) -> tuple[dict[str, float], dict[str, str]]:
    """The largest error of each candidate over what it may be; and those that are out, with the reason."""
    exact = problem.exact()
    baseline = problem.run(choices[0])
    limits = [
        allowed_error(relative_error(b, e), problem.spec.kinked, problem.dtype, problem.device, roundings=2)
        for b, e in zip(baseline, exact, strict=True)
    ]
    errors: dict[str, float] = {}
    out: dict[str, str] = {}
    for choice in choices:
        results = _failure(choice.backend, clock, partial(problem.run, choice))
        if isinstance(results, str):
            out[choice.name] = results
            continue
        over = [relative_error(r, e) / limit for r, e, limit in zip(results, exact, limits, strict=True)]
        if max(over) <= 1:
            errors[choice.name] = round(max(over), 3)
        else:
            worst = over.index(max(over))
            what = "NaN" if bool(results[worst].isnan().any()) else f"{over[worst]:.3g} {INACCURATE}"
            out[choice.name] = f"wrong: {what} in {problem.names[worst]}"
    return errors, out


def _failure(backend: Backend, clock: Clock, run: Callable[[], list[Tensor]]) -> list[Tensor] | str:
    """What a run gives, or why it gives nothing."""
    try:
        results = run()
        clock.wait()
        backend.check_fault(results[0].device)
    except Exception as error:  # a compiler's, a launch's, one of memory: whatever it is, there is an alternative
        lines = str(error).splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    return results


def compare(runs: Runs, clock: Clock) -> dict[str, float]:
    """Microseconds of a call of each, the median over rounds in turn."""
    first = {name: clock.microseconds(run, 1) for name, run in runs.items()}
    longest = HOPELESS * min(first.values())
    runs = {name: run for name, run in runs.items() if name == BASELINE or first[name] <= longest}
    calls = {name: max(1, min(MOST_CALLS, round(SHORTEST / max(first[name], 1.0)))) for name in runs}
    a_round = sum(first[name] * calls[name] for name in runs)
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, round(MICROSECONDS / a_round)))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        for name in list(runs) if index % 2 else list(runs)[::-1]:
            samples[name].append(clock.microseconds(runs[name], calls[name]))
    return {**first, **{name: statistics.median(values) for name, values in samples.items()}}


def settled(runs: Runs, microseconds: dict[str, float], clock: Clock) -> str:
    """The fastest. Of those that keep the host busy for about as long, the one that keeps the device least.

    So they do with few steps: what the device has left is there for what else runs on it, and once a CUDA graph has
    recorded the launches it is all that counts.
    """
    chosen, least = fastest(microseconds), min(microseconds.values())
    alike = [name for name, us in microseconds.items() if us <= ALIKE * least]
    if len(alike) == 1:
        return chosen
    device = {name: clock.device_microseconds(runs[name], microseconds[name]) for name in alike}
    known = {name: us for name, us in device.items() if us is not None}
    if len(known) < len(alike) or known[chosen] > HOST_BOUND * microseconds[chosen]:
        return chosen
    best = fastest(known)
    log.info("the host takes %.0f us for each of %s; the device %s", least, ", ".join(alike), known)
    return best if known[best] * ADVANTAGE < known[chosen] else chosen


def multiplications(call: Call, training: bool) -> float:
    """Of one step."""
    return float(call.B * (call.w_hh.numel() + (0 if call.token_ids else call.w_ih.numel())) * (3 if training else 1))


def _steps(call: Call, training: bool, most: dict[str, float], clock: Clock) -> int:
    """T of a trial: the call's, or fewer steps where these would take too long, or too much memory."""
    size = 8 if most is CHECKED else call.dtype.itemsize
    rows, columns = call.w_hh.shape
    a_step = call.B * size * (4 * rows + 6 * columns + 3 * (1 if call.token_ids else call.w_ih.shape[1]))
    weights = 3 * size * (call.w_hh.numel() + call.w_ih.numel())
    room = int((clock.free_memory() / SHARE - weights) // a_step)
    if room < FEWEST_STEPS:
        raise MemoryError(f"a trial of {FEWEST_STEPS} steps would take more than a third of the memory that is free")
    affordable = int(most[call.w_hh.device.type] / multiplications(call, training))
    return min(call.T, room, max(FEWEST_STEPS, affordable))


_running = threading.local()


def in_trial() -> bool:
    """Whether this thread is one that `isolated` has started."""
    return getattr(_running, "trial", False)


def isolated(run: Callable[[], T]) -> T:
    """`run()` in a new thread: torch's modes and switches belong to threads."""
    results: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        _running.trial = True
        try:
            results.append(run())
        except BaseException as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=target, name="fastcells trial", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
