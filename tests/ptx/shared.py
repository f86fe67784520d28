"""A program's shared memory, with every access checked for races.

Between two barriers, two warps may not touch the same place if one of them writes; nor may two threads of a warp
between two warp barriers. Writing the value that is there already does no harm, nor does a warp's or thread's reading
what it has written itself. A copy that is not waited for belongs to nobody.
"""

from __future__ import annotations

import numpy as np

from tests.ptx.memory import MOST, Fault, Race
from tests.ptx.values import Array

WARP = 32
MOMENT = 64  # a warp's moments: its number, and this at each of its barriers
SEVERAL = -1  # in place of a thread: more than one of its warp
COPY = np.uint64(1 << 63)  # who writes a place that an asynchronous copy is under way to


class SharedMemory:
    """Bytes, filled with garbage, and who has read and written each place since the last barrier."""

    def __init__(self, size: int, granule: int, garbage: int, warps: int) -> None:
        self.size, self.granule = max(16, -(-size // 16) * 16), granule
        self.data = np.full(self.size, garbage, np.uint8)
        places = self.size // granule
        self.writers, self.readers = np.zeros(places, np.uint64), np.zeros(places, np.uint64)
        self.lines = np.zeros((2, places), np.int32)  # of the last read and write
        self.epoch, self.races = 0, list[Race]()
        self._touched = False
        # Of the last read and write: which thread, and in which moment of its warp.
        self._threads, self._stamps = np.zeros((2, places), np.int32), np.zeros((2, places), np.int64)
        self._moments = np.arange(warps) + MOMENT

    def barrier(self) -> None:
        self.epoch += 1
        self._moments += MOMENT
        if self._touched:
            self.writers.fill(0)
            self.readers.fill(0)
            self._touched = False

    def barrier_of_a_warp(self, warps: Array) -> None:
        self._moments[warps] += MOMENT

    def check(self, at: Array, size: int, line: int) -> None:
        if len(at) and (int(at.max()) + size > self.size or (at % size).any()):
            where = int(at.max()) if int(at.max()) + size > self.size else int(at[at % size != 0][0])
            raise Fault(f"line {line}: shared memory, {size} bytes at {where} of {self.size}: outside or misaligned")

    def read(self, at: Array, size: int, threads: Array, line: int, *, together: bool = False) -> Array:
        """[elements, size] bytes. together: all threads of a warp read what each of them has named."""
        self.check(at, size, line)
        places = self._places(at, size)
        bits = _bits(threads)
        written = self.writers[places]
        bad = (written != 0) & (bits & ~written != 0) | (written & COPY != 0)
        bad |= self._by_other_threads(1, places, threads, together)
        self._note(0, places, threads, together)
        if bad.any():
            self._report(places[bad], line, wrote=True)
        np.bitwise_or.at(self.readers, places, np.broadcast_to(bits, places.shape))
        self.lines[0, places] = line
        self._touched = True
        return self.data[at[:, None] + np.arange(size)]

    def write(self, at: Array, values: Array, threads: Array, line: int, *, together: bool = False) -> None:
        """Elements [elements, size]."""
        size = values.shape[1]
        self.check(at, size, line)
        places = self._places(at, size)
        bad = self._by_other_threads(1, places, threads, together) & self._changes(at, values)
        if bad.any():
            self._report(places[bad], line, wrote=True)
        bad = self._by_other_threads(0, places, threads, together)
        if bad.any():
            self._report(places[bad], line, wrote=False)
        self._check_each_other(places, values, threads, line)
        self._note(1, places, threads, together)
        self._mark_written(at, values, _bits(threads), line)
        self.data[at[:, None] + np.arange(size)] = values

    def _by_other_threads(self, kind: int, places: Array, threads: Array, together: bool) -> Array:
        """Whether another thread of the same warp has read (0) or written (1) there since the warp's last barrier."""
        same: Array = self._stamps[kind, places] == self._stamp(threads)
        if not together and same.any():
            same &= self._threads[kind, places] != threads[:, None]
        return same

    def _note(self, kind: int, places: Array, threads: Array, together: bool) -> None:
        others = together or self._by_other_threads(kind, places, threads, together)
        who = np.where(others, SEVERAL, threads[:, None])
        self._threads[kind, places] = who
        twice = self._threads[kind, places] != who  # by several threads in this one instruction
        if twice.any():
            self._threads[kind, places[twice]] = SEVERAL
        self._stamps[kind, places] = self._stamp(threads)

    def _stamp(self, threads: Array) -> Array:
        stamp: Array = self._moments[threads // WARP][:, None]
        return stamp

    def _changes(self, at: Array, values: Array) -> Array:
        """Which places these values change."""
        old = self.data[at[:, None] + np.arange(values.shape[1])]
        changes: Array = (old != values).reshape(len(at), values.shape[1] // self.granule, self.granule).any(2)
        return changes

    def _mark_written(self, at: Array, values: Array, bits: Array, line: int) -> None:
        """Note that these warps write these values, before they are there."""
        if not len(at):
            return
        places = self._places(at, values.shape[1])
        written, read = self.writers[places], self.readers[places]
        changes = self._changes(at, values)
        # A reader that has not written; another writer's value changed; two writers of different values at once.
        bad = (read & ~bits & ~written != 0) | ((written & ~bits != 0) & changes)
        if bad.any():
            self._report(places[bad], line, wrote=bool((written[bad] & ~np.broadcast_to(bits, bad.shape)[bad]).any()))
        np.bitwise_or.at(self.writers, places, np.broadcast_to(bits, places.shape))
        self.lines[1, places] = line
        self._touched = True

    def _check_each_other(self, places: Array, values: Array, threads: Array, line: int) -> None:
        """Threads that execute one instruction together may not write different values to one place."""
        flat = places.reshape(-1)
        order = np.argsort(flat, kind="stable")
        same = flat[order][1:] == flat[order][:-1]
        if not same.any():
            return
        value = values.reshape(len(flat), self.granule)[order]
        owner = np.broadcast_to(threads[:, None], places.shape).reshape(-1)[order]
        bad = same & (value[1:] != value[:-1]).any(1) & (owner[1:] != owner[:-1])
        if bad.any():
            self._report(flat[order][1:][bad], line, wrote=True)

    def begin_copy(self, at: Array, values: Array, line: int) -> None:
        """An asynchronous copy to here is under way: it may write at any time."""
        self.check(at, values.shape[1], line)
        self._mark_written(at, values, np.full((len(at), 1), COPY), line)

    def end_copy(self, at: Array, values: Array, threads: Array, line: int) -> None:
        """It has been waited for: from now on it is a write of the thread that waited."""
        places = self._places(at, values.shape[1])
        self.writers[places] &= ~COPY
        self.write(at, values, threads, line)

    def _places(self, at: Array, size: int) -> Array:
        return at[:, None] // self.granule + np.arange(max(1, size // self.granule))

    def _report(self, places: Array, line: int, *, wrote: bool) -> None:
        if len(self.races) < MOST:
            place = int(places.reshape(-1)[0])
            self.races.append(Race(line, int(self.lines[int(wrote), place]), place * self.granule, self.epoch))


def _bits(threads: Array) -> Array:
    """[elements, 1]: the bit of each thread's warp."""
    bits: Array = np.uint64(1) << (threads // WARP).astype(np.uint64)
    return bits[:, None]
