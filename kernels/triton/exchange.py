"""How the programs of one batch tile hand each other their columns, once a step: two ways with one interface.

    publish(pointers, words, mask)                          write the own columns
    arrive(counter_ptr, patience)                           after all that this program publishes in one round
    wait(counter_ptr, arrivals, patience, fault_ptr)        before a gather: as many arrivals as there are if every
                                                            program has published; gives the patience that is left
    gather(pointers, masks, published, patience, fault_ptr) everybody's columns, a tile for each tile of pointers, 0
                                                            where its mask is false; and the patience that is left

The mailbox is an output tensor; each of its elements is written once in a launch, and polled only where somebody
writes it. It is read and written in words (`words.py`). `published` is false where the pointers lead to an input, which
is complete and may hold anything.

COUNTER: a barrier. Each batch tile counts arrivals from 0, in a cache line of its own; the count only grows.

POLL: the data is its own flag (a Lamport exchange). The mailbox is filled with a sentinel before the launch, all bits
one, and a reader loads until no element is the sentinel. It trusts nothing but that a word, once seen, stays, so
that it needs neither fence nor atomic. All bits one is a NaN, which arithmetic does not yield but a user's tensor can
hold, and a state that is carried through a finished sequence keeps. float32 that equals it is published as another NaN;
to 16 bits a NaN is converted as 0x7FFF, whatever it was. Of two 16-bit elements in a word only the second is looked at.

A program that has polled `patience` times in vain (`fault.py`) sets the fault word. It waits no more from then on, its
patience being 0, but goes on, so that nobody waits for it; `poison` makes NaN of all that it hands on.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from triton import JITFunction


@dataclass(frozen=True)
class Exchange:
    """One way, and what has to be done before the launch."""

    name: str
    publish: JITFunction
    arrive: JITFunction
    wait: JITFunction
    gather: JITFunction
    prefilled: bool  # whether the mailbox has to be filled with the sentinel; else the counters with 0


@triton.jit
def give_up(missing, patience, fault_ptr):
    """The patience that is left after a wait; missing: whether it was in vain."""
    tl.store(fault_ptr, 1, mask=missing)  # a branch would take longer
    return tl.where(missing, 0, patience)


@triton.jit
def poison(patience):
    """What to add to all that a program hands on: 0, or NaN once it has no patience left."""
    return tl.where(patience > 0, 0.0, float("nan"))


@triton.jit
def counter_publish(pointers, words, mask):
    tl.store(pointers, words, mask=mask)


@triton.jit
def counter_arrive(counter_ptr, patience):
    tl.debug_barrier()  # the atomic is one thread's: without a barrier it would not release the other threads' stores
    # Not of who has given up and runs ahead: it would be counted in the place of the one that has not come.
    tl.atomic_add(counter_ptr, 1, mask=patience > 0, sem="release", scope="gpu")


@triton.jit
def counter_wait(counter_ptr, arrivals, patience, fault_ptr):
    polls = patience
    missing = patience == patience
    waiting = missing
    while waiting:
        # The difference, and not `<` of the two: it survives an overflow of the count.
        missing = tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") - arrivals < 0
        polls -= 1
        waiting = missing & (polls > 0)
    return give_up(missing, patience, fault_ptr)


@triton.jit
def counter_gather(pointers, masks, published, patience, fault_ptr):
    tiles = ()
    for i in tl.static_range(len(pointers)):  # volatile: not from L1, which nobody keeps coherent
        tiles += (tl.load(pointers[i], mask=masks[i], other=0, volatile=True),)
    return tiles, patience


@triton.jit
def poll_publish(pointers, words, mask):
    if words.dtype == tl.uint32:  # two elements, whose NaN is another one: that of a conversion from float32
        bits = words
        to = pointers
    else:
        word: tl.constexpr = tl.uint16 if words.dtype.primitive_bitwidth == 16 else tl.uint32
        bits = words.to(word, bitcast=True)
        sentinel = tl.full((), -1, tl.int32).to(tl.uint32, bitcast=True).to(word)
        bits = tl.where(bits == sentinel, bits >> 1, bits)  # a NaN as well, the one that arithmetic yields
        to = pointers.to(tl.pointer_type(word), bitcast=True)
    tl.store(to, bits, mask=mask)


@triton.jit
def poll_arrive(counter_ptr, patience):
    pass


@triton.jit
def poll_wait(counter_ptr, arrivals, patience, fault_ptr):
    return patience


@triton.jit
def poll_gather(pointers, masks, published, patience, fault_ptr):
    element: tl.constexpr = pointers[0].dtype.element_ty
    word: tl.constexpr = tl.uint16 if element.primitive_bitwidth == 16 else tl.uint32
    sentinel = tl.full((), -1, tl.int32).to(tl.uint32, bitcast=True).to(word)
    if element == tl.uint32:  # two elements
        sentinel = sentinel << 16
    words = ()
    bits = ()
    for i in tl.static_range(len(pointers)):
        words += (pointers[i].to(tl.pointer_type(word), bitcast=True),)
        bits += (tl.zeros(words[i].shape, word),)
    polls = patience
    missing = patience == patience
    waiting = missing  # a load before the loop would be all its addresses and masks once more
    while waiting:
        seen = ()  # all loads are under way before the first is looked at
        for i in tl.static_range(len(words)):
            seen += (tl.load(words[i], mask=masks[i], other=0, volatile=True),)
        bits = seen
        largest = seen[0]
        for i in tl.static_range(1, len(words)):
            largest = tl.maximum(largest, seen[i])
        missing = published & (tl.max(largest) >= sentinel)
        polls -= 1
        waiting = missing & (polls > 0)
    tiles = ()
    for i in tl.static_range(len(words)):
        tiles += (bits[i].to(element, bitcast=True),)
    return tiles, give_up(missing, patience, fault_ptr)


COUNTER = Exchange("counter", counter_publish, counter_arrive, counter_wait, counter_gather, prefilled=False)
POLL = Exchange("poll", poll_publish, poll_arrive, poll_wait, poll_gather, prefilled=True)
EXCHANGES = {exchange.name: exchange for exchange in (COUNTER, POLL)}
