"""`fastcells doctor`: what this machine has, what `impl="auto"` runs on it, and whether every implementation is right.

Each implementation computes every cell in every dtype, forward and all gradients, against the reference cells in
float64, by the rule of accuracy.py.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor

import fastcells
from fastcells import functional, reference
from fastcells.accuracy import allowed_error, relative_error
from fastcells.backends.cpu import native
from fastcells.dispatch import IMPLEMENTATIONS, explain
from fastcells.errors import CannotRun
from fastcells.tuning import verdicts

T, B, I, H = 7, 5, 6, 24  # noqa: E741
SPLIT_H = 256  # too much for one program, but for an RNN in 16 bit
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CELLS: dict[str, tuple[str, int, int, dict[str, object]]] = {  # functional form, gates, states, options
    "rnn tanh": ("rnn", 1, 1, {}),
    "rnn relu": ("rnn", 1, 1, {"nonlinearity": "relu"}),
    "gru": ("gru", 3, 1, {}),
    "gru reset-before": ("gru", 3, 1, {"reset_after": False}),
    "lstm": ("lstm", 4, 2, {}),
}


@dataclass(frozen=True)
class Check:
    """One implementation of one cell in one dtype: root mean square errors against float64, and what they may be."""

    impl: str
    cell: str
    dtype: str
    forward: float = 0.0
    backward: float = 0.0
    limit_forward: float = 0.0
    limit_backward: float = 0.0
    obstacle: str = ""  # why it cannot run here

    @property
    def verdict(self) -> str:
        if self.obstacle:
            return f"cannot run: {self.obstacle}"
        good = self.forward <= self.limit_forward and self.backward <= self.limit_backward
        return "right" if good else "WRONG"


def main(say: Callable[[str], None] = print) -> int:
    """Print the report. Exit status 1 if an implementation that runs here is wrong."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels run in its interpreter then
    for name, value in environment(device):
        say(f"{name:12} {value}")
    say("")
    say('What impl="auto" runs:')
    for module, x, label in typical(device):
        say(f"  {label:34} {explain(module, x)}")
    say("")
    for line in remembered():
        say(line)
    say("")
    sizes = f"T={T}, B={B}, H={H}, or what follows the cell's name"
    say(f"Against float64 on {device} ({sizes}); errors are root mean squares, limits in brackets:")
    say(f"  {'impl':12} {'cell':20} {'dtype':9} {'forward':>19} {'gradients':>19}")
    wrong = 0
    for check in checks(device):
        wrong += check.verdict == "WRONG"
        errors = f"{check.forward:.1e} [{check.limit_forward:.1e}] {check.backward:.1e} [{check.limit_backward:.1e}]"
        shown = " " * 39 if check.obstacle else errors
        say(f"  {check.impl:12} {check.cell:20} {check.dtype:9} {shown} {check.verdict}")
    say("")
    say("everything that runs here is right" if wrong == 0 else f"{wrong} checks are WRONG")
    return 1 if wrong else 0


def forget(say: Callable[[str], None] = print) -> int:
    """Drop the user's verdicts."""
    memory = verdicts.memory()
    removed = memory.forget()
    say(f"{'removed' if removed else 'there was no'} {memory.path}")
    return 0


def remembered(today: datetime.date | None = None) -> Iterator[str]:
    """What has been measured, by machine, with its age."""
    memory, today = verdicts.memory(), today or datetime.date.today()
    machines = memory.everything()
    yield f"Measured: {memory.path}" if machines else f"Measured: nothing yet ({memory.path})"
    for machine, found in machines.items():
        yield f"  {machine.device}; {machine.versions}"
        for kind, verdict in sorted(found.items()):
            days = (today - datetime.date.fromisoformat(verdict.date)).days
            age = "today" if days < 1 else f"{days} day{'' if days == 1 else 's'} ago"
            yield f"    {kind:70} {verdict.chosen}, {age}"


