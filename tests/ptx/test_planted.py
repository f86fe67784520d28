"""A fault of each kind, planted in a kernel, is noticed; and programs that wait in vain come to an end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastcells.kernels.triton.exchange import EXCHANGES
from tests.ptx import broken, mutate, planted, sensitivity
from tests.ptx.cases import Case
from tests.ptx.launch import Options
from tests.ptx.parse import Text
from tests.ptx.worker import Run
from tests.support.shapes import CELLS
from tests.support.split_programs import excess, split

COUNTER = Case("split", "gru", "bfloat16", 50, 18, 3, "counter", programs=1, options=Options(weak=True))
POLL = replace(COUNTER, exchange="poll", H=65)
SEEDS = range(4)  # a fault shows in some orders of events only
ABSENT = 1
GRU = CELLS[2]
COLUMNS = 32  # of a program
FIRST_TILE = 16  # rows that a program does before others


def ends(execute: Run, function: object, case: Case, *arguments: object) -> set[str]:
    """How runs with different seeds end."""
    found = set()
    for seed in SEEDS:
        # Long after the 3,000 segments that a right run takes.
        options = replace(case.options, seed=seed, stale=1.0, machine={"limit": 30_000})
        found.add(execute(function, replace(case, options=options), *arguments))
        if found - {"right"}:
            break
    return found


def test_an_exchange_that_is_whole_is_right(execute: Run) -> None:
    assert ends(execute, planted.verdict, COUNTER) == {"right"}


@pytest.mark.parametrize("name", planted.BROKEN)
def test_a_broken_exchange_is_noticed(name: str, execute: Run) -> None:
    assert ends(execute, planted.run_broken, COUNTER, name) - {"right"}


def test_the_interpreter_does_not_see_a_missing_barrier() -> None:
    """What `tests/triton/test_concurrent.py` runs is one thread a program, to which a barrier means nothing.

    The same exchange without its barrier passes there, and is wrong here: the test above.
    """
    if torch.cuda.is_available():
        pytest.skip("no interpreter with a GPU")
    unordered = replace(EXCHANGES["counter"], arrive=broken.arrive_without_barrier)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXCHANGES, "counter", unordered)
        with split("counter", seed=1):
            assert excess(GRU, 3, 20, 40) <= 0


def test_a_late_publication_is_noticed(execute: Run) -> None:
    assert ends(execute, planted.run_edited, COUNTER, "split_forward_kernel", planted.publish_late) - {"right"}


@pytest.fixture(scope="module")
def texts(execute: Run) -> dict[str, list[Text]]:
    """The kernels that each exchange launches."""
    return {case.exchange: execute(sensitivity.texts, case) for case in (COUNTER, POLL)}


@pytest.mark.parametrize("kind", ["acquire", "release", "barrier", "volatile", "retry"])
@pytest.mark.parametrize("kernel", ["split_forward_kernel", "split_backward_kernel"])
def test_a_missing_ordering_is_noticed(kernel: str, kind: str, texts: dict[str, list[Text]], execute: Run) -> None:
    """One of each kind; `make ptx ARGS=--sensitivity` takes out every one."""
    case = POLL if kind in ("volatile", "retry") else COUNTER
    (text,) = [text for text in texts[case.exchange] if text.name == kernel]
    orderings = [m for m in mutate.mutations(text) if m.kind == kind and mutate.superfluous(text, m) is None]
    assert orderings, f"{kernel} has no {kind}"
    chosen = orderings[len(orderings) // 2]
    assert execute(sensitivity.is_noticed, case, kernel, chosen), str(chosen.original)


@pytest.mark.parametrize("case", [COUNTER, POLL], ids=["counter", "poll"])
def test_programs_that_wait_in_vain_come_to_an_end(case: Case, execute: Run) -> None:
    """One program never comes: the others set the fault word, and all that depends on it is NaN."""
    end, (hidden, h_n) = execute(planted.run_without, case, ABSENT, 30)
    assert end == "wrong, fault word 1"
    columns = [c for c in range(case.H) if c // COLUMNS != ABSENT]
    assert hidden[1:, :, columns].isnan().all() and h_n[:, columns].isnan().all()
    assert not hidden[0, :FIRST_TILE, columns].isnan().any()  # the first step of a program needs nobody


def test_patience_that_suffices_changes_nothing(execute: Run) -> None:
    end, (hidden, h_n) = execute(planted.run_without, POLL, -1, 10_000)
    assert end == "right, fault word 0" and not hidden.isnan().any() and not h_n.isnan().any()
