"""Which random calls there are, and many of them one after another, in a process that has to outlive them all."""

from __future__ import annotations

import faulthandler
import os
import random
import warnings
from collections import Counter

import torch

from fastcells.backends.cpu import native, policy, products
from tests.support.fuzz.call import Call, Wrong
from tests.support.fuzz.modules import Layer
from tests.support.fuzz.products import Gather, Linear, Matvec, Scatter, WeightGradients
from tests.support.fuzz.recurrences import Backward, Forward, Functional, Step
from tests.support.fuzz.rounded import ROUNDED_KINDS

EXPECTED = (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError)
FLOAT32_KINDS = (Forward,) * 6 + (Backward,) * 5 + (WeightGradients,) * 3 + (Gather,) * 3 + (Scatter,) * 3
FLOAT32_KINDS += (Functional,) * 4 + (Matvec,) * 2 + (Step,) * 3 + (Linear,) * 3 + (Layer,) * 4
KINDS: dict[str, tuple[type[Call], ...]] = {"float32": FLOAT32_KINDS, "bfloat16": ROUNDED_KINDS}


def one(number: int, dtype: str = "float32") -> str:
    """Make call `number` of those in a dtype. What it was and what it led to; raises Wrong."""
    random.seed(number)
    torch.manual_seed(number)
    torch.set_num_threads(1 + number // 100 % 4)  # libgomp starts and ends threads when it changes
    call = random.choice(KINDS[dtype])()
    wrong = random.random() < 0.45
    call.spoil(wrong)
    kind = type(call).__name__
    try:
        actual = call.run(call.arguments)
    except EXPECTED as error:
        if not wrong:
            raise Wrong(f"{kind} {call.changes}: a right call raises {type(error).__name__}: {error}") from error
        return f"{kind} {type(error).__name__}"
    except Exception as error:
        raise Wrong(f"{kind} {call.changes}: {type(error).__name__}: {error}") from error
    if wrong:
        raise Wrong(f"{kind} {call.changes}: a wrong call raises nothing")
    try:
        call.check(actual)
    except Wrong as error:
        raise Wrong(f"{kind} {call.changes}: {error}") from error
    return f"{kind} right"


def main(first: int, count: int, progress: int, dtype: str = "float32") -> None:
    """`count` calls; the number of the one that is running stands in the file `progress`."""
    faulthandler.enable()
    warnings.simplefilter("ignore")  # a fake tensor warns of its address
    native.WORK_OF_A_THREAD = 1  # a team for the smallest shapes too
    native._few_threads = lambda touched: torch.get_num_threads()
    products.LARGE_PRODUCT = products.MANY_ROWS = policy.BF16_ROWS_FROM = policy.BF16_TERMS_FROM = 1
    seen: Counter[str] = Counter()
    for number in range(first, first + count):
        os.pwrite(progress, b"%-9d" % number, 0)
        seen[one(number, dtype)] += 1
    for what, times in sorted(seen.items()):
        print(times, what)
