"""How the programs of one batch tile hand each other their columns, once a step: two ways with one interface.

    publish(pointers, value, mask)       write the own columns
    arrive(counter_ptr)                  after all that this program publishes in one round
    wait(counter_ptr, arrivals)          before a gather: as many arrivals as there are if every program has published
    gather(pointers, mask, published)    everybody's columns, 0 where the mask is false

The mailbox is an output tensor; each of its elements is written once in a launch, and polled only where somebody
writes it. `published` is false where the pointers lead to an input, which is complete and may hold anything.

COUNTER: a barrier. Each batch tile counts arrivals from 0, in a cache line of its own; the count only grows.

POLL: the data is its own flag (a Lamport exchange). The mailbox is filled with a sentinel before the launch, all bits
one, and a reader loads until no element is the sentinel. It trusts nothing but that an element, once seen, stays, so
that it needs neither fence nor atomic. All bits one is a NaN, which arithmetic does not yield but a user's tensor can
hold, and a state that is carried through a finished sequence keeps; what equals it is published as another NaN.
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
def counter_publish(pointers, value, mask):
    tl.store(pointers, value, mask=mask)


@triton.jit
def counter_arrive(counter_ptr):
    tl.debug_barrier()  # the atomic is one thread's: without a barrier it would not release the other threads' stores
    tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")


@triton.jit
def counter_wait(counter_ptr, arrivals):
    # The difference, and not `<` of the two: it survives an overflow of the count.
    while tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") - arrivals < 0:
        pass


@triton.jit
def counter_gather(pointers, mask, published):
    return tl.load(pointers, mask=mask, other=0.0, cache_modifier=".cg")  # not from L1, which nobody keeps coherent


@triton.jit
def poll_publish(pointers, value, mask):
    word: tl.constexpr = tl.uint16 if pointers.dtype.element_ty.primitive_bitwidth == 16 else tl.uint32
    bits = value.to(word, bitcast=True)
    sentinel = tl.full((), -1, tl.int32).to(tl.uint32, bitcast=True).to(word)
    bits = tl.where(bits == sentinel, bits >> 1, bits)  # a NaN as well, the one that arithmetic yields
    tl.store(pointers.to(tl.pointer_type(word), bitcast=True), bits, mask=mask)


@triton.jit
def poll_arrive(counter_ptr):
    pass


@triton.jit
def poll_wait(counter_ptr, arrivals):
    pass


@triton.jit
def poll_gather(pointers, mask, published):
    element: tl.constexpr = pointers.dtype.element_ty
    word: tl.constexpr = tl.uint16 if element.primitive_bitwidth == 16 else tl.uint32
    words = pointers.to(tl.pointer_type(word), bitcast=True)
    sentinel = tl.full((), -1, tl.int32).to(tl.uint32, bitcast=True).to(word)
    bits = tl.zeros(words.shape, word)
    waiting = sentinel == sentinel  # a load before the loop would be all its addresses and masks once more
    while waiting:
        bits = tl.load(words, mask=mask, other=0, volatile=True)
        waiting = published & (tl.max(bits) == sentinel)
    return bits.to(element, bitcast=True)


COUNTER = Exchange("counter", counter_publish, counter_arrive, counter_wait, counter_gather, prefilled=False)
POLL = Exchange("poll", poll_publish, poll_arrive, poll_wait, poll_gather, prefilled=True)
EXCHANGES = {exchange.name: exchange for exchange in (COUNTER, POLL)}
