"""Who is timed. A contender turns a task into a model, or says why it cannot.

Peers that do not import are skipped with that reason; see bench/cases/peers.py.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastcells
from bench.cases import peers
from bench.cases.case import Case
from bench.cases.loops import first, over_cell
from bench.cases.model import Build, Model, Skipped, whole_layer
from bench.cases.task import Input, Task
from fastcells import reference
from fastcells.backends.base import Choice
from fastcells.charlm import stepper
from fastcells.dispatch import IMPLEMENTATIONS


def torch_nn(task: Task) -> Model:
    """The baseline: torch.nn's layer (cuDNN on a GPU; ATen, and oneDNN for the LSTM, on a CPU), or its cell."""
    if task.case.mode == "cell step":
        return _cell(task, _torch_cell(task))
    layer = copy.deepcopy(task.layer)
    layer.flatten_parameters()  # a copy's are not, and cuDNN would gather them at each call
    return Model(lambda x: _data(layer(task.one_hot(x))[0]), list(layer.parameters()), layer)


def ours(impl: str) -> Build:
    """fastcells with `impl=impl`."""

    def build(task: Task) -> Model:
        case = task.case
        options = {"device": task.device, "dtype": task.dtype, "impl": impl}
        try:
            if case.mode == "cell step":
                cell = getattr(fastcells, case.cell + "Cell")(case.I, case.H, **options)
                _load(cell, task)
                return _cell(task, cell, _explained(cell, _first(task), case))
            layer = getattr(fastcells, case.cell)(
                case.I, case.H, num_layers=case.layers, bidirectional=case.bidirectional, **options
            )
            layer.load_state_dict(task.layer.state_dict())
            choice = _explained(layer, task.x, case)
        except fastcells.CannotRun as error:
            raise Skipped(str(error)) from None
        return Model(lambda x: _data(layer(x)[0]), list(layer.parameters()), layer, choice=choice)

    return build


def _explained(module: nn.Module, x: Input, case: Case) -> Choice:
    """What runs in the case, with gradients where there are any, and one step at a time where text is written."""
    if case.mode == "generate":
        return stepper.choose(module)  # type: ignore[arg-type]
    with torch.set_grad_enabled(case.mode not in ("forward", "cell step", "generate")):
        module(x)  # what the first call measures may change what the next ones run
        return next(iter(fastcells.explain(module, x).values()))


def cell_loop(task: Task) -> Model:
    """torch.nn's cell, called once a step from Python."""
    whole_layer(task)
    cell = _torch_cell(task)

    def forward(x: Input) -> Tensor:
        vectors = task.one_hot(x)
        assert isinstance(vectors, Tensor)
        return over_cell(cell, vectors)

    return Model(forward, list(cell.parameters()), cell)


def compiled_cell_loop(task: Task) -> Model:
    """The same loop through torch.compile, as one graph."""
    model = cell_loop(task)
    if task.case.T > 64:
        raise Skipped(f"torch.compile unrolls the loop: {task.case.T} steps would take minutes to compile")
    compiled = torch.compile(model.forward, fullgraph=True, dynamic=False)
    try:
        compiled(task.x)
    except Exception as error:  # a compiler that is missing fails in many ways
        raise Skipped(f"torch.compile failed: {str(error).splitlines()[0]}") from None
    return Model(compiled, model.parameters, model.module)


def textbook(task: Task) -> Model:
    """fastcells.reference: the equations in plain torch."""
    if task.case.mode in ("cell step", "generate"):
        raise Skipped("the reference is timed as a layer")
    layer = copy.deepcopy(task.layer)
    return Model(lambda x: _data(reference.layer(layer, x)[0]), list(layer.parameters()), layer)


def _cell(task: Task, cell: nn.Module, choice: Choice | None = None) -> Model:
    state = task.state if task.case.cell == "LSTM" else task.state[0]
    x = _first(task)
    return Model(lambda _: first(cell(x, state)), list(cell.parameters()), cell, choice=choice)


def _first(task: Task) -> Tensor:
    assert isinstance(task.x, Tensor)
    return task.x.detach()[0]


def _torch_cell(task: Task) -> nn.Module:
    cell: nn.Module = getattr(nn, task.case.cell + "Cell")(
        task.case.I, task.case.H, device=task.device, dtype=task.dtype
    )
    _load(cell, task)
    return cell


def _load(cell: nn.Module, task: Task) -> None:
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in task.layer.state_dict().items()})


def _data(out: Input) -> Tensor:
    return out.data if isinstance(out, PackedSequence) else out


def contenders() -> dict[str, Build]:
    """All by name; each is timed against `torch_nn`."""
    own = {f"fastcells-{impl}": ours(impl) for impl in IMPLEMENTATIONS}
    loops = {"cell-loop": cell_loop, "compiled-cell-loop": compiled_cell_loop, "reference": textbook}
    return {**own, **loops, **peers.PEERS}


def chosen(case: Case, selection: str) -> list[str]:
    """Who is timed on a case: in a short selection, loops at the lesson's shape only, and nothing that compiles."""
    names = list(contenders())
    if selection == "full":
        return names
    lesson = (case.T, case.H) == (35, 256) and case.mode in ("forward+backward", "training step")
    slow = [] if lesson or selection == "smoke" else ["cell-loop", "reference"]
    return [name for name in names if name not in ("compiled-cell-loop", *slow)]


def as_auto(task: Task, contender: str) -> bool:
    """Whether a contender is what "auto" runs, under its own name."""
    impl = contender.removeprefix("fastcells-")
    if impl == "auto" or impl not in IMPLEMENTATIONS:
        return False
    named, automatic = (ours(name)(task).choice for name in (impl, "auto"))
    assert named is not None and automatic is not None
    return (named.impl, named.path) == (automatic.impl, automatic.path)
