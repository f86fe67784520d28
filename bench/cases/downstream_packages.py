"""The packages that `bench.downstream` runs: what they need, and which of their tests use recurrent layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """A package, what it needs beside torch and numpy, and the arguments that select its recurrent tests."""

    name: str
    needs: tuple[str, ...]
    tests: tuple[str, ...] = ()  # relative to its source archive; empty where that has none
    known: tuple[tuple[str, str, str], ...] = ()  # side, part of the names of cases or tests, why these may differ


LIGHTNING = ("lightning", "lightning-utilities", "pytorch-lightning", "torchmetrics", "PyYAML", "cloudpickle")
PANDAS = ("pandas<3", "pytz", "scipy")
AIOHTTP = ("aiohttp", "multidict", "yarl", "frozenlist", "aiosignal", "attrs", "propcache", "aiohappyeyeballs")
REQUESTS = ("requests", "urllib3", "idna", "certifi", "charset-normalizer")
PACKAGES = (
    Package(
        "pytorch-forecasting",
        (*LIGHTNING, *PANDAS, "scikit-learn", "scikit-base", "joblib", "threadpoolctl", "narwhals"),
        ("tests/test_models/test_nn/test_rnn.py",),
        (("convert", "", "convert leaves subclasses of torch.nn's layers alone"),),
    ),
    Package(
        "torchrl",
        ("tensordict", "pyvers", "hoptorch", "cloudpickle", "orjson", "importlib-metadata", "zipp"),
    ),
    Package(
        "gluonts",
        ("pydantic<3", "pydantic-core", "annotated-types", "typing-inspection", "toolz", *PANDAS, *LIGHTNING),
        tuple(f"test/torch/model/test_{name}.py" for name in ("deepar_modules", "tft", "modules", "jit")),
        (("fastcells-c", "test_jit_trace", "asks for equal bits from a trace, and traces do not run C"),),
    ),
    Package(
        "torch-geometric",
        (*AIOHTTP, *REQUESTS, "psutil", "xxhash"),
    ),
    Package(
        "sb3-contrib",
        ("stable-baselines3", "gymnasium", "farama-notifications", "cloudpickle", *PANDAS),
        ("tests/test_lstm.py", "-k", "check or sde or multi"),
    ),
    Package(
        "opacus",
        ("opt-einsum", "scipy", "hypothesis", "sortedcontainers"),
        (
            "opacus/tests/validators",
            "opacus/tests/dp_layers/dp_rnn_test.py",
            "-k",
            "LSTM or GRU",
            "--hypothesis-seed=0",
        ),
        (("convert", "Validator", "it asks for the very class nn.LSTM, and passes over any other"),),
    ),
)
