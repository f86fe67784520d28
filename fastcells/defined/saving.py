"""Which values of the forward pass are kept for the backward, and which are computed again from those."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from fastcells.defined.graph import LEAVES, TRANSCENDENTAL, Node

# What a kept value costs, which is written and read once, against what it costs to compute one again.
KEPT = 2.0
TRANSCENDENTAL_AGAIN = 1.0  # a dozen instructions
ARITHMETIC_AGAIN = 0.05


def to_keep(
    nodes: Sequence[Node],
    needed: Iterable[int],
    free: Collection[int],
    forward: int,
    transcendental: float = TRANSCENDENTAL_AGAIN,
) -> tuple[int, ...]:
    """The nodes to keep, in order, such that all that is needed can be computed at the least cost.

    needed: nodes that the backward reads. free: those that are there in any case: the states before and after a step,
    and parameters. forward: so many of the first nodes are computed in the forward pass, and may be kept.
    transcendental: what one costs that is computed again.
    """
    best: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {}

    def cheapest(open_: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        """For needed nodes in rising order: the last one is kept or made again, then the rest."""
        if not open_:
            return 0.0, ()
        if open_ not in best:
            *rest, place = open_
            node, choices = nodes[place], []
            if place in free or node.op == "constant":
                choices.append(cheapest(tuple(rest)))
            else:
                if node.op not in LEAVES:
                    cost, kept = cheapest(tuple(sorted({*rest, *node.args})))
                    again = transcendental if node.op in TRANSCENDENTAL else ARITHMETIC_AGAIN
                    choices.append((cost + again, kept))
                if place < forward:
                    cost, kept = cheapest(tuple(rest))
                    choices.append((cost + KEPT, (*kept, place)))
            best[open_] = min(choices)
        return best[open_]

    return cheapest(tuple(sorted(set(needed))))[1]
