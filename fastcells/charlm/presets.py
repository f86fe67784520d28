"""What to train, as data: the options of one run, and presets that reproduce the classic lessons."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fastcells import zoo
from fastcells.charlm.errors import InputError
from fastcells.charlm.sampling import SAMPLING
from fastcells.charlm.schedule import SCHEDULES
from fastcells.dispatch import IMPLEMENTATIONS

CELLS = ("rnn", "gru", "lstm", *zoo.CELLS)
NONLINEARITIES = ("tanh", "relu")
INITS = ("torch", "d2l")
OPTIMIZERS = ("adam", "adamw", "sgd")
LOSSES = ("mean", "sum")
DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Config:
    """The options of a training run. The defaults are the preset `gru`.

    init: "torch" is torch.nn's uniform init; "d2l" is N(0, 0.01) for weights and zero for biases, with one bias a
    gate as in the lessons (b_hh stays zero). loss: what gradients are taken of, the mean over a batch's characters or
    their sum. clip: largest gradient norm, None for no clipping. schedule: of the learning rate, "none" or "cosine";
    warmup: steps in which it rises to `lr`. report: epochs
    between two reports. validation, test: shares of the text, at its end, that are not learned but measured.
    evaluate: steps between two looks at the validation text, None for the ends of epochs. patience: stop after so many
    looks without a better one, None to go on to the end. dropout: between layers. tied: characters are embedded, by the
    output's weights. weight_decay: of weights, not of biases. accumulate: batches of one step, one after the other.
    compile: the model by torch.compile.
    """

    cell: str = "gru"
    nonlinearity: str = "tanh"
    reset_after: bool = True
    layers: int = 1
    hidden: int = 256
    bidirectional: bool = False
    tied: bool = False
    dropout: float = 0.0
    init: str = "torch"
    optimizer: str = "adam"
    loss: str = "mean"
    lr: float = 1e-2
    schedule: str = "cosine"
    warmup: int = 0
    clip: float | None = None
    weight_decay: float = 0.0
    accumulate: int = 1
    sampling: str = "consecutive"
    epochs: int = 160
    report: int = 40
    steps: int = 35
    batch: int = 32
    validation: float = 0.0
    test: float = 0.0
    evaluate: int | None = None
    patience: int | None = None
    seed: int = 0
    dtype: str = "float32"
    compile: bool = False
    impl: str = "auto"

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "epochs", "report", "steps", "batch", "accumulate", "evaluate", "patience"):
            value = getattr(self, name)
            if value is None and name in ("evaluate", "patience"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} must be a positive integer, got {value!r}")
        if not isinstance(self.warmup, int) or isinstance(self.warmup, bool) or self.warmup < 0:
            raise InputError(f"warmup must be a number of steps, 0 or more, got {self.warmup!r}")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, got {self.dropout!r}")
        if self.dropout and self.layers == 1:
            raise InputError(f"dropout {self.dropout} lies between layers, and there is one: set layers")
        decay = self.weight_decay
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < math.inf:
            raise InputError(f"weight_decay must be 0 or above and finite, got {decay!r}")
        for name in ("validation", "test"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 0.5:
                raise InputError(f"{name} must be a share of the text between 0 and 0.5, got {value!r}")
        if (self.evaluate or self.patience) and not self.validation:
            raise InputError("evaluate and patience need a text to look at: set validation")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is None and name == "clip":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"{name} must be positive and finite, got {value!r}")
        for name in ("reset_after", "bidirectional", "tied", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not -(2**63) <= self.seed < 2**64:
            raise InputError(f"seed must be an integer of 64 bits, got {self.seed!r}")
        choices = {
            "cell": CELLS,
            "nonlinearity": NONLINEARITIES,
            "init": INITS,
            "optimizer": OPTIMIZERS,
            "loss": LOSSES,
            "schedule": SCHEDULES,
            "sampling": SAMPLING,
            "dtype": DTYPES,
            "impl": IMPLEMENTATIONS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")


# The lessons' rates are constant.
_LESSON = Config(schedule="none")
_SCRATCH = replace(_LESSON, init="d2l", optimizer="sgd", lr=1e2, clip=1e-2)
_FIRST = replace(_SCRATCH, cell="rnn", loss="sum", lr=0.2, clip=5.0, epochs=200, report=50)

PRESETS: dict[str, Config] = {
    "rnn-first-random": replace(_FIRST, sampling="random"),
    "rnn-first-consecutive": _FIRST,
    "rnn-scratch": replace(_SCRATCH, cell="rnn", sampling="random", epochs=250, report=50),
    # The lesson's equation says reset-before.
    "gru-scratch": replace(_SCRATCH, cell="gru", reset_after=False),
    "lstm-scratch": replace(_SCRATCH, cell="lstm"),
    "rnn-deep-scratch": replace(_SCRATCH, cell="rnn", nonlinearity="relu", layers=3, epochs=250, report=50),
    "rnn": replace(_LESSON, cell="rnn", lr=1e-3, epochs=250, report=50),
    "gru": Config(),  # not a lesson's: with its constant rate Adam leaves the minimum that it had reached
    "lstm": replace(_LESSON, cell="lstm"),
    "lstm-deep": replace(_LESSON, cell="lstm", layers=2),
    "lstm-deeper": replace(_LESSON, cell="lstm", layers=6),
    "gru-bidirectional": replace(_LESSON, bidirectional=True, hidden=128),
}


def preset(name: str) -> Config:
    """The options of a preset. Raises InputError, which lists them, for an unknown name."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
