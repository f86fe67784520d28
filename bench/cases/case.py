"""What is timed, as data: cells, modes, shapes and dtypes. The tests run the smallest selection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

CELLS = ("GRU", "LSTM", "RNN")
MODES = ("forward", "backward", "forward+backward", "training step", "cell step", "generate")
GPU_FORMATS = (("bfloat16", ""), ("float32", "tf32"))  # dtype and precision: what most train in
SLOPE = (10, 35)  # two lengths of one shape: the slope between them is the time of one more step


@dataclass(frozen=True)
class Case:
    """One cell at one shape, and what is done with it.

    mode: "forward" is without gradients; "training step" adds a linear layer, cross-entropy and fused Adam; "cell
    step" is one step of the cell, without gradients; "generate" writes T characters, one after the other.
    """

    cell: str
    mode: str
    T: int = 35
    B: int = 32
    I: int = 256  # noqa: E741 the input size; with ids, the vocabulary
    H: int = 256
    dtype: str = "float32"
    precision: str = ""  # of float32 matmuls on a GPU: "tf32" or "strict"
    layers: int = 1
    bidirectional: bool = False
    packed: bool = False
    ids: bool = False  # token ids, and explicit one-hots for contenders that take none
    graph: bool = False  # replayed as a CUDA graph

    def __str__(self) -> str:
        shape = f"{self.cell}-{self.mode.replace(' ', '_')}-T{self.T}-B{self.B}-I{self.I}-H{self.H}-{self.dtype}"
        extra = [self.precision] if self.precision else []
        extra += [f"{self.layers}layers"] if self.layers > 1 else []
        extra += [name for name in ("bidirectional", "packed", "ids", "graph") if getattr(self, name)]
        return "-".join([shape, *extra])


FIELDS = tuple(f.name for f in fields(Case))


def lesson(cell: str) -> Case:
    """The character language model's training step, at the shape of the lessons."""
    return Case(cell, "training step", I=1027, ids=True)


def generation(cell: str) -> Case:
    """1,000 characters by the same model."""
    return replace(lesson(cell), mode="generate", T=1000, B=1)


def smoke() -> Iterator[Case]:
    """Every mode and option once, so small that it says nothing about speed."""
    tiny = Case("GRU", "forward", T=3, B=2, I=5, H=4)
    for cell in CELLS:
        for mode in ("forward", "backward", "forward+backward", "cell step"):
            yield replace(tiny, cell=cell, mode=mode, T=1 if mode == "cell step" else 3)
        yield replace(tiny, cell=cell, mode="training step", ids=True)
        yield replace(tiny, cell=cell, mode="generate", B=1, ids=True)
    yield replace(tiny, mode="forward+backward", layers=2, bidirectional=True)
    yield replace(tiny, mode="forward+backward", packed=True)


def short(device: str) -> Iterator[Case]:
    """A few minutes: the lesson's shape first, then the layer alone, over H and at a second length."""
    for case in dict.fromkeys(_short()):
        yield from _on(device, case, full=False)


def full(device: str) -> Iterator[Case]:
    """The short selection, then one axis at a time away from the lesson's shape: hours on a CPU."""
    for case in dict.fromkeys([*_short(), *_sweeps()]):
        yield from _on(device, case, full=True)


def _short() -> Iterator[Case]:
    for cell in CELLS:
        yield lesson(cell)
    for cell in CELLS:
        for mode in ("forward", "backward", "forward+backward"):
            yield Case(cell, mode)
        for H in (64, 128, 256, 512):
            for T in SLOPE:
                yield Case(cell, "forward+backward", T=T, I=H, H=H)
        yield Case(cell, "forward", T=SLOPE[0])
        yield Case(cell, "cell step", T=1)
    yield generation("GRU")


def _sweeps() -> Iterator[Case]:
    for cell in CELLS:
        yield generation(cell)
        yield replace(lesson(cell), ids=False)
        for mode in ("forward", "forward+backward"):
            base = Case(cell, mode)
            for H in (64, 128, 192, 256, 384, 512, 768, 1024, 2048):
                for T in SLOPE:
                    yield replace(base, T=T, I=H, H=H)
            for B in (1, 8, 64, 128, 256):
                for T in SLOPE:
                    yield replace(base, B=B, T=T)
            for T in (1, 256, 1024):
                yield replace(base, T=T)
        deep = Case(cell, "forward+backward")
        for layers in (2, 6):
            yield replace(deep, layers=layers)
        yield replace(deep, bidirectional=True)
        yield replace(deep, packed=True)
        for B in (1, 128):
            yield Case(cell, "cell step", T=1, B=B)


def _on(device: str, case: Case, *, full: bool) -> Iterator[Case]:
    """The dtypes, and on a GPU the precisions and graphs, in which a case is timed on a device."""
    if device != "cuda":
        yield case
        if full and case == Case(case.cell, case.mode):
            yield replace(case, dtype="bfloat16")
        return
    variants = [replace(case, precision="tf32"), replace(case, dtype="bfloat16")]
    if full:
        variants += [replace(case, precision="strict"), replace(case, dtype="float16")]
    for variant in variants:
        yield variant
        # What generation does next depends on the character before, and packing asks the host: no graph for those.
        if case.mode != "generate" and not case.packed:
            yield replace(variant, graph=True)


SELECTIONS = {"smoke": lambda device: smoke(), "short": short, "full": full}
