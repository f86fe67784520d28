"""Which cases are executed: every way to run every rule in every dtype, on shapes that no block divides."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from bench.cases.compile_cases import DTYPES
from bench.cases.rules import rule_named
from fastcells.kernels.triton import plan
from tests.ptx.cases import Case
from tests.ptx.launch import Options

CELLS = ("rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm")
DEFINED = ("JANET", "CoupledGateLSTM", "MinimalGatedUnit", "EveryOperator")  # whose rules are generated
# path, exchange, form, H, B, T: sizes that the blocks divide and others, more than one batch tile.
WAYS = (
    ("sequence", "", 0, 17, 18, 3),
    ("sequence", "", 1, 32, 11, 4),
    *(("split", "poll", form, 64 if form % 2 else 65, 18, 3) for form in range(len(plan.FORMS))),
    ("split", "poll", 0, 64, 33, 3),
    ("split", "counter", 0, 50, 18, 3),
    ("gluon", "", 0, 64, 18, 3),
    ("gluon", "", 0, 65, 9, 4),
    ("step", "", 0, 33, 18, 2),
)
BOTH = (("gluon", "", 0, 64, 9, 3), ("gluon", "", 0, 65, 18, 4))  # both directions in one launch
TARGETS = (90, 80, 100)
# How many of a target's cases: float16 is compiled as bfloat16 is, other targets differ in loads and conversions.
OTHER = {"bfloat16": 0.3, "float16": 0.0, "float32": 0.3, "float32x3": 0.0}
SHARES = {90: {"bfloat16": 1.0, "float16": 0.3, "float32": 1.0, "float32x3": 0.5}, 80: OTHER, 100: OTHER}
# Each family of kernels and, of the split ones, the poll in words and in single elements.
WITH_RESETS = (
    ("sequence", "", 0),
    ("split", "poll", 0),
    ("split", "poll", 1),
    ("split", "counter", 0),
    ("gluon", "", 0),
    ("step", "", 0),
)


def _product(ways: Sequence[tuple[str, str, int, int, int, int]], first: int = 0, both: bool = False) -> Iterator[Case]:
    """Options are drawn for each case by itself, from its number: a case that is left out changes no other."""
    for number, (target, dtype, rule, way) in enumerate(itertools.product(TARGETS, DTYPES, CELLS, ways), first):
        path, exchange, form, H, B, T = way
        if path == "gluon" and target == 80:
            continue  # the plan declines: an instruction is missing
        if path == "split" and dtype == "float32x3" and plan.FORMS[form].batch < 16:
            continue  # the plan takes no such form: it spills
        rng = random.Random(number)
        if rng.random() > SHARES[target][dtype]:
            continue
        yield Case(
            path, rule, dtype, H, B, T, exchange, form,
            programs=rng.randint(1, 3),
            ids=rng.random() < 0.3,
            ragged=rng.random() < 0.4,
            reverse=rng.random() < 0.4 and not both,
            bias=rng.random() < 0.8,
            backward=rng.random() < 0.9,
            both=both,
            options=Options(target=target, weak=True, seed=number),
        )  # fmt: skip


def _resets(rules: Sequence[str]) -> Iterator[Case]:
    """Steps that start from zeros."""
    ways = [way for way in WAYS if way[:3] in WITH_RESETS and way[4] < 33]
    for number, (dtype, rule, way) in enumerate(itertools.product(("bfloat16", "float32"), rules, ways)):
        path, exchange, form, H, B, T = way
        rng = random.Random(number)
        yield Case(
            path, rule, dtype, H, B, T + 1, exchange, form,
            ids=rng.random() < 0.3,
            ragged=rng.random() < 0.4,
            reverse=rng.random() < 0.4,
            resets=True,
            both=path == "gluon" and rng.random() < 0.3,
            options=Options(weak=True, seed=number),
        )  # fmt: skip


def pairs(case: Case) -> set[tuple[object, ...]]:
    """What meets in a case: kernels, rule, dtype, target and options, those that are not there by themselves."""
    form = {"split": (case.exchange, case.form), "sequence": case.form > 0}.get(case.path)
    family, target = (case.path, form, case.both), case.options.target
    given = {name: getattr(case, name) for name in ("ids", "ragged", "reverse", "resets")}
    given |= {"no bias": not case.bias, "forward": not case.backward}
    options = [name for name, value in given.items() if value]
    kind = case.rule if case.rule in CELLS else "generated" if case.rule in DEFINED else "of another kind"
    found: set[tuple[object, ...]] = {(family, case.dtype), (case.rule, case.dtype), (target, case.dtype)}
    found |= {(target, case.path, case.both)} | ({(case.path, kind)} if case.backward else set())
    return found | {(family, option) for option in options} | set(itertools.combinations(options, 2))


def _work(case: Case) -> float:
    """About how long a case takes: what is compiled, and what each path's programs do and wait for."""
    each = {"sequence": 0.15, "diagonal": 0.15, "step": 0.9, "gluon": 1.0}.get(case.path)
    each = each or (0.7, 0.15, 1.8, 0.35, 0.6)[case.form]
    gates, passes = rule_named(case.rule).spec.num_gates, (1 + case.both) * (1 + case.backward)
    return 12_000 + each * gates * case.B * case.H * case.T * passes


def pairwise(cases: Sequence[Case]) -> tuple[Case, ...]:
    """Few cases, and quick ones, in which all meets that meets in any case."""
    left, chosen = set[tuple[object, ...]]().union(*map(pairs, cases)), list[Case]()
    each = [(case, pairs(case), _work(case)) for case in cases]
    while left:
        case, found, _ = max(each, key=lambda one: len(left & one[1]) / one[2])
        chosen.append(case)
        left -= found
    return tuple(chosen)


_IN_TURN, _AT_ONCE = tuple(_product(WAYS)), tuple(_product(BOTH, first=10_000, both=True))
_RESETS = tuple(_resets(CELLS))
# In bfloat16 a unit of EveryOperator is now and then on the other side of a comparison, where its value jumps.
_DEFINED = tuple(c for c in _resets(DEFINED) if (c.rule, c.dtype) != ("EveryOperator", "bfloat16"))
# Further parameters, four states, heads, diagonal weights.
_KINDS = tuple(
    Case(
        path, rule, dtype, H, 9, 3, "poll", 3, ids=path == "split", ragged=path != "split", resets=path != "step",
        options=Options(weak=True),
    )
    for dtype, (path, rule, H) in itertools.product(
        ("bfloat16", "float32"),
        (
            ("sequence", "PeepholeLSTM", 18),
            ("split", "PeepholeLSTM", 64),
            ("step", "FourStates", 33),
            ("split", "FourStates", 65),
            ("sequence", "SLSTM/2", 36),
            ("split", "SLSTM/2", 64),
            ("step", "SLSTM/2", 34),
            ("diagonal", "IndRNN", 70),
            ("diagonal", "DiagonalFour", 65),
        ),
    )
)  # fmt: skip
EVERY = _IN_TURN + _AT_ONCE + _RESETS + _DEFINED + _KINDS
QUICK = pairwise(EVERY)  # what every test run executes
