"""What is run in the machine: one recurrence, forward and backward, against float64."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.cases.compile_cases import DEVICES, DTYPES
from bench.cases.rules import rule_named, weight_shape
from fastcells.backends.base import Steps
from fastcells.backends.kernel_backend import h_and_c, one_by_one
from fastcells.backends.triton.operators import run_backward, run_forward
from fastcells.kernels.gluon.launch import gluon_backward, gluon_forward
from fastcells.kernels.gluon.plan import Resident, resident_plan
from fastcells.kernels.triton import plan
from fastcells.kernels.triton.launch import BackwardPass, ForwardPass, StepInput
from fastcells.spec import CellSpec, RecurrentWeights
from tests.ptx.launch import Options, executed
from tests.ptx.memory import Race
from tests.ptx.parse import Text

ROUNDING = {  # of one factor of a matmul
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
    "float32": 2.0**-10,  # the tensor core cuts, where others round
    "float32x3": 2.0**-20,
}
ROUNDINGS = 8  # how many of these may add up in a result: the kernels come to 2, a wrong term to hundreds
VOCABULARY = 11
LAUNCHERS: dict[str, tuple[Any, Any]] = {"gluon": (gluon_forward, gluon_backward)}


@dataclass(frozen=True)
class Case:
    """One run of forward and backward, or of a forward that saves nothing.

    path: "sequence", "split", "gluon", "step" or "diagonal"; form: of plan.FORMS, of a split kernel, or 1 for a
    sequence kernel with few rows; programs: batch tiles side by side; both: both directions in one launch.
    """

    path: str
    rule: str
    dtype: str
    H: int
    B: int
    T: int
    exchange: str = "poll"
    form: int = 0
    programs: int = 2
    ids: bool = False
    ragged: bool = False
    reverse: bool = False
    bias: bool = True
    backward: bool = True
    both: bool = False
    resets: bool = False
    options: Options = field(default_factory=Options)

    def __str__(self) -> str:
        flags = [name for name in ("both", "ids", "ragged", "reverse", "resets") if getattr(self, name)]
        flags += [] if self.bias else ["no-bias"]
        flags += [] if self.backward else ["forward"]
        way = f"split-{self.exchange}" if self.path == "split" else self.path
        way += str(self.form) if self.form else ""
        weak = ["weak"] if self.options.weak else []
        target = f"sm_{self.options.target}"
        return "-".join([way, self.rule, self.dtype, f"T{self.T}-B{self.B}-H{self.H}", target, *flags, *weak])

    def plan(self, *, backward: bool) -> plan.Plan | Resident:
        """How the launcher is asked to launch it: the plan's blocks for this shape."""
        dtype, precision = DTYPES[self.dtype]
        gates, size = rule_named(self.rule).spec.num_gates, dtype.itemsize
        device = DEVICES[self.options.target]
        how: Any = {"precision": precision, "backward": backward}
        if self.path == "diagonal":
            return plan.diagonal_blocks()
        if self.path == "step":
            return plan.step_blocks(size)
        if self.path == "gluon":
            second = rule_named(self.rule).reset_hidden is not None
            directions = 2 if self.both else 1
            resident = resident_plan(
                self.H, self.B, gates, size, device, two_products=second, directions=directions, **how
            )
            assert isinstance(resident, Resident), resident
            return replace(resident, groups=self.programs)
        how |= plan.of_cell(rule_named(self.rule).spec)
        if self.path == "sequence":
            # On a card with few multiprocessors the plan takes more rows a program.
            device = device if self.form else replace(device, multiprocessors=0)
            found = plan.sequence_plan(self.H, self.B, gates, size, device, **how)
            assert isinstance(found, plan.Blocks), found
            return found
        with mock.patch.object(plan, "FORMS", plan.FORMS[self.form : self.form + 1]):
            split = plan.split_plan(self.H, self.B, gates, size, device, exchange=self.exchange, **how)
        assert isinstance(split, plan.Split), split
        return replace(split, groups=self.programs)


@dataclass
class Result:
    """Errors relative to the largest exact value, what raced, and what was executed."""

    errors: dict[str, float]
    limit: float
    races: dict[str, list[Race]]
    places: dict[str, str]  # the instructions of the races, by kernel and line
    instructions: dict[str, Counter[str]]  # of each kernel, in all its launches
    program_steps: dict[str, int]  # programs times the steps that they do
    kernels: dict[str, Text]  # what was executed, by its PTX
    seconds: float

    @property
    def right(self) -> bool:
        return max(self.errors.values()) <= self.limit and not any(self.races.values())

    def describe_races(self) -> str:
        """The two instructions of each race."""
        pairs = [(name, race) for name, races in self.races.items() for race in races]
        return "\n".join(
            f"{name}, byte {race.byte} of {race.where}, after {race.epoch} barriers: "
            f"{self.places[f'{name}:{race.line}']} and {self.places[f'{name}:{race.other}']}"
            for name, race in pairs
        )


