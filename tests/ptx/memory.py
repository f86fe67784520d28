"""Global memory, strong or weak.

Strong: every store is there at once, for all. Weak, as the PTX memory model allows (not more, and not less of what the
kernels rely on):

- A store is on its way until a moment of chance, each element by itself, in any order but that of stores to one place.
  Its own thread sees it at once, the program's other threads from the next barrier on.
- A release, or a fence, makes visible first what its thread stored, and what the program stored before its last
  barrier; an ordinary store that another warp made since then is not ordered by it.
- An ordinary load, or one that only bypasses a cache (`.cg`), may give what was there before the last change, unless
  its warp has acquired since, or the program has seen the change. A relaxed or volatile load gives what is there.
- An acquire counts for the warp that executes it, and for the others from the next barrier on.

Left out, and so stronger than PTX: a program's warps share what they have seen, as through one L1 cache; a value older
than the last change is not seen.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from tests.ptx.values import Array

SHIFT = 36  # an address: the number of the buffer, from 1 on, above the offset in it
ORDERED = ("relaxed", "acquire", "volatile", "release", "acq_rel")  # what is not an ordinary access


class Fault(Exception):
    """The program did what no program may: an access out of bounds, a wait without end."""


class Buffer:
    """One allocation. changed: when each byte changed last; previous: what it was before."""

    def __init__(self, array: Array, name: str) -> None:
        self.name, self.size, self.array = name, len(array), array
        self.data = np.concatenate([array, np.zeros(-len(array) % 16, np.uint8)])
        self.previous, self.changed = self.data.copy(), np.zeros(len(self.data), np.int64)


@dataclass
class Store:
    """What one instruction stored and what is still on its way: an element in each row."""

    buffer: Buffer
    at: Array  # [elements] offsets in bytes
    values: Array  # [elements, bytes of one]
    threads: Array  # [elements]
    epoch: int  # barriers before it
    line: int


class Memory:
    """All buffers of a launch; weak: whether stores take their time and loads may be stale."""

    def __init__(self, weak: bool, rng: random.Random, stale: float = 0.9) -> None:
        self.weak, self.rng, self.stale = weak, rng, stale
        self.buffers: list[Buffer] = []
        self.now = 0

    def add(self, array: Array, name: str) -> int:
        """Make an array of bytes part of the memory; returns its address."""
        self.buffers.append(Buffer(array, name))
        return len(self.buffers) << SHIFT

    def write_back(self) -> None:
        for buffer in self.buffers:
            buffer.array[:] = buffer.data[: buffer.size]

    def find(self, addresses: Array, size: int, active: Array, what: str) -> list[tuple[Buffer, Array, Array]]:
        """(buffer, offsets, which elements) for each buffer that the active addresses lead to; Fault if outside."""
        numbers = (addresses >> np.uint64(SHIFT)).astype(np.int64)
        found = []
        for number in np.unique(numbers[active]):
            if not 1 <= number <= len(self.buffers):
                raise Fault(f"{what}: an address in no buffer, {int(addresses[active & (numbers == number)][0]):#x}")
            buffer, here = self.buffers[number - 1], active & (numbers == number)
            offsets = (addresses & np.uint64((1 << SHIFT) - 1)).astype(np.int64)
            if int(offsets[here].max()) + size > buffer.size:
                raise Fault(
                    f"{what}: byte {int(offsets[here].max())} and {size} on of {buffer.name}, {buffer.size} bytes"
                )
            found.append((buffer, offsets, here))
        return found

    def change(self, buffer: Buffer, at: Array, values: Array) -> None:
        """Bytes [elements, n] at these offsets become visible to all."""
        self.now += 1
        places = at[:, None] + np.arange(values.shape[1])
        buffer.previous[places] = buffer.data[places]
        buffer.data[places] = values
        buffer.changed[places] = self.now


class View:
    """Global memory as the threads of one program see it."""

    def __init__(self, memory: Memory, warps: int) -> None:
        self.memory = memory
        self.epoch = 0
        self.pending: list[Store] = []
        self.acquired = np.zeros(warps, np.int64)  # when each warp acquired last
        self._seen: dict[str, Array] = {}  # when what the program has seen of each byte was stored
        self._own: dict[str, tuple[Array, Array, Array, Array]] = {}  # pending, value, thread, epoch of each byte

    def barrier(self) -> None:
        """What was stored or acquired before it counts for all."""
        self.epoch += 1
        self.acquired[:] = self.acquired.max()

    def acquire(self, warps: Array) -> None:
        self.acquired[warps] = self.memory.now

    def load(self, buffer: Buffer, at: Array, size: int, threads: Array, order: str) -> Array:
        """[elements, size] bytes."""
        places = at[:, None] + np.arange(size)
        value = buffer.data[places]
        if not self.memory.weak:
            return value
        if order not in ORDERED:
            self._maybe_stale(buffer, places, value, threads)
        elif buffer.name in self._seen:
            self._seen[buffer.name][places] = np.maximum(self._seen[buffer.name][places], buffer.changed[places])
        if buffer.name in self._own:
            pending, own, thread, epoch = (array[places] for array in self._own[buffer.name])
            visible = (pending > 0) & ((thread == threads[:, None]) | (epoch < self.epoch))
            value = np.where(visible, own, value)
        return value

    def _maybe_stale(self, buffer: Buffer, places: Array, value: Array, threads: Array) -> None:
        changed = buffer.changed[places]
        known = np.maximum(self.acquired[threads // 32][:, None], self._seen_of(buffer)[places])
        may = (changed > known).any(1)
        if may.any():
            rng, stale = self.memory.rng, self.memory.stale
            may &= np.array([rng.random() < stale for _ in may])
            value[may] = buffer.previous[places[may]]
        fresh = places[~may]
        self._seen_of(buffer)[fresh] = np.maximum(self._seen_of(buffer)[fresh], buffer.changed[fresh])

    def _seen_of(self, buffer: Buffer) -> Array:
        if buffer.name not in self._seen:
            self._seen[buffer.name] = np.zeros(len(buffer.data), np.int64)
        return self._seen[buffer.name]

    def store(self, buffer: Buffer, at: Array, values: Array, threads: Array, line: int) -> None:
        """Elements [elements, size] on their way."""
        if not self.memory.weak:
            self.memory.change(buffer, at, values)
            return
        if buffer.name not in self._own:
            n = len(buffer.data)
            self._own[buffer.name] = (
                np.zeros(n, np.int16), np.zeros(n, np.uint8), np.zeros(n, np.int16), np.zeros(n, np.int32)
            )  # fmt: skip
        pending, own, thread, epoch = self._own[buffer.name]
        places = at[:, None] + np.arange(values.shape[1])
        np.add.at(pending, places, 1)
        own[places], thread[places], epoch[places] = values, threads[:, None], self.epoch
        self.pending.append(Store(buffer, at, values, threads, self.epoch, line))

    def release(self, thread: int) -> None:
        """What happened before this thread's release becomes visible."""
        for store in list(self.pending):
            self._commit(store, (store.threads == thread) | (store.epoch < self.epoch))
        self.pending = [store for store in self.pending if len(store.at)]

    def drain(self) -> None:
        """Some of what is on its way arrives."""
        rng = self.memory.rng
        store = rng.choice(self.pending)
        chosen = np.array([rng.random() < 0.5 for _ in store.at])
        for older in self.pending:  # of two stores to one place the older one goes first
            if older is store:
                break
            if older.buffer is store.buffer and np.isin(older.at, store.at[chosen]).any():
                self._commit(older, np.isin(older.at, store.at[chosen]))
        self._commit(store, chosen)
        self.pending = [store for store in self.pending if len(store.at)]

    def _commit(self, store: Store, chosen: Array) -> None:
        if not chosen.any():
            return
        at, values = store.at[chosen], store.values[chosen]
        self.memory.change(store.buffer, at, values)
        places = at[:, None] + np.arange(values.shape[1])
        np.subtract.at(self._own[store.buffer.name][0], places, 1)
        self._seen_of(store.buffer)[places] = self.memory.now  # its own
        store.at, store.values, store.threads = store.at[~chosen], store.values[~chosen], store.threads[~chosen]

    def add_atomically(self, buffer: Buffer, at: int, value: int) -> int:
        """32 bits, at once; returns what was there."""
        old = int(buffer.data[at : at + 4].view(np.uint32)[0])
        new = np.array([(old + value) & 0xFFFFFFFF], np.uint32).view(np.uint8)[None]
        self.memory.change(buffer, np.array([at]), new)
        return old
