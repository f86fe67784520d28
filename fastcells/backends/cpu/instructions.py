"""The sets of instructions that the C kernels were written for, and which of them to use."""

from __future__ import annotations

import os

from fastcells.backends.cpu.arguments import c_module

# Whether this machine has them, the best first; those for bfloat16 stand beside those for float32.
INSTRUCTIONS: dict[str, bool] = {} if c_module is None else dict(c_module.backends())
BF16_INSTRUCTIONS: dict[str, bool] = {} if c_module is None else dict(c_module.bf16_backends())
BESIDE = {"amx_bf16": "avx512", "avx512_bf16": "avx512", "neon_bf16": "neon"}


def chosen() -> tuple[int, int]:
    """The positions of the instructions to use, for float32 and for bfloat16; -1: there are none.

    Those of the environment variable FASTCELLS_CPU, or the best.
    """
    usable, rounded = ([name for name, here in of.items() if here] for of in (INSTRUCTIONS, BF16_INSTRUCTIONS))
    if not usable:
        return -1, -1
    wanted = os.environ.get("FASTCELLS_CPU") or usable[0]
    if wanted not in (*usable, *rounded):
        raise ImportError(f"FASTCELLS_CPU={wanted!r}, but this machine has {', '.join((*usable, *rounded))}")
    name = BESIDE.get(wanted, wanted)
    fitting = [bf16 for bf16 in rounded if BESIDE[bf16] == name and wanted in (name, bf16)]
    return list(INSTRUCTIONS).index(name), list(BF16_INSTRUCTIONS).index(fitting[0]) if fitting else -1