def run(case: Case) -> Result:
    """Forward and, if asked for, backward; torch.empty gives NaN."""
    torch.use_deterministic_algorithms(True)  # only so that uninitialized memory is filled with NaN
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    start = time.perf_counter()
    rule, (dtype, precision), rounding = rule_named(case.rule), DTYPES[case.dtype], ROUNDING[case.dtype]
    spec = rule.spec
    torch.manual_seed(case.options.seed)
    T, B, H, rows = case.T, case.B, case.H, spec.num_gates * case.H
    each = (2,) if case.both else ()
    state = tuple(torch.randn(*each, B, H).tanh().to(dtype) for _ in spec.states)
    if len(state) > 2:  # of a normaliser the reciprocal is taken
        state = (state[0], *(s.abs() + 0.5 for s in state[1:]))
    w = (torch.randn(*each, *weight_shape(rule, H)) / H**0.5).to(dtype)
    extra = torch.randn(spec.num_extra, H).to(dtype) if spec.extra else None
    b = torch.randn(*each, rows).to(dtype) if case.bias else None
    lengths = torch.randint(0, T + 1, (B,), dtype=torch.int32) if case.ragged else None
    given, x = _input(case, rows, dtype)
    d_hidden = torch.randn(*each, T, B, H).to(dtype)
    d_last = tuple(torch.randn(*each, B, H).to(dtype) for _ in spec.states)
    if spec.kinked and len(state) > 2:  # sLSTM's h is the same on either side of a stabiliser's kink, m is not
        d_last = (d_last[0], *(torch.zeros_like(d) for d in d_last[1:]))
    initial, d_end = (tuple(s for s in h_and_c(each) if s is not None) for each in (state, d_last))
    inputs = [given.x, given.ids, given.bias, *initial, w, b, lengths, d_hidden, *d_end, extra]
    inputs = [a for a in inputs if a is not None]
    resets = torch.rand(T, B) < 0.3 if case.resets else None
    common = (rule, initial, w, lengths, case.reverse, precision)
    flags = None if resets is None else resets.to(torch.uint8)
    inputs += [] if flags is None else [flags]
    copies = [a.clone() for a in inputs]
    forward, backward = LAUNCHERS.get(case.path, (run_forward, run_backward))
    with executed(case.options) as launches:
        ahead = ForwardPass(*common, given, b, save=case.backward, resets=flags, extra=extra)
        out = forward(ahead, case.plan(backward=False))
        results: dict[str, Any] = {"hidden": out.hidden, "last": one_by_one(spec, *out.last)}
        if case.backward:
            behind = BackwardPass(*common, out, d_hidden, d_end, resets=flags, extra=extra)
            back = backward(behind, case.plan(backward=True))
            results |= {"d_x": back.d_x.flatten(-2), "d_gates": back.d_gates.flatten(-2)}
            results |= {"d_state": one_by_one(spec, *back.d_state)}
            results |= {} if back.d_extra is None else {"d_extra": back.d_extra}
            results |= {} if back.d_w is None else {"d_w": back.d_w.flatten()}
    own, limit = (x, state, w, b, d_hidden, d_last, out.hidden), ROUNDINGS * rounding
    walk = Steps(case.reverse, lengths, resets)
    if case.both:
        walks = walk, walk._replace(reverse=not case.reverse)
        exact = _stacked([reference(spec, walks[i], limit, *_of(i, own)) for i in (0, 1)])
    else:
        exact = reference(spec, walk, limit, *own, extra=extra)
    changed = not all(map(torch.equal, inputs, copies))
    errors = {name: max(map(error, _tensors(value), _tensors(exact[name]))) for name, value in results.items()}
    errors["inputs"] = math.inf if changed else 0.0
    races: dict[str, list[Race]] = {}
    kernels = {launch.ptx: launch.translation.text for launch in launches}
    places, instructions, steps = {}, dict[str, Counter[str]](), Counter[str]()
    for launch in launches:
        races.setdefault(launch.kernel, []).extend(launch.machine.races)
        for race in launch.machine.races:
            for line in (race.line, race.other):
                places[f"{launch.kernel}:{line}"] = str(launch.translation.at.get(line, "?"))
        instructions.setdefault(launch.kernel, Counter()).update(launch.machine.instructions())
        steps[launch.kernel] += math.prod(launch.grid) * (1 if case.path == "step" else T)
    return Result(errors, limit, races, places, instructions, steps, kernels, time.perf_counter() - start)


