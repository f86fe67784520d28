"""Would the machine notice? Each barrier, wait and ordering of a kernel is taken out, one at a time, and it is run.

What is not noticed is either explained here, each by its reason, or a gap in the proof.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fastcells.errors import KernelFault
from tests.ptx.cases import Case, run
from tests.ptx.launch import Options
from tests.ptx.memory import Fault
from tests.ptx.mutate import Mutation, mutations, superfluous
from tests.ptx.parse import Text

SEEDS = 4  # tries until a mutation counts as not noticed; every other one with loads that are stale when they may be
LIMIT = 30_000  # segments after which a launch counts as one without end: the cases here take up to 10,000

# One case for each kernel and each form of it that waits: small, but with every loop run more than twice.
CASES = (
    Case("sequence", "gru", "bfloat16", 32, 3, 4),
    Case("sequence", "gru_reset_before", "bfloat16", 32, 3, 4),
    Case("split", "gru", "bfloat16", 64, 18, 3, "poll", programs=1, options=Options(weak=True)),
    Case("split", "gru_reset_before", "bfloat16", 64, 18, 3, "poll", programs=1, options=Options(weak=True)),
    Case("split", "lstm", "bfloat16", 33, 18, 3, "counter", programs=1, options=Options(weak=True)),
    Case("split", "gru_reset_before", "bfloat16", 33, 3, 3, "counter", options=Options(weak=True)),
    Case("split", "gru", "bfloat16", 32, 9, 3, "poll", form=2, programs=1, options=Options(weak=True)),  # of one warp
    Case("gluon", "gru", "bfloat16", 64, 9, 3, programs=1, options=Options(weak=True)),
    Case("gluon", "gru_reset_before", "float32", 33, 9, 3, programs=1, options=Options(weak=True)),
    Case("gluon", "gru", "bfloat16", 64, 3, 3, both=True, options=Options(weak=True)),
    Case("gluon", "lstm", "float32", 33, 3, 3, both=True, ids=True, ragged=True, options=Options(weak=True)),
    Case("step", "gru", "float32", 130, 3, 2),
    Case("step", "gru_reset_before", "float32", 130, 3, 2),
)


@dataclass(frozen=True)
class Finding:
    """One mutation: whether it was noticed and, if not, why it need not be."""

    case: Case
    kernel: str
    mutation: Mutation
    noticed: bool
    reason: str = ""

    @property
    def gap(self) -> bool:
        return not self.noticed and not self.reason

    def __str__(self) -> str:
        what = "noticed" if self.noticed else self.reason or "NOT NOTICED"
        return f"{self.case} {self.kernel}: without the {self.mutation.kind} {self.mutation.original}: {what}"


def texts(case: Case) -> list[Text]:
    """The kernels that a case launches, each form once."""
    result = run(case)
    assert result.right, (case, result.errors, result.describe_races())
    return list(result.kernels.values())


def findings(case: Case, kernel: str = "", every: int = 1) -> Iterator[Finding]:
    """Mutate every kernel of a case whose name starts so; every: of so many mutations one."""
    for text in texts(case):
        if text.name.startswith(kernel):
            for mutation in list(mutations(text))[::every]:
                noticed = is_noticed(case, text.name, mutation)
                reason = "" if noticed else superfluous(text, mutation) or _explained(case, mutation)
                yield Finding(case, text.name, mutation, noticed, reason)


def is_noticed(case: Case, kernel: str, mutation: Mutation) -> bool:
    """Whether a run goes wrong: in its numbers, by a race, by an access or a wait that the machine refuses."""
    for seed in range(SEEDS):
        options = replace(
            case.options,
            seed=seed,
            stale=1.0 if seed % 2 else 0.9,
            edits={kernel: mutation},
            machine={**case.options.machine, "limit": LIMIT},
        )
        try:
            if not run(replace(case, options=options)).right:
                return True
        except (Fault, KernelFault):
            return True
    return False


@dataclass(frozen=True)
class Explanation:
    """Why an ordering of this kind, from this file, need not be noticed in this family of kernels."""

    way: str  # what the case's name starts with
    kind: str
    file: str
    reason: str
    guarded: bool = False  # only where the instruction is executed under a condition


THERE_AND_BACK = "of a layout's way there and back, each thread writes where it alone has read"
EXPLAINED = (
    Explanation(
        "step",
        "barrier",
        "step",
        "Triton's pipeline frees a place for the next copy twice: at the loop's top all warps have met as well",
    ),
    Explanation("step", "barrier", "step_backward", f"{THERE_AND_BACK}; or as in step.py"),
    # Where the next layout's way begins in a rule, and in what loads and stores: the same two addresses of a thread.
    Explanation("step", "barrier", "gru", THERE_AND_BACK),
    Explanation("step", "barrier", "tiles", THERE_AND_BACK),
    Explanation(
        "split",
        "barrier",
        "split_forward",
        "it keeps loads from being under way at once, for their registers: no order",
    ),
    Explanation("split-counter", "volatile", "exchange", "the acquire in front of it orders an ordinary load as well"),
    Explanation("gluon", "volatile", "exchange", "a program that gave up reads its own word"),
    # Unlike the loads that poll, the one of the word that says whether somebody gave up runs every now and then only.
    Explanation("gluon", "relaxed", "exchange", "it ends a wait early that ends by its own patience too", guarded=True),
)


def _explained(case: Case, mutation: Mutation) -> str:
    file = mutation.original.source.split(":")[0].removesuffix(".py")
    fitting = (e for e in EXPLAINED if str(case).startswith(e.way) and (e.kind, e.file) == (mutation.kind, file))
    guarded = mutation.original.guard is not None
    return next((e.reason for e in fitting if guarded or not e.guarded), "")


def summary(found: list[Finding]) -> Counter[tuple[str, str, str]]:
    """How often each kernel's mutations of a kind were noticed, explained or not."""
    return Counter(
        (f.kernel, f.mutation.kind, "noticed" if f.noticed else "explained" if f.reason else "gap") for f in found
    )
