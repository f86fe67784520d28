"""Small layers of Keras and Flax with their outputs, written down by the packages: what the loaders are tested with.

    KERAS_BACKEND=torch python -m tests.support.record_weights keras
    python -m tests.support.record_weights flax

writes tests/support/weights_keras.json or weights_flax.json; --check compares with the one that is there instead. The
package and what it needs have to be installed: neither belongs to what the tests install.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
T, B, I, H = 4, 2, 3, 2  # noqa: E741
Case = dict[str, Any]


def numbers(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """With few digits, so that the file is short; no bias is 0."""
    return generator.uniform(-1, 1, shape).round(3).astype(np.float32)


def plain(value: Any) -> Any:
    """Arrays as lists, in mappings too; float32 in its own digits."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return json.loads(json.dumps(np.asarray(value, np.float32).astype(float).round(7).tolist()))


def keras_cases() -> Iterator[tuple[str, Case]]:
    import keras
    from keras.layers import GRU, LSTM, Bidirectional, SimpleRNN

    whole = {"return_sequences": True, "return_state": True}
    layers: dict[str, Callable[[], list[Any]]] = {
        "SimpleRNN": lambda: [SimpleRNN(H, **whole)],
        "SimpleRNN-relu": lambda: [SimpleRNN(H, activation="relu", **whole)],
        "GRU": lambda: [GRU(H, **whole)],
        "GRU-reset-before": lambda: [GRU(H, reset_after=False, **whole)],
        "GRU-no-bias": lambda: [GRU(H, use_bias=False, **whole)],
        "GRU-reset-before-no-bias": lambda: [GRU(H, reset_after=False, use_bias=False, **whole)],
        "LSTM": lambda: [LSTM(H, **whole)],
        "LSTM-no-bias": lambda: [LSTM(H, use_bias=False, **whole)],
        "LSTM-backwards": lambda: [LSTM(H, go_backwards=True, **whole)],
        "Bidirectional-GRU": lambda: [Bidirectional(GRU(H, **whole))],
        "Bidirectional-LSTM": lambda: [Bidirectional(LSTM(H, **whole))],
        "Bidirectional-SimpleRNN": lambda: [Bidirectional(SimpleRNN(H, **whole))],
        "stack-LSTM": lambda: [LSTM(H, return_sequences=True), LSTM(H, **whole)],
        "stack-Bidirectional-GRU": lambda: [
            Bidirectional(GRU(H, return_sequences=True, reset_after=False)),
            Bidirectional(GRU(H, reset_after=False, **whole)),
        ],
    }
    for name, make in layers.items():
        generator, stack = np.random.default_rng(20261126), make()
        x = y = numbers(generator, (B, T, I))
        for layer in stack:
            layer.build(tuple(y.shape))
            layer.set_weights([numbers(generator, w.shape) for w in layer.get_weights()])
            y, *state = layer(y) if layer is stack[-1] else (layer(y),)
        written = [
            {
                "class": type(each).__name__,
                "config": json.loads(json.dumps(each.get_config())),
                "weights": [plain(w) for w in each.get_weights()],
            }
            for each in stack
        ]
        arrays = [keras.ops.convert_to_numpy(s) for s in state]
        yield (
            name,
            {"layers": written, "x": plain(x), "y": plain(keras.ops.convert_to_numpy(y)), "state": plain(arrays)},
        )


def flax_cases() -> Iterator[tuple[str, Case]]:
    import jax
    from flax import linen, nnx

    def filled(tree: Any, generator: np.random.Generator) -> Any:
        return jax.tree.map(lambda leaf: numbers(generator, leaf.shape), tree)

    cells = ("GRUCell", "LSTMCell", "OptimizedLSTMCell", "SimpleCell")
    for name in (*cells, "Bidirectional-GRUCell", "Bidirectional-OptimizedLSTMCell"):
        generator, cell = np.random.default_rng(20261126), getattr(linen, name.split("-")[-1])
        x = numbers(generator, (B, T, I))
        module = linen.RNN(cell(H), return_carry=True)
        if name.startswith("Bidirectional"):
            module = linen.Bidirectional(linen.RNN(cell(H)), linen.RNN(cell(H)), return_carry=True)
        params = filled(module.init(jax.random.key(0), x), generator)
        carry, y = module.apply(params, x)
        yield f"linen-{name}", {"params": plain(params), "x": plain(x), "y": plain(y), "carry": plain(carry)}
    for name in cells:
        generator = np.random.default_rng(20261126)
        x = numbers(generator, (B, T, I))
        layer = nnx.RNN(getattr(nnx, name)(I, H, rngs=nnx.Rngs(0)), return_carry=True, rngs=nnx.Rngs(0))
        state = nnx.state(layer, nnx.Param)
        nnx.update(layer, filled(state, generator))
        params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
        carry, y = layer(x)
        yield f"nnx-{name}", {"params": plain(params), "x": plain(x), "y": plain(y), "carry": plain(carry)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", choices=["keras", "flax"])
    parser.add_argument("--check", action="store_true", help="compare with what is written, and write nothing")
    given = parser.parse_args()
    package = __import__(given.package)
    file = HERE / f"weights_{given.package}.json"
    cases = dict(keras_cases() if given.package == "keras" else flax_cases())
    if given.check:
        written = json.loads(file.read_text())["cases"]
        same = written.keys() == cases.keys() and all(close(written[name], cases[name]) for name in cases)
        sys.exit(None if same else f"{file.name} is not what {given.package} {package.__version__} computes")
    made = f"python -m tests.support.record_weights {given.package}"
    by = {given.package: package.__version__, "numpy": np.__version__, "made by": made}
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items())
    file.write_text(f'{{"provenance": {json.dumps(by)}, "cases": {{\n{rows}\n}}}}\n')


def close(a: Any, b: Any) -> bool:
    """Equal, numbers to the rounding of float32."""
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) < 1e-5
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(close, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a if key != "config")
    return bool(a == b)


if __name__ == "__main__":
    main()
