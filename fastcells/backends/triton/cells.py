"""Which cells the kernels for GPUs run: those with a rule of their own, and defined ones for which one is generated.

Triton is not imported here.
"""

from __future__ import annotations

from fastcells.spec import CellSpec
from fastcells.spec.recurrent import DENSE, DIAGONAL

CELLS = frozenset({"rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm"})  # those with a rule in kernels/triton
MOST_STATES = 4  # for which the compiler's registers have been read
MOST_IN_GLUON = 2  # h, and one that no W_hh multiplies


def gluon_obstacle(spec: CellSpec) -> str | None:
    """Why the Gluon kernels cannot run a cell, or None: they have a dense product, h and c."""
    if spec.recurrent is not DENSE:
        return f"there is no kernel for {spec.name}: its recurrent weights are not dense"
    if spec.extra:
        return f"there is no kernel for {spec.name}: it has extra parameters, {', '.join(spec.extra)}"
    if spec.num_states > MOST_IN_GLUON:
        return (
            f"there is no kernel for {spec.name}: it has {spec.num_states} states, which are more than {MOST_IN_GLUON}"
        )
    return obstacle(spec)


def obstacle(spec: CellSpec) -> str | None:
    """Why the Triton kernels cannot run a cell, or None."""
    rule, none = spec.rule, "there is no kernel for"
    if rule is None:
        return None if spec.name in CELLS else f"{none} {spec.name}"
    if spec.recurrent is DIAGONAL and spec.two_products:
        return f"{none} {spec.name}: its diagonal recurrent weights multiply something else than h"
    if spec.num_states > MOST_STATES:
        return f"{none} {spec.name}: it has {spec.num_states} states, which are more than {MOST_STATES}"
    if rule.operand_again is not None:
        # What W_hh's gradient is computed with, after the backward, where h alone is there.
        read = {*rule.operand_again.inputs} - {spec.states[0], *rule.saved}
        if read:
            return f"{none} {spec.name}: its operand reads {', '.join(sorted(read))}, which is not kept"
    return None
