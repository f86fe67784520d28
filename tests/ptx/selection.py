"""Which cases are executed: every way to run every rule in every dtype, on shapes that no block divides."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from fastcells.spec import SPECS
from tests.ptx.cases import DTYPES, Case
from tests.ptx.launch import Options

# path, exchange, H, B, T: one hidden size that the blocks divide and one that they do not, more than one batch tile.
WAYS = (
    ("sequence", "", 17, 18, 3),
    ("sequence", "", 32, 3, 4),
    ("split", "poll", 64, 18, 3),
    ("split", "poll", 65, 33, 3),
    ("split", "counter", 64, 18, 3),
    ("split", "counter", 50, 33, 3),
    ("gluon", "", 64, 18, 3),
    ("gluon", "", 65, 9, 4),
    ("step", "", 33, 18, 3),
    ("step", "", 64, 5, 2),
)
QUICK_LENGTH = 48  # how many of them every test run executes


def _product() -> Iterator[Case]:
    """Options that do not depend on each other go round at their own pace, so that each meets each."""
    rules = [rule for rule in SPECS if rule in CELLS]
    for number, (target, dtype, rule, way) in enumerate(itertools.product((90, 80, 100), DTYPES, rules, WAYS)):
        path, exchange, H, B, T = way
        if path == "gluon" and target == 80:
            continue  # the plan declines: an instruction is missing
        if target != 90 and (dtype in ("float16", "float32x3") or H in (32, 50, 64)):
            continue  # what differs from sm_90 are loads and conversions: one dtype of each size says it
        yield Case(
            path, rule, dtype, H, B, T, exchange,
            programs=1 + number % 3,
            ids=number % 5 == 0,
            ragged=number % 3 == 0,
            reverse=number % 4 == 1,
            bias=number % 7 != 0,
            backward=number % 11 != 5,
            options=Options(target=target, weak=True, seed=number),
        )  # fmt: skip


CELLS = ("rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm")
EVERY = tuple(_product())
QUICK = tuple(random.Random(QUICK_LENGTH).sample(EVERY, QUICK_LENGTH))
