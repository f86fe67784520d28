"""Warps of one program that run in lockstep: their registers, and what an instruction of theirs does to memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tests.ptx.memory import Fault
from tests.ptx.values import UNSIGNED, Array, every_thread

if TYPE_CHECKING:
    from tests.ptx.machine import Program

WARP = 32


class Warps:
    """A group of whole warps with one program counter; a branch that they disagree on splits it."""

    def __init__(self, program: Program, threads: Array) -> None:
        self.program = program
        self.registers = list(program.machine.garbage)
        self.next, self.state = 0, "ready"  # or "barrier", "done"
        # Groups, the last one open: (where, bytes, what reads them, threads, line).
        self._copies: list[list[tuple[Array, Array, Callable[[], Array], Array, int]]] = [[]]
        self._take(threads)

    def _take(self, threads: Array) -> None:
        self.threads, self.n = threads, len(threads)
        self.warps = np.unique(threads // WARP)
        self.tid, self.lane = threads.astype(np.uint32), (threads % WARP).astype(np.uint32)
        self.warp_id = (threads // WARP).astype(np.uint32)
        self._through, self._kept = np.zeros(self.n, bool), dict[int, Array]()  # in a loop: who, with which registers

    def branch(self, taken: Array, target: int, following: int, line: int, written: tuple[int, ...] | None) -> int:
        """written: registers that the loop up to here writes if a thread may go round once more without harm."""
        if len(taken) > 1 and target <= self.next and written is not None:
            taken = self._around(taken, written)
        if taken.all() or not taken.any():
            return target if taken[0] else following
        if self._copies != [[]]:
            raise Fault(f"line {line}: warps part while they copy")
        warps = taken.reshape(-1, WARP)
        if (warps.any(1) != warps.all(1)).any():
            raise Fault(f"line {line}: the threads of a warp part")
        rest = Warps(self.program, self.threads[~taken])
        rest.registers = [r if len(r) == 1 else r[~taken] for r in self.registers]
        rest.next = following
        through, kept = self._through[taken], {r: k[taken] for r, k in self._kept.items()}
        self.registers = [r if len(r) == 1 else r[taken] for r in self.registers]
        self._take(self.threads[taken])
        self._through, self._kept = through, kept
        self.program.groups.append(rest)
        return target

    def _around(self, taken: Array, written: tuple[int, ...]) -> Array:
        """A loop in which each thread waits for its own: one that is through goes round with its warp to no effect."""
        through = self._through | ~taken
        going = np.repeat((~through).reshape(-1, WARP).any(1), WARP)
        if not self._through.any() and (going == taken).all():
            return taken
        for r in written:
            now = every_thread(self.registers[r], self.n)
            self._kept[r] = np.where(self._through, self._kept.get(r, now), now)
            self.registers[r] = np.where(going, now, self._kept[r])
        self._through = through & going
        return going

    def _active(self, active: Array | None) -> Array:
        return np.ones(self.n, bool) if active is None else every_thread(active, self.n)

    # -- shared memory

    def _shared(self, address: Array, offset: int) -> Array:
        return every_thread(address.astype(np.int64) + offset, self.n)

    def load_shared(
        self, address: Array, offset: int, size: int, vector: int, active: Array | None, line: int
    ) -> list[Array]:
        at, on = self._shared(address, offset), self._active(active)
        read = np.zeros((self.n, size * vector), np.uint8)
        read[on] = self.program.shared.read(at[on], size * vector, self.threads[on], line)
        columns: Array = read.view(UNSIGNED[8 * size])
        return [columns[:, i] for i in range(vector)]

    def store_shared(
        self, address: Array, offset: int, size: int, values: Sequence[Array], active: Array | None, line: int
    ) -> None:
        at, on = self._shared(address, offset), self._active(active)
        self.program.shared.write(at[on], _rows(values, self.n)[on], self.threads[on], line)

    def load_matrices(self, address: Array, offset: int, number: int, transposed: bool, line: int) -> list[Array]:
        """ldmatrix: threads 8 i to 8 i + 7 name the rows of matrix i; thread t gets two columns of row t / 4."""
        naming = (self.lane < 8 * number).nonzero()[0]
        at = self._shared(address, offset)[naming]
        read = self.program.shared.read(at, 16, self.threads[naming], line, together=True)
        rows = read.view(np.uint16).reshape(-1, number, 8, 8)
        rows = rows.transpose(0, 1, 3, 2) if transposed else rows
        mine = np.ascontiguousarray(rows).view(np.uint32).reshape(-1, number, WARP)
        return [mine[:, i].reshape(-1) for i in range(number)]

    def store_matrices(self, address: Array, offset: int, values: Sequence[Array], transposed: bool, line: int) -> None:
        """stmatrix: the same backwards."""
        number, warps = len(values), self.n // WARP
        mine = np.stack([every_thread(v, self.n).reshape(warps, WARP) for v in values], 1)
        rows = np.ascontiguousarray(mine).view(np.uint16).reshape(warps, number, 8, 8)
        rows = np.ascontiguousarray(rows.transpose(0, 1, 3, 2) if transposed else rows)
        naming = (self.lane < 8 * number).nonzero()[0]
        at = self._shared(address, offset)[naming]
        bytes_of_rows = rows.view(np.uint8).reshape(-1, 16)
        self.program.shared.write(at, bytes_of_rows, self.threads[naming], line, together=True)

    def prefetch(self, address: Array, offset: int, active: Array | None, line: int) -> None:
        """prefetch.global: nothing comes of it, but it should not lead astray."""
        start = every_thread(address, self.n) + _offset(offset)
        self.program.machine.memory.find(start, 1, self._active(active), f"line {line}: prefetch")

    # -- asynchronous copies

    def copy(
        self, to: Array, to_offset: int, source: Array, offset: int, size: int, length: Array | None,
        active: Array | None, line: int,
    ) -> None:  # fmt: skip
        """cp.async: what is past `length` bytes is filled with 0, and not read."""
        on = self._active(active)
        given = np.full(self.n, size) if length is None else every_thread(length, self.n).astype(np.int64)
        if not np.isin(given[on], (0, size)).all():
            raise Fault(f"line {line}: a copy of {np.unique(given[on])} of {size} bytes")
        start = every_thread(source, self.n) + _offset(offset)

        def load() -> Array:
            return self._read(start, size, 1, on & (given > 0), "weak", line)[on]

        read, at = load(), self._shared(to, to_offset)[on]
        self._copies[-1].append((at, read, load, self.threads[on], line))
        self.program.shared.begin_copy(at, read, line)
        if self.program.machine.rng.random() < 0.3:  # it may well have arrived at once
            self.program.shared.data[at[:, None] + np.arange(size)] = read

    def commit_copies(self) -> None:
        self._copies.append([])

    def wait_for_copies(self, pending: int) -> None:
        """Until at most so many groups are on their way; -1: until nothing is, groups or not."""
        last = len(self._copies) if pending < 0 else max(0, len(self._copies) - 1 - pending)
        for group in self._copies[:last]:
            for at, copied, load, threads, line in group:
                if self.program.machine.rng.random() < 0.3:  # it may have been read as late as now
                    copied = load()
                self.program.shared.end_copy(at, copied, threads, line)
        self._copies = self._copies[last:] or [[]]

    def mark_copies(self) -> None:
        """After a barrier: what is under way may still write at any time."""
        for group in self._copies:
            for at, copied, _, _, line in group:
                self.program.shared.begin_copy(at, copied, line)

    # -- global memory

    def _read(self, address: Array, size: int, vector: int, on: Array, order: str, line: int) -> Array:
        """[threads, size * vector] bytes; each element by itself, as the manual has it."""
        memory, view = self.program.machine.memory, self.program.view
        if not on.any():
            return np.zeros((self.n, size * vector), np.uint8)
        elements = (address[:, None] + (np.arange(vector) * size).astype(np.uint64)).reshape(-1)
        active = np.repeat(on, vector)
        _aligned(address[on], size * vector, line)
        read = np.zeros((self.n * vector, size), np.uint8)
        threads = np.repeat(self.threads, vector)
        for buffer, at, here in memory.find(elements, size, active, f"line {line}: load"):
            read[here] = view.load(buffer, at[here], size, threads[here], order, line)
        return read.reshape(self.n, size * vector)

    def load_global(
        self, address: Array, offset: int, size: int, vector: int, active: Array | None, order: str, line: int
    ) -> list[Array]:
        on = self._active(active)
        read = self._read(every_thread(address, self.n) + _offset(offset), size, vector, on, order, line)
        columns: Array = read.view(UNSIGNED[8 * size])
        return [columns[:, i] for i in range(vector)]

    def store_global(
        self, address: Array, offset: int, size: int, values: Sequence[Array], active: Array | None, order: str,
        line: int,
    ) -> None:  # fmt: skip
        on = self._active(active) & ~self._through
        start = every_thread(address, self.n) + _offset(offset)
        _aligned(start[on], size * len(values), line)
        vector = len(values)
        elements = (start[:, None] + (np.arange(vector) * size).astype(np.uint64)).reshape(-1)
        rows, threads = _rows(values, self.n).reshape(-1, size), np.repeat(self.threads, vector)
        if order in ("release", "acq_rel"):
            for thread in self.threads[on]:
                self.program.view.release(int(thread))
        found = self.program.machine.memory.find(elements, size, np.repeat(on, vector), f"line {line}: store")
        for buffer, at, here in found:
            self.program.view.store(buffer, at[here], rows[here], threads[here], order, line)

    def add_atomically(
        self, address: Array, offset: int, value: Array, active: Array | None, order: str, line: int
    ) -> Array:
        on = self._active(active)
        start, value = every_thread(address, self.n) + _offset(offset), every_thread(value, self.n)
        _aligned(start[on], 4, line)
        old = np.zeros(self.n, np.uint32)
        for buffer, at, here in self.program.machine.memory.find(start, 4, on, f"line {line}: atomic"):
            for i in here.nonzero()[0]:
                thread = int(self.threads[i])
                old[i] = self.program.view.add_atomically(buffer, int(at[i]), int(value[i]), thread, order, line)
        return old

    def fence(self, active: Array | None) -> None:
        self.program.view.fence(self.threads[self._active(active)])

    def barrier(self, of_a_warp: bool) -> None:
        if not of_a_warp:
            self.state = "barrier"
        elif self.program.warps == 1:
            self.program.pass_barrier()
        else:
            self.program.shared.barrier_of_a_warp(self.warps)
            self.program.view.barrier_of_a_warp(self.threads)


def _offset(offset: int) -> np.uint64:
    return np.uint64(offset % (1 << 64))


def _rows(values: Sequence[Array], threads: int) -> Array:
    """[threads, bytes] of the registers that a thread stores side by side."""
    stacked = np.stack([every_thread(v, threads) for v in values], -1)
    return np.ascontiguousarray(stacked).view(np.uint8)


def _aligned(address: Array, size: int, line: int) -> None:
    if (address % np.uint64(size)).any():
        raise Fault(f"line {line}: {size} bytes at an address that {size} does not divide")
