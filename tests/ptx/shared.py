"""A program's shared memory, with every access checked for races.

Between two barriers, two warps may not touch the same place if one of them writes; a program of one warp is held to
the same for its threads, between two warp barriers. Writing the value that is there already does no harm, nor does a
warp's reading what it has written itself. A copy that is not waited for belongs to nobody.
"""

from __future__ import annotations

import numpy as np

from tests.ptx.memory import MOST, Fault, Race
from tests.ptx.values import Array

COPY = np.uint64(1 << 63)  # who writes a place that an asynchronous copy is under way to


class SharedMemory:
    """Bytes, filled with garbage, and who has read and written each place since the last barrier."""

    def __init__(self, size: int, granule: int, garbage: int) -> None:
        self.size, self.granule = max(16, -(-size // 16) * 16), granule
        self.data = np.full(self.size, garbage, np.uint8)
        places = self.size // granule
        self.writers, self.readers = np.zeros(places, np.uint64), np.zeros(places, np.uint64)
        self.lines = np.zeros((2, places), np.int32)  # of the last read and write
        self.epoch, self.races = 0, list[Race]()
        self._touched = False

    def barrier(self) -> None:
        self.epoch += 1
        if self._touched:
            self.writers.fill(0)
            self.readers.fill(0)
            self._touched = False

    def check(self, at: Array, size: int, line: int) -> None:
        if len(at) and (int(at.max()) + size > self.size or (at % size).any()):
            where = int(at.max()) if int(at.max()) + size > self.size else int(at[at % size != 0][0])
            raise Fault(f"line {line}: shared memory, {size} bytes at {where} of {self.size}: outside or misaligned")

    def read(self, at: Array, size: int, owners: Array, line: int) -> Array:
        """[elements, size] bytes. owners: the bit of each element's warp, or of all threads that read it."""
        self.check(at, size, line)
        places = self._places(at, size)
        bits = owners[:, None]
        written = self.writers[places]
        bad = (written != 0) & (bits & ~written != 0) | (written & COPY != 0)
        if bad.any():
            self._report(places[bad], line, wrote=True)
        np.bitwise_or.at(self.readers, places, np.broadcast_to(bits, places.shape))
        self.lines[0, places] = line
        self._touched = True
        return self.data[at[:, None] + np.arange(size)]

    def write(self, at: Array, values: Array, owners: Array, line: int) -> None:
        """Elements [elements, size]."""
        size = values.shape[1]
        self.check(at, size, line)
        self.mark_written(at, values, owners, line)
        self.data[at[:, None] + np.arange(size)] = values

    def mark_written(self, at: Array, values: Array, owners: Array, line: int) -> None:
        """Note that these owners write these values, before they are there."""
        size = values.shape[1]
        if not len(at):
            return
        places, bits = self._places(at, size), owners[:, None]
        written, read = self.writers[places], self.readers[places]
        old = self.data[at[:, None] + np.arange(size)]
        changes = (old != values).reshape(len(at), -1, self.granule).any(2)
        # A reader that has not written; another writer's value changed; two writers of different values at once.
        bad = (read & ~bits & ~written != 0) | ((written & ~bits != 0) & changes)
        if bad.any():
            self._report(places[bad], line, wrote=bool((written[bad] & ~np.broadcast_to(bits, bad.shape)[bad]).any()))
        self._check_each_other(places, values, bits, line)
        np.bitwise_or.at(self.writers, places, np.broadcast_to(bits, places.shape))
        self.lines[1, places] = line
        self._touched = True

    def _check_each_other(self, places: Array, values: Array, bits: Array, line: int) -> None:
        """Warps that execute one instruction together may not write different values to one place."""
        flat = places.reshape(-1)
        order = np.argsort(flat, kind="stable")
        same = flat[order][1:] == flat[order][:-1]
        if not same.any():
            return
        value = values.reshape(len(flat), self.granule)[order]
        owner = np.broadcast_to(bits, places.shape).reshape(-1)[order]
        bad = same & (value[1:] != value[:-1]).any(1) & (owner[1:] != owner[:-1])
        if bad.any():
            self._report(flat[order][1:][bad], line, wrote=True)

    def begin_copy(self, at: Array, values: Array, line: int) -> None:
        """An asynchronous copy to here is under way: it may write at any time."""
        self.check(at, values.shape[1], line)
        self.mark_written(at, values, np.full(len(at), COPY), line)

    def end_copy(self, at: Array, values: Array, owners: Array, line: int) -> None:
        """It has been waited for: from now on it is a write of the warp that waited."""
        places = self._places(at, values.shape[1])
        self.writers[places] &= ~COPY
        self.write(at, values, owners, line)

    def _places(self, at: Array, size: int) -> Array:
        return at[:, None] // self.granule + np.arange(max(1, size // self.granule))

    def _report(self, places: Array, line: int, *, wrote: bool) -> None:
        if len(self.races) < MOST:
            place = int(places.reshape(-1)[0])
            self.races.append(Race(line, int(self.lines[int(wrote), place]), place * self.granule, self.epoch))
