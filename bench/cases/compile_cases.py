"""What `bench.compile` compiles: every way to run every rule, at every row of the plan, or a selection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from bench.cases.rules import rule_named
from fastcells.kernels.gluon.plan import Resident, resident_plan
from fastcells.kernels.triton import plan
from fastcells.kernels.triton.exchange import EXCHANGES
from fastcells.kernels.triton.rules import RULES

DEVICES = {80: plan.Device(80, 108), 90: plan.Device(90, 132), 100: plan.Device(100, 148)}  # A100, H100, B200
DTYPES = {  # and the precision of the matmuls
    "bfloat16": (torch.bfloat16, "ieee"),
    "float16": (torch.float16, "ieee"),
    "float32": (torch.float32, "tf32"),
    "float32x3": (torch.float32, "tf32x3"),
}
SPLIT_SIZES = (200, 251, 256, 511, 512, 768, 1024)
SPLIT_SELECTED = {"bfloat16": (512,), "float32": (256,), "float32x3": (256,)}
STEP_SIZES = (251, 256)
# Rows that are not aligned, and so are read element by element: where kernels once spilled, with one Triton or another.
ODD_SELECTED = (
    ("bfloat16", "split", "lstm", 251, "poll"),
    ("bfloat16", "split", "gru_reset_before", 251, "poll"),
    ("bfloat16", "split", "gru", 511, "poll"),
    ("bfloat16", "split", "lstm", 511, "poll"),
    ("float32", "step", "lstm", 251, ""),
    ("float32x3", "step", "lstm", 251, ""),
)


@dataclass(frozen=True)
class Case:
    """One way to run one rule: path "sequence", "split", "step" or "diagonal", or "gluon" for those in Gluon."""

    path: str
    rule: str
    dtype: str
    H: int
    target: int
    B: int = 32
    exchange: str = ""
    resets: bool = False
    directions: int = 1  # 2: both of a layer in one launch, of those in Gluon

    def plan(self, *, backward: bool = False) -> plan.Plan | Resident | str:
        """Its row."""
        dtype, precision = DTYPES[self.dtype]
        spec = rule_named(self.rule).spec
        size, gates, device = dtype.itemsize, spec.num_gates, DEVICES[self.target]
        if self.path == "gluon":
            resident: dict[str, Any] = {"precision": precision, "backward": backward, "directions": self.directions}
            resident["two_products"] = rule_named(self.rule).reset_hidden is not None
            return resident_plan(self.H, self.B, gates, size, device, **resident)
        if self.path == "diagonal":
            return plan.diagonal_blocks()
        if self.path == "step":
            return plan.step_blocks(size)
        options: dict[str, Any] = {"precision": precision, "backward": backward, **plan.of_cell(spec)}
        if self.path == "sequence":
            return plan.sequence_plan(self.H, self.B, gates, size, device, **options)
        return plan.split_plan(self.H, self.B, gates, size, device, exchange=self.exchange, **options)


def cases(targets: tuple[int, ...], dtypes: tuple[str, ...]) -> Iterator[Case]:
    """Every path, rule, dtype and plan row."""
    for target in targets:
        for rule in RULES:
            for dtype in dtypes:
                yield from sequence_cases(rule, dtype, target)
                yield from split_cases(rule, dtype, target)
                yield from (Case("step", rule, dtype, H, target) for H in STEP_SIZES)


def sequence_cases(rule: str, dtype: str, target: int) -> Iterator[Case]:
    """Each size that fits one program, with few rows for one and with many."""
    for H in (32, 64, 128, 256):
        for B in (32, 4096):
            case = Case("sequence", rule, dtype, H, target, B)
            if isinstance(case.plan(), plan.Blocks):
                yield case


def split_cases(rule: str, dtype: str, target: int) -> Iterator[Case]:
    """Each size with each exchange, at the first B that gets other blocks than the smaller ones."""
    for exchange in EXCHANGES:
        for H in SPLIT_SIZES:
            seen: set[tuple[int, int, int]] = set()
            for B in range(8, 2049, 8):
                case = Case("split", rule, dtype, H, target, B, exchange)
                rows = tuple(case.plan(backward=backward) for backward in (False, True))
                forms = {
                    (r.blocks.batch, r.blocks.hidden, backward)
                    for backward, r in enumerate(rows)
                    if isinstance(r, plan.Split)
                }
                if forms - seen:
                    seen |= forms
                    yield case


def selection(targets: tuple[int, ...], dtypes: tuple[str, ...]) -> Iterator[Case]:
    """Every kernel, rule and target, at the sizes that are tightest; float16 compiles as bfloat16 does."""
    for case in cases(targets, tuple(dtype for dtype in dtypes if dtype != "float16")):
        odd = (case.dtype, case.path, case.rule, case.H, case.exchange) in ODD_SELECTED
        sizes = (256,) if case.exchange == "counter" else SPLIT_SELECTED.get(case.dtype, ())
        tight = case.H in sizes if case.path == "split" else case.H % 8 == 0
        # The cell with the second exchange is the counter's worst case, the split kernels are tf32x3's.
        counted = case.exchange == "counter" and case.rule != "gru_reset_before"
        if odd or (tight and not counted and (case.dtype, case.path) != ("float32x3", "sequence")):
            yield case


GLUON_SIZES = (128, 256, 512, 768, 1024)
GLUON_SELECTED = {"bfloat16": (1024,), "float32": (512,), "float32x3": (256,)}  # the largest that fit


def gluon_cases(targets: tuple[int, ...], dtypes: tuple[str, ...]) -> Iterator[Case]:
    """Every rule, dtype and size that is planned for the Gluon kernels, which are for sm_90 and later."""
    for target, rule, dtype, H, directions in product(targets, RULES, dtypes, GLUON_SIZES, (1, 2)):
        case = Case("gluon", rule, dtype, H, target, directions=directions)
        if all(isinstance(case.plan(backward=backward), Resident) for backward in (False, True)):
            yield case


def gluon_selection(targets: tuple[int, ...], dtypes: tuple[str, ...]) -> Iterator[Case]:
    """Every rule and target at the sizes that are tightest."""
    for case in gluon_cases(targets, dtypes):
        if case.H in GLUON_SELECTED.get(case.dtype, ()):
            yield case
