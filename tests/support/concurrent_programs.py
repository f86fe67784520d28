"""Run kernels whose programs wait for each other, without a GPU.

Triton's interpreter runs the programs of a launch one after another, and a program that waits for a later one never
returns. Here each program is a process of its own, with its own interpreter, over tensors in shared memory; random
pauses before loads, stores and atomics shake the schedule.

x86 keeps the stores of one process in order: what this finds are errors of the protocol (a wait left out, a wrong
count, a slot nobody writes), not a release or acquire that is missing.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
import triton.experimental.gluon  # noqa: F401  by the interpreter, late: here once, and not in every child
from triton.runtime import interpreter

from fastcells.kernels.triton import (
    activations,
    ahead,
    exchange,
    gathered,
    gru,
    launch_split,
    lstm,
    rnn,
    split_backward,
    split_forward,
    tiles,
    words,
)

MODULES = (activations, ahead, exchange, gathered, gru, lstm, rnn, split_backward, split_forward, tiles, words)
LIMIT = 120  # seconds that a launch may take on a machine that is busy with other things
POLL = 0.005  # seconds between two looks at the programs


class Deadlock(Exception):
    """Programs still run, and none has stored anything for a while."""


class Concurrent:
    """Stands in a kernel's place: its launches run each program in a process of its own."""

    def __init__(self, kernel: Any, *, seed: int, pause: float, patience: float, absent: int | None) -> None:
        self.kernel, self.seed, self.pause, self.patience, self.absent = kernel, seed, pause, patience, absent
        self.programs: list[int] = []  # of each launch so far
        # The interpreter parses each function when it first runs: here once, and not in every child.
        for names in (*map(vars, MODULES), kernel.fn.__globals__):
            for value in list(names.values()):
                if isinstance(value, interpreter.InterpretedFunction):
                    value.rewrite()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(**arguments: Any) -> None:
            for value in arguments.values():
                if isinstance(value, torch.Tensor):
                    value.share_memory_()
            whole = tuple(grid) + (1,) * (3 - len(grid))
            self._run(whole, list(product(*map(range, whole))), arguments)

        return launch

    def _run(self, grid: tuple[int, ...], indices: list[tuple[int, ...]], arguments: dict[str, Any]) -> None:
        self.programs.append(len(indices))
        stores = torch.zeros(len(indices), dtype=torch.int64).share_memory_()
        children: set[int] = set()
        failed = 0
        try:
            for number, index in enumerate(indices):
                child = os.fork()
                if child == 0:
                    self._be_program(number, grid, index, stores, arguments)
                children.add(child)
            seen, since, looks = 0, 0, 0
            while children:
                # Looks are counted, not seconds: a machine that stands still meanwhile makes no deadlock.
                time.sleep(POLL)
                looks += 1
                for child in list(children):
                    done, status = os.waitpid(child, os.WNOHANG)
                    if done:
                        children.remove(child)
                        failed += status != 0
                total = int(stores.sum())
                if total != seen:
                    seen, since = total, looks
                if children and (looks - since) * POLL > self.patience:
                    raise Deadlock(f"{len(children)} of {len(indices)} programs wait, after {total} stores in all")
                if looks * POLL > LIMIT:
                    raise TimeoutError(f"{len(children)} of {len(indices)} programs still run after {LIMIT} s")
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        if failed:
            raise RuntimeError(f"{failed} of {len(indices)} programs failed; their tracebacks are on stderr")

    def _be_program(
        self,
        number: int,
        grid: tuple[int, ...],
        index: tuple[int, ...],
        stores: torch.Tensor,
        arguments: dict[str, Any],
    ) -> None:
        """In the child: run one program of the grid, and never return."""
        if number == self.absent:
            os._exit(0)
        status = 1
        try:
            signal.alarm(LIMIT + 30)  # should the parent be killed
            gc.disable()  # it would look through, and so copy, all that the parent has
            rng = random.Random(self.seed * 1_000_003 + number)
            pause = self.pause * (1 + (number + self.seed) % 3)  # some are slower than others, all the way
            builder = interpreter.InterpreterBuilder
            set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx
            builder.set_grid_dim = lambda self, *_: set_dim(self, *grid)
            builder.set_grid_idx = lambda self, *_: set_idx(self, *index)
            interpreter.GridExecutor._restore_args_dev = lambda *_: None  # the memory is shared already

            def paused(operation: Callable[..., Any], counted: bool) -> Callable[..., Any]:
                def run(*arguments: Any, **options: Any) -> Any:
                    time.sleep(rng.random() * pause)
                    stores[number] += counted
                    return operation(*arguments, **options)

                return run

            # A load or store without a mask goes through these two as well.
            builder.create_masked_load = paused(builder.create_masked_load, counted=False)
            builder.create_masked_store = paused(builder.create_masked_store, counted=True)
            builder.create_atomic_rmw = paused(builder.create_atomic_rmw, counted=False)
            self.kernel[(1, 1, 1)](**arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)


@contextmanager
def concurrent_programs(
    *, seed: int = 0, pause: float = 3e-4, patience: float = 60.0, absent: int | None = None
) -> Iterator[tuple[Concurrent, Concurrent]]:
    """The split kernels, forward and backward, run concurrently.

    patience: seconds without a store to a Deadlock; absent: the number of a program that never comes.
    """
    kernels = tuple(
        Concurrent(getattr(launch_split, name), seed=seed, pause=pause, patience=patience, absent=absent)
        for name in ("split_forward_kernel", "split_backward_kernel")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_split, "split_forward_kernel", kernels[0])
        patch.setattr(launch_split, "split_backward_kernel", kernels[1])
        yield kernels[0], kernels[1]