def environment(device: torch.device) -> Iterator[tuple[str, str]]:
    """Versions, processor, threads, and how the kernels in C and in Triton can run."""
    yield "fastcells", fastcells.__version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads"
    obstacle = native.obstacle()
    threads = {"openmp": "in torch's OpenMP threads", "threads": "in threads of its own"}
    using = "" if obstacle else f"{native.instruction_set()} instructions, {threads[native.team()]}"
    bf16 = native.bf16_obstacle()
    using += "" if obstacle else f"; bfloat16: {bf16 or native.bf16_instruction_set()}"
    yield "C on the CPU", using or f"{obstacle}; impl='cpu' cannot run"
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        yield "triton", "not installed: the implementations triton, triton-step and gluon cannot run"
    else:
        how = "on the GPU" if device.type == "cuda" else "in the interpreter, to check numbers; no GPU was found"
        yield "triton", f"{triton}, kernels run {how}"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        yield "device", f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"


def typical(device: torch.device) -> Iterator[tuple[fastcells.RNN | fastcells.GRU | fastcells.LSTM, Tensor, str]]:
    """Layers and inputs that users have."""
    ids = torch.zeros(35, 32, dtype=torch.int64, device=device)
    x = torch.zeros(35, 32, 256, device=device)
    for name in ("RNN", "GRU", "LSTM"):
        layer = getattr(fastcells, name)(256, 256, device=device)
        yield layer, x, f"{name}, dense [35, 32, 256]"
        yield layer, ids, f"{name}, token ids [35, 32]"
    yield fastcells.GRU(256, 256, reset_after=False, device=device), x, "GRU reset-before, dense"


def checks(device: torch.device) -> Iterator[Check]:
    """Every implementation, cell and dtype."""
    for impl in IMPLEMENTATIONS[1:]:
        for cell in CELLS:
            for dtype in DTYPES:
                yield check(impl, cell, dtype, device)
    if device.type == "cuda":  # the interpreter runs one program after another, and these wait for each other
        for cell in CELLS:
            for dtype in DTYPES:
                yield check("triton", cell, dtype, device, SPLIT_H)


def check(impl: str, cell: str, dtype: torch.dtype, device: torch.device, H: int = H) -> Check:
    """One implementation of one cell in one dtype."""
    form, gates, states, options = CELLS[cell]
    label = cell if H != SPLIT_H else f"{cell} {H}"
    name = str(dtype).removeprefix("torch.")
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device, dtype)

    rows, scale = gates * H, H**-0.5
    inputs = [random(T, B, I), *(random(B, H) for _ in range(states))]
    inputs += [random(rows, I, scale=scale), random(rows, H, scale=scale), random(rows), random(rows)]
    d_outs = [random(T, B, H), *(random(B, H) for _ in range(states))]

    def run(function: Callable[..., tuple[Tensor, ...]], to: torch.dtype, **more: object) -> list[Tensor]:
        leaves = [p.to(to).requires_grad_() for p in inputs]
        outs = function(*leaves, **options, **more)
        gradients = torch.autograd.grad(outs, leaves, [d.to(to) for d in d_outs])
        return [_flat(outs), _flat(gradients)]

    exact = run(getattr(reference, form), torch.float64)
    with _matmuls_as_ours():
        base = run(getattr(reference, form), dtype)
    try:
        ours = run(getattr(functional, form), dtype, impl=impl)
    except CannotRun as error:
        return Check(impl, label, name, obstacle=error.obstacle)
    forward, backward = (relative_error(o, e) for o, e in zip(ours, exact, strict=True))
    kinked = cell == "rnn relu"
    limits = [allowed_error(relative_error(b, e), kinked, dtype, device) for b, e in zip(base, exact, strict=True)]
    return Check(impl, label, name, forward, backward, limits[0], limits[1])


@contextmanager
def _matmuls_as_ours() -> Iterator[None]:
    """The reference's float32 matmuls in TF32 where ours are: both follow a switch, and not the same one."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors])
