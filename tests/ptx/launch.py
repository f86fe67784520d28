"""The machine in the kernels' place: the launchers run on CPU tensors, and what they launch is compiled and executed.

    with executed(Options(target=90, weak=True)) as launches:
        run_forward(...)

Needs a process in which Triton was imported without TRITON_INTERPRET; `worker.py` starts one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from triton.backends.nvidia.compiler import CUDABackend

from bench.measure.launched import compile_launch, signature
from fastcells.kernels.gluon import launch as launch_gluon
from fastcells.kernels.triton import launch_diagonal, launch_sequence, launch_split, launch_step
from tests.ptx.machine import Machine
from tests.ptx.memory import Memory
from tests.ptx.parse import Text, parse
from tests.ptx.translate import Translation

LAUNCHERS = (launch_sequence, launch_split, launch_step, launch_diagonal, launch_gluon)
Edit = Callable[[Text], Text]  # a change to a kernel, to see whether it is noticed


@dataclass(frozen=True)
class Options:
    """How a launch is executed. What is not said here stands in `Machine`.

    edits: changes to a kernel's text, by the kernel's name.
    """

    target: int = 90
    seed: int = 0
    weak: bool = False
    stale: float = 0.9
    edits: dict[str, Edit] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)


@dataclass
class Launch:
    """What was executed."""

    kernel: str
    grid: tuple[int, ...]
    ptx: str  # before any edit
    translation: Translation
    machine: Machine


_texts: dict[tuple[object, ...], tuple[str, int]] = {}
_translations: dict[tuple[str, Edit | None], Translation] = {}


@contextmanager
def executed(options: Options) -> Iterator[list[Launch]]:
    """Within, the launchers' kernels run in the machine; yields the list of launches so far."""
    launches: list[Launch] = []
    kernels = [(m, name, kernel) for m in LAUNCHERS for name, kernel in vars(m).items() if name.endswith("_kernel")]
    try:
        for module, name, kernel in kernels:
            setattr(module, name, _InMachine(name, kernel, options, launches))
        yield launches
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)


class _InMachine:
    """What stands where a kernel stood: `kernel[grid](**arguments)`."""

    def __init__(self, name: str, kernel: Any, options: Options, launches: list[Launch]) -> None:
        self.name, self.kernel, self.options, self.launches = name, kernel, options, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(**arguments: Any) -> None:
            text, shared = compiled(self.kernel, arguments, self.options.target)
            translation = translated(text, self.options.edits.get(self.name))
            memory = Memory(self.options.weak, random.Random(self.options.seed), self.options.stale)
            machine = Machine(translation, grid, shared, memory, **self.options.machine)
            self.launches.append(Launch(self.name, grid, text, translation, machine))
            kinds = signature(self.kernel, arguments)
            values = _addresses(memory, [arguments[name] for name, kind in kinds.items() if kind != "constexpr"])
            # Triton adds pointers to memory that no kernel here asks for.
            values += [0] * (len(translation.text.parameters) - len(values))
            machine.run(values, together=bool(arguments.get("launch_cooperative_grid")))

        return launch


def translated(text: str, edit: Edit | None) -> Translation:
    """A kernel's text, changed or as it is, for the machine."""
    if (text, edit) not in _translations:
        if edit:  # only the last of them is used again, and each takes megabytes
            for key in [key for key in _translations if key[1] is not None]:
                del _translations[key]
        parsed = parse(text)
        _translations[text, edit] = Translation(edit(parsed) if edit else parsed)
    return _translations[text, edit]


def _addresses(memory: Memory, values: list[Any]) -> list[int]:
    """The arguments as numbers; tensors become part of the memory, those of one storage once."""
    starts: dict[int, int] = {}
    numbers = []
    for position, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            if storage.data_ptr() not in starts:
                array = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
                starts[storage.data_ptr()] = memory.add(array, f"argument {position}")
            value = starts[storage.data_ptr()] + value.data_ptr() - storage.data_ptr()
        numbers.append(int(value))
    return numbers


def compiled(kernel: Any, arguments: dict[str, Any], target: int) -> tuple[str, int]:
    """PTX and bytes of shared memory; what no kernel is compiled for, as T and B, tells no launches apart."""
    sizes = {p.name for p in kernel.params if p.do_not_specialize and type(arguments[p.name]) is int}
    key = (kernel, target, *((name, name in sizes or _what_matters(value)) for name, value in arguments.items()))
    if key not in _texts:
        # Nobody runs the machine code here, and it takes the most time. Under a key of its own in Triton's cache, where
        # others would take what is missing for what they compile.
        no_code = mock.patch.object(CUDABackend, "make_cubin", return_value=b"")
        with no_code, mock.patch.object(CUDABackend, "hash", return_value="without machine code"):
            result = compile_launch(kernel, arguments, target)
        _texts[key] = result.asm["ptx"], result.metadata.shared
    return _texts[key]


def _what_matters(value: Any) -> object:
    """A tensor counts by its dtype and by whether 16 divides its address."""
    return (value.dtype, value.data_ptr() % 16) if isinstance(value, torch.Tensor) else value
