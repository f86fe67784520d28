"""Parts of an exchange, each with one fault."""

import triton
import triton.language as tl

from fastcells.kernels.triton import exchange


@triton.jit
def wait_for_one_less(counter_ptr, arrivals, patience, fault_ptr):
    return exchange.counter_wait(counter_ptr, arrivals - 1, patience, fault_ptr)


@triton.jit
def publish_unmasked(pointers, words, mask):
    exchange.counter_publish(pointers, words, mask | (mask == mask))


@triton.jit
def arrive_without_barrier(counter_ptr, patience):
    tl.atomic_add(counter_ptr, 1, mask=patience > 0, sem="release", scope="gpu")


@triton.jit
def gather_past_the_row(pointers, masks, published, patience, fault_ptr):
    every = ()
    for i in tl.static_range(len(pointers)):
        every += (masks[i] | (masks[i] == masks[i]),)
    return exchange.counter_gather(pointers, every, published, patience, fault_ptr)