def _input(case: Case, rows: int, dtype: torch.dtype) -> tuple[StepInput, Tensor]:
    """What the kernels get, and the same in float64: [T, B, rows]."""
    each = (2,) if case.both else ()
    if not case.ids:
        x = torch.randn(*each, case.T, case.B, rows).to(dtype)
        return StepInput(x), x.double()
    table, bias = torch.randn(*each, VOCABULARY, rows).to(dtype), torch.randn(*each, rows).to(dtype)
    kind = torch.int32 if case.H % 2 else torch.int64
    ids = torch.randint(-1, VOCABULARY + 1, (case.T, case.B), dtype=kind)  # some of them no ids
    ids.view(-1)[:2] = torch.tensor([-1, VOCABULARY])
    known = ((ids >= 0) & (ids < VOCABULARY))[..., None]
    read = torch.where(known, table[..., ids.long().clamp(0, VOCABULARY - 1), :].double(), 0.0)
    return StepInput(table, ids, bias), read + bias.double()[..., None, None, :]


def reference(
    spec: CellSpec,
    steps: Steps,
    limit: float,
    x: Tensor,
    state: tuple[Tensor, ...],
    w: Tensor,
    b: Tensor | None,
    d_hidden: Tensor,
    d_last: tuple[Tensor, ...],
    rounded: Tensor,
    extra: Tensor | None = None,
) -> dict[str, Any]:
    """The spec's step in float64, unrolled; gradients by autograd.

    rounded: the kernel's own states. They say on which side of its kink a relu was that is nearer to it than `limit`.
    """
    T = len(x)
    x = x.clone().requires_grad_()
    h = first = tuple(s.double().requires_grad_() for s in state)
    shape = spec.recurrent.shape(spec.num_gates, state[0].shape[1])
    weight = w.double().view(shape).requires_grad_()
    further = () if extra is None else tuple(p.double().requires_grad_() for p in extra)
    # Where both are the same, as of a cell whose last product is another's operand, the gradient of x says it.
    bias = torch.zeros(x.shape[-1:]) if b is None else b
    bias = (bias.double() if spec.same_gradient else bias.double().expand(x.shape).clone()).requires_grad_()
    hidden: list[Tensor] = [torch.empty(0)] * T
    mask = steps.mask(T)
    for t in steps.order(T):
        if steps.resets is not None:
            starts = steps.resets[t][:, None] if mask is None else steps.resets[t][:, None] & mask[t]
            h = tuple(torch.where(starts, 0.0, s) for s in h)
        weights = RecurrentWeights(weight, bias if spec.same_gradient else bias[t], extra=further)
        new = spec.step(x[t], h, weights)
        if spec.name == "rnn_relu":
            before = x[t] + h[0] @ weight.t() + bias
            near = before.abs() < limit * before.abs().max()
            new = (torch.where(torch.where(near, rounded[t] > 0, before > 0), before, 0.0 * before),)
        if mask is not None:
            new = tuple(torch.where(mask[t], a, old) for a, old in zip(new, h, strict=True))
        h, hidden[t] = new, new[0]
    out = torch.stack(hidden)
    loss = (out * steps.zero_past_length(d_hidden.double())).sum()
    loss = loss + sum((a * d.double()).sum() for a, d in zip(h, d_last, strict=True))
    d_x, d_gates, d_w, *d = torch.autograd.grad(loss, [x, bias, weight, *first, *further])
    d_gates, d_state, d_extra = d_x if spec.same_gradient else d_gates, tuple(d[: len(h)]), tuple(d[len(h) :])
    found = {"hidden": out.detach(), "last": h, "d_x": d_x, "d_gates": d_gates, "d_state": d_state, "d_w": d_w}
    return found | ({"d_extra": torch.stack(d_extra)} if d_extra else {})


def error(actual: Tensor, exact: Tensor) -> float:
    """Largest difference relative to the largest exact value; infinity where something is NaN."""
    difference = (actual.double() - exact.detach()).abs().nan_to_num(nan=float("inf")).max().item()
    return difference / max(exact.abs().max().item(), 1e-9)


def _of(direction: int, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """One direction's part of each tensor, or tuple of tensors."""
    return tuple(_of(direction, v) if isinstance(v, tuple) else None if v is None else v[direction] for v in values)


def _stacked(each: list[dict[str, Any]]) -> dict[str, Any]:
    """Both directions' results, as a launch of both returns them."""
    first, second = each
    return {
        name: torch.stack([value, second[name]])
        if isinstance(value, Tensor)
        else tuple(map(torch.stack, zip(value, second[name], strict=True)))
        for name, value in first.items()
    }


def _tensors(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
