"""Kernels of a few lines, written by hand: what the machine's own tests run."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from tests.ptx.machine import Machine
from tests.ptx.memory import Memory
from tests.ptx.parse import parse
from tests.ptx.translate import Translation
from tests.ptx.values import Array

HEAD = """
.version 8.4
.target sm_90
.visible .entry small(
    .param .u64 .ptr .global .align 1 first,
    .param .u64 .ptr .global .align 1 second
)
.reqntid {threads}
{{
    .reg .pred %p<100>;
    .reg .b16 %rs<100>;
    .reg .b32 %r<100>;
    .reg .b64 %rd<100>;
    ld.param.b64 %rd1, [first];
    ld.param.b64 %rd2, [second];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
"""


def text(body: str, threads: int = 32) -> str:
    """A kernel with two buffers, %rd1 and %rd2, the thread's number %r1 and the program's %r2."""
    return HEAD.format(threads=threads) + body + "\n    ret;\n}\n"


def run(
    body: str,
    first: Array,
    second: Array,
    *,
    threads: int = 32,
    programs: int = 1,
    seed: int = 0,
    weak: bool = False,
    stale: float = 0.9,
    together: bool = True,
    shared: int = 4096,
    **options: Any,
) -> Machine:
    """Run it on two arrays, which it changes in place."""
    memory = Memory(weak, random.Random(seed), stale)
    addresses = [
        memory.add(array.view(np.uint8).reshape(-1), name) for array, name in ((first, "first"), (second, "second"))
    ]
    machine = Machine(Translation(parse(text(body, threads))), (programs,), shared, memory, **options)
    machine.run(addresses, together=together)
    return machine
