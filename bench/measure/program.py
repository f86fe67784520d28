"""A model and a mode as something to call: once to compare its numbers, many times to take its time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.cases.model import Model, Skipped
from bench.cases.task import Task
from fastcells.charlm import CharLM, Config, Vocabulary, generate
from fastcells.charlm.model import Scores


@dataclass(frozen=True)
class Program:
    """run: what is timed. numbers: what it computes. probe: the same operators, changing nothing."""

    run: Callable[[], object]
    numbers: Callable[[], Sequence[Tensor]]
    probe: Callable[[], object]


def program(task: Task, model: Model) -> Program:
    """The task's mode with this model."""
    modes = {
        "forward": _forward,
        "cell step": _forward,
        "backward": _backward,
        "forward+backward": _forward_backward,
        "training step": _training_step,
        "generate": _generate,
    }
    made = modes[task.case.mode](task, model)
    return replace(made, run=graphed(made.run, task.device)) if task.case.graph else made


def _forward(task: Task, model: Model) -> Program:
    def run() -> Tensor:
        with torch.no_grad():
            return model.forward(task.x)

    return Program(run, lambda: [run()], run)


def _backward(task: Task, model: Model) -> Program:
    """The graph is kept, so that forward runs once; on a GPU, cuDNN then copies its reserve space first."""
    leaves = [*task.leaves, *model.parameters]
    out = model.forward(task.x)

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, leaves, task.d_out, retain_graph=True)

    def probe() -> None:  # forward too: fallbacks are recognized by their forward operator
        torch.autograd.grad(model.forward(task.x), leaves, task.d_out)

    return Program(run, lambda: _in_torch_order(task, model, run()), probe)


def _forward_backward(task: Task, model: Model) -> Program:
    leaves = [*task.leaves, *model.parameters]

    def run() -> tuple[Tensor, ...]:
        out = model.forward(task.x)
        return (out, *torch.autograd.grad(out, leaves, task.d_out))

    def numbers() -> list[Tensor]:
        out, *gradients = run()
        return [out.detach(), *_in_torch_order(task, model, gradients)]

    return Program(run, numbers, run)


def _in_torch_order(task: Task, model: Model, gradients: Sequence[Tensor]) -> list[Tensor]:
    given = len(task.leaves)
    return [*gradients[:given], *model.to_torch(gradients[given:])]


def _training_step(task: Task, model: Model) -> Program:
    head = _head(task, model)
    parameters = [*model.parameters, *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True, capturable=task.case.graph)

    def loss() -> Tensor:
        hidden = model.forward(task.x)
        if isinstance(head, Scores):
            return head.loss(hidden, task.targets)
        return F.cross_entropy(head(hidden).flatten(0, 1), task.targets.flatten())

    def run() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    def numbers() -> list[Tensor]:
        value = loss()
        gradients = torch.autograd.grad(value, parameters)
        own = len(model.parameters)
        return [value.detach(), *model.to_torch(gradients[:own]), *gradients[own:]]

    return Program(run, numbers, numbers)  # run would train, and what is compared next would differ


def _head(task: Task, model: Model) -> nn.Linear:
    """The linear layer of the language model: ours is CharLM's, everybody else's is torch.nn's."""
    head = copy.deepcopy(task.head)
    if model.choice is None:
        return head
    impl = getattr(model.module, "impl", "auto")
    ours = Scores(head.in_features, head.out_features, impl=impl).to(task.device, task.dtype)
    ours.load_state_dict(head.state_dict())
    return ours


def _generate(task: Task, model: Model) -> Program:
    """T characters, each the likeliest: ours by fastcells.charlm.generate, theirs by the loop everybody writes."""
    write = _our_writer(task, model) if model.choice is not None else _their_writer(task, model)
    length = task.case.T
    return Program(lambda: write(length), lambda: [write(length)], lambda: write(3))


def _our_writer(task: Task, model: Model) -> Callable[[int], Tensor]:
    case = task.case
    vocabulary = Vocabulary(chr(0x4E00 + i) for i in range(case.I))
    impl = getattr(model.module, "impl", "auto")
    language_model = CharLM(case.I, Config(cell=case.cell.lower(), hidden=case.H, impl=impl))
    language_model.to(task.device, task.dtype)
    language_model.layer.load_state_dict(task.layer.state_dict())
    language_model.output.load_state_dict(task.head.state_dict())

    def write(length: int) -> Tensor:
        return vocabulary.encode(generate(language_model, vocabulary, vocabulary.characters[0], length))[1:]

    return write


def _their_writer(task: Task, model: Model) -> Callable[[int], Tensor]:
    layer = model.module
    if not isinstance(layer, nn.RNNBase):
        raise Skipped("generation is timed with layers")

    @torch.no_grad()
    def write(length: int) -> Tensor:
        character, state, written = torch.zeros(1, 1, dtype=torch.int64, device=task.device), None, []
        for _ in range(length):
            hidden, state = layer(task.one_hot(character), state)
            character = task.head(hidden)[0].argmax(-1, keepdim=True)
            written.append(int(character))
        return torch.tensor(written)

    return write


@dataclass(frozen=True)
class Replay:
    """A recorded graph, with what it recorded: tensors that only `run` holds, an optimizer's, are written at replay."""

    graph: torch.cuda.CUDAGraph
    run: Callable[[], object]

    def __call__(self) -> None:
        self.graph.replay()


def graphed(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`run` recorded once and replayed."""
    if device.type != "cuda":
        raise Skipped("CUDA graphs need a GPU")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what capturing wants: everything lazy has happened
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return Replay(graph, run)
