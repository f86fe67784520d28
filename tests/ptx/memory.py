"""Global memory, strong or weak, with every access of two programs to one place checked for an order between them.

Strong: every store is there at once, for all. Weak, as the PTX memory model allows (not more, and not less of what the
kernels rely on):

- A store is on its way until a moment of chance, each element by itself, in any order but that of stores to one place.
  Its own thread sees it at once, the program's other threads from the next barrier on.
- A release, or a fence, makes visible first what its thread stored, and what the program stored before its last
  barrier; an ordinary store that another warp made since then is not ordered by it.
- An ordinary load, or one that only bypasses a cache (`.cg`), may give what was there before the last change, unless
  its thread has acquired the change or the program has seen it with such a load. A relaxed, volatile or acquiring load
  may do so too, if less often, until the program has seen the change.
- An acquire counts for the changes before the release that wrote what it reads, if one did; for its thread at once, and
  for the others from the next barrier on. A fence acquires for what its thread has read with relaxed loads.

Whether weak or strong: a race is an ordinary load of what another program has written, and an ordinary load or a store
where another program has loaded or stored, without an acquire in between that orders them.

Left out, and so stronger than PTX: a program's warps share what they have seen, as through one L1 cache, and what it
has seen once it goes on seeing; a value older than the last change is not seen; what is visible to one other program
is visible to all; loads are done in the order of the text, none waits until after a later store; an acquire orders all
that had become visible before the release, whoever stored it. Not a race here, though PTX calls it one: a relaxed or
atomic access of what another program has stored with an ordinary store; the poll exchange lives by it. Nor are two
stores of the same value. A store becomes visible in the end, ordinary or not. Tensors that share their storage are one
buffer: an access beyond one of them that stays in the other is not seen. Weaker than PTX: a barrier among the threads
of one warp of several does not order stores for a release.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from tests.ptx.values import Array

SHIFT = 36  # an address: the number of the buffer, from 1 on, above the offset in it
ORDERED = ("relaxed", "acquire", "volatile", "release", "acq_rel")  # what is not an ordinary access


# How often a load that is not ordinary gives an older value when it may; not 1, or no wait would end.
RELAXED_STALE = 0.3
MOST = 20  # races that are kept


class Fault(Exception):
    """The program did what no program may: an access out of bounds, a wait without end."""


@dataclass(frozen=True)
class Race:
    """Two accesses that nothing orders: the lines of the PTX, and the first byte."""

    line: int
    other: int
    byte: int
    epoch: int
    where: str = "shared memory"


class Buffer:
    """One allocation, and of each of its bytes:

    changed, previous: when it changed last, and what it was before.
    released, released_before: when that was released which the last change, and the one before it, published.
    reader, read, read_before: the last program that loaded it, when it did, and when another program last did.
    lines: of the PTX, of its last load and its last store.
    """

    def __init__(self, array: Array, name: str) -> None:
        self.name, self.size, self.array = name, len(array), array
        self.data = np.concatenate([array, np.zeros(-len(array) % 16, np.uint8)])
        n = len(self.data)
        self.previous, self.changed = self.data.copy(), np.zeros(n, np.int64)
        self.released, self.released_before = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.reader = np.full(n, -1, np.int32)
        self.read, self.read_before = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.lines = np.zeros((2, n), np.int32)


@dataclass(eq=False)
class Store:
    """What one instruction stored and what is still on its way: an element in each row."""

    buffer: Buffer
    at: Array  # [elements] offsets in bytes
    values: Array  # [elements, bytes of one]
    threads: Array  # [elements]
    known: Array  # [elements] when each thread had acquired last
    released: Array  # [elements] when that was released which this store publishes
    epoch: int  # barriers before it
    line: int


class Memory:
    """All buffers of a launch; weak: whether stores take their time and loads may be stale."""

    def __init__(self, weak: bool, rng: random.Random, stale: float = 0.9) -> None:
        self.weak, self.rng, self.stale = weak, rng, stale
        self.buffers: list[Buffer] = []
        self.now, self.programs = 1, 0
        self.races: list[Race] = []

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
        found, used = [], numbers[active]
        for number in used[:1] if (used == used[:1]).all() else np.unique(used):  # nearly always one
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

    def later(self) -> int:
        """A moment after all that has been done."""
        self.now += 1
        return self.now

    def change(self, buffer: Buffer, at: Array, values: Array, released: Array, line: int) -> None:
        """Bytes [elements, n] at these offsets become visible to all; released: what each element publishes."""
        now = self.later()
        places = at[:, None] + np.arange(values.shape[1])
        buffer.previous[places] = buffer.data[places]
        buffer.data[places] = values
        buffer.changed[places], buffer.lines[1, places] = now, line
        buffer.released_before[places] = buffer.released[places]
        buffer.released[places] = released[:, None]

    def race(self, buffer: Buffer, places: Array, line: int, *, stored: bool, epoch: int) -> None:
        """Note that nothing orders this access behind the last store, or load, of these bytes."""
        if len(places) and len(self.races) < MOST:
            place = int(places[0])
            self.races.append(Race(line, int(buffer.lines[int(stored), place]), place, epoch, buffer.name))


class View:
    """Global memory as the threads of one program see it."""

    def __init__(self, memory: Memory, threads: int) -> None:
        self.memory = memory
        self.number, memory.programs = memory.programs, memory.programs + 1
        self.epoch = 0
        self.pending: list[Store] = []
        # Of each thread, when what was released that it has acquired, has only read, and would release by a store.
        self.acquired, self.observed, self.fenced = (np.zeros(threads, np.int64) for _ in range(3))
        # When what the program has seen of each byte was stored: with ordinary loads, and with any.
        self._seen: dict[str, tuple[Array, Array]] = {}
        self._own: dict[str, tuple[Array, Array, Array, Array]] = {}  # pending, value, thread, epoch of each byte

    def barrier(self) -> None:
        """What was stored or acquired before it counts for all."""
        self.epoch += 1
        self.acquired[:] = self.acquired.max()

    def barrier_of_a_warp(self, threads: Array) -> None:
        """What one thread of a warp has acquired counts for the warp."""
        for warp in threads.reshape(-1, 32):
            self.acquired[warp] = self.acquired[warp].max()

    def load(self, buffer: Buffer, at: Array, size: int, threads: Array, order: str, line: int) -> Array:
        """[elements, size] bytes."""
        places = every = at[:, None] + np.arange(size)
        value, weak = buffer.data[places], order not in ORDERED
        changed, known = buffer.changed[places], self._known(buffer, places, threads, weak)
        newer = changed > known
        may = newer.any(1)
        if weak:
            racing = places[may].reshape(-1)
            self.memory.race(buffer, racing, line, stored=True, epoch=self.epoch)
            self._note_reader(buffer, places, line)
        released = buffer.released[places]
        if self.memory.weak and may.any():
            rng, stale = self.memory.rng, self.memory.stale if weak else RELAXED_STALE
            may &= np.array([rng.random() < stale for _ in may])
            older = may[:, None] & newer
            value = np.where(older, buffer.previous[places], value)
            released = np.where(older, buffer.released_before[places], released)
            places, changed = places[~may], changed[~may]
        seen = self._seen_of(buffer)
        for one in seen if weak else seen[1:]:
            one[places] = np.maximum(one[places], changed)
        if not weak:
            np.maximum.at(self.acquired if order == "acquire" else self.observed, threads, released.max(1))
        if buffer.name in self._own:
            pending, own, thread, epoch = self._own[buffer.name]
            under_way = pending[every] > 0
            if under_way.any():
                visible = under_way & ((thread[every] == threads[:, None]) | (epoch[every] < self.epoch))
                value = np.where(visible, own[every], value)
        return value

    def _known(self, buffer: Buffer, places: Array, threads: Array, weak: bool) -> Array:
        """Up to when each thread has to see what was stored to these bytes."""
        known: Array = np.maximum(self.acquired[threads][:, None], self._seen_of(buffer)[0 if weak else 1][places])
        return known

    def _seen_of(self, buffer: Buffer) -> tuple[Array, Array]:
        if buffer.name not in self._seen:
            self._seen[buffer.name] = (np.zeros(len(buffer.data), np.int64), np.zeros(len(buffer.data), np.int64))
        return self._seen[buffer.name]

    def _note_reader(self, buffer: Buffer, places: Array, line: int) -> None:
        others = buffer.reader[places] != self.number
        buffer.read_before[places] = np.where(others, buffer.read[places], buffer.read_before[places])
        buffer.reader[places], buffer.read[places], buffer.lines[0, places] = self.number, self.memory.now, line

    def _check_store(self, buffer: Buffer, places: Array, values: Array, known: Array, line: int) -> None:
        """Another program's store, or ordinary load, that nothing orders before this store. known: [elements].

        Storing what is there already does no harm: several programs that wait in vain set one word.
        """
        newer = buffer.changed[places] > np.maximum(known[:, None], self._seen_of(buffer)[0][places])
        newer &= buffer.data[places] != values
        self.memory.race(buffer, places[newer], line, stored=True, epoch=self.epoch)
        read = np.where(buffer.reader[places] == self.number, buffer.read_before[places], buffer.read[places])
        self.memory.race(buffer, places[(read > 0) & (read >= known[:, None])], line, stored=False, epoch=self.epoch)

    def store(self, buffer: Buffer, at: Array, values: Array, threads: Array, order: str, line: int) -> None:
        """Elements [elements, size] on their way."""
        places, known = at[:, None] + np.arange(values.shape[1]), self.acquired[threads]
        released = self.fenced[threads] if order in ORDERED else np.zeros(len(at), np.int64)
        if order in ("release", "acq_rel"):
            released = np.full(len(at), self.memory.later())
        if buffer.name not in self._own:
            n = len(buffer.data)
            self._own[buffer.name] = (
                np.zeros(n, np.int16), np.zeros(n, np.uint8), np.zeros(n, np.int16), np.zeros(n, np.int32)
            )  # fmt: skip
        pending, own, thread, epoch = self._own[buffer.name]
        np.add.at(pending, places, 1)
        own[places], thread[places], epoch[places] = values, threads[:, None], self.epoch
        store = Store(buffer, at, values, threads, known, released, self.epoch, line)
        if self.memory.weak:
            self.pending.append(store)
        else:
            self._commit(store, np.ones(len(at), bool))

    def fence(self, threads: Array) -> None:
        """What these threads stored is released by their next stores, and what they have read is acquired."""
        for thread in threads:
            self.release(int(thread))
        self.fenced[threads] = self.memory.later()
        self.acquired[threads] = np.maximum(self.acquired[threads], self.observed[threads])

    def release(self, thread: int) -> None:
        """What happened before this thread's release becomes visible."""
        for store in list(self.pending):
            self._commit(store, (store.threads == thread) | (store.epoch < self.epoch))
        self.pending = [store for store in self.pending if len(store.at)]

    def drain(self) -> None:
        """Some of what is on its way arrives."""
        rng = self.memory.rng
        store = rng.choice(self.pending)
        self._arrive(store, np.array([rng.random() < 0.5 for _ in store.at]))

    def _arrive(self, store: Store, chosen: Array) -> None:
        """These elements of a store; of two stores to one place the older one goes first."""
        if not chosen.any():
            return
        places = store.at[chosen][:, None] + np.arange(store.values.shape[1])
        if (self._own[store.buffer.name][0][places] > 1).any():
            for older in self.pending[: self.pending.index(store)]:
                if older.buffer is store.buffer:
                    self._commit(older, _within(older, places))
        self._commit(store, chosen)
        self.pending = [store for store in self.pending if len(store.at)]

    def _commit(self, store: Store, chosen: Array) -> None:
        if not chosen.any():
            return
        at, values, known = store.at[chosen], store.values[chosen], store.known[chosen]
        places = at[:, None] + np.arange(values.shape[1])
        self._check_store(store.buffer, places, values, known, store.line)
        self.memory.change(store.buffer, at, values, store.released[chosen], store.line)
        np.subtract.at(self._own[store.buffer.name][0], places, 1)
        for seen in self._seen_of(store.buffer):
            seen[places] = self.memory.now  # its own
        for name in ("at", "values", "threads", "known", "released"):
            setattr(store, name, getattr(store, name)[~chosen])

    def add_atomically(self, buffer: Buffer, at: int, value: int, thread: int, order: str, line: int) -> int:
        """32 bits, at once; returns what was there."""
        if order in ("release", "acq_rel"):
            self.release(thread)
        places = at + np.arange(4)
        under_way = buffer.name in self._own and self._own[buffer.name][0][places].any()
        for store in list(self.pending) if under_way else []:  # what was stored here before goes first
            if store.buffer is buffer:
                mine = (store.threads == thread) | (store.epoch < self.epoch)
                self._arrive(store, mine & _within(store, places))
        old = int(buffer.data[at : at + 4].view(np.uint32)[0])
        read = self.acquired if order in ("acquire", "acq_rel") else self.observed
        read[thread] = max(read[thread], buffer.released[at])
        # It goes on with what an earlier atomic operation has released here.
        released = max(int(buffer.released[at]), int(self.fenced[thread]))
        if order in ("release", "acq_rel"):
            released = self.memory.later()
        new = np.array([(old + value) & 0xFFFFFFFF], np.uint32).view(np.uint8)[None]
        self.memory.change(buffer, np.array([at]), new, np.array([released]), line)
        return old


def _within(store: Store, places: Array) -> Array:
    """Which elements of a store touch one of these bytes."""
    found: Array = np.isin(store.at[:, None] + np.arange(store.values.shape[1]), places)
    return np.logical_or.reduce(found, 1)
