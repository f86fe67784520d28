"""Which family of our Triton kernels the model calls the fastest: the kept rows of bench.cycles, by shape.

Families: "sequence", one program a batch tile; "split", programs that exchange the state; "gluon", the same with the
weights in registers; "step", one launch a step, which is only kept as a whole launch and takes no part. Cycles of a
time step on one multiprocessor: modelled, not measured. Of one direction alone: rows of both at once take no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bench.measure.roofline import Shape

RULES = {1: "rnn_tanh", 3: "gru", 4: "lstm"}  # by gates; the variants of a cell have figures of their own
DTYPES = {"bfloat16": "bfloat16", "float16": "float16", "tf32": "float32", "strict": "float32x3"}


def modelled(shape: Shape, rows: Iterable[Mapping[str, object]], target: int = 90) -> dict[str, float]:
    """Cycles of a step for each family that has a kept row of this shape: of several Tritons', the slowest."""
    asked = (RULES[shape.gates], DTYPES[shape.dtype], str(shape.H), f"sm_{target}", "step")
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        same = tuple(str(row[key]) for key in ("rule", "dtype", "H", "target", "cycles_of")) == asked
        if (
            same
            and row["part"] != "both"
            and str(row["kernel"]).endswith("backward") == shape.backward
            and int(str(row["B"])) <= shape.B
        ):
            family = "gluon" if row["family"] == "gluon" else str(row["path"])
            found.setdefault(family, []).append((int(str(row["B"])), float(str(row["cycles"]))))
    # A row stands for its batch and those above, up to the next that is kept.
    largest = {family: max(B for B, _ in pairs) for family, pairs in found.items()}
    return {family: max(c for B, c in pairs if largest[family] == B) for family, pairs in found.items()}


def fastest(shape: Shape, rows: Iterable[Mapping[str, object]]) -> str:
    """The fastest family with its cycles, and the others behind it; empty where nothing of this shape is kept."""
    found = sorted(modelled(shape, rows).items(), key=lambda item: item[1])
    return ", ".join(f"{family} {cycles:.0f}" for family, cycles in found)
