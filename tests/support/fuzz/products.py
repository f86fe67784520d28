"""Calls of the products around a recurrence: linear layers, their gradients, and those with token ids."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from fastcells.backends.cpu import native
from tests.support.fuzz.call import Arguments, Call, double, ids_of, size


class WeightGradients(Call):
    tied = {"d": (0,), "x": (0,), "rest": (0, 1), "d_rest": (0,)}  # noqa: RUF012
    optional = ("d_rest",)

    def __init__(self) -> None:
        super().__init__()
        N, columns = size(300), size(60)
        self.arguments = {"d": torch.randn(N, size(40)), "x": torch.randn(N, columns)}
        if N and random.random() < 0.5:  # in two pieces, the second of which is missed
            first = random.randint(0, N - 1)
            self.arguments |= {"x": torch.randn(first, columns), "rest": torch.randn(N - first, columns)}
        if random.random() < 0.3:  # some columns of a wider matrix
            self.arguments["d"] = torch.cat([self.arguments["d"]] * 2, 1)[:, : self.arguments["d"].shape[1]]

        if random.random() < 0.4:
            self.arguments["d_rest"] = torch.randn(N, size(40))

    def run(self, a: Arguments) -> dict[str, Tensor | None]:
        out, sums = native.weight_gradients(a["d"], *self.pieces(a), d_rest=a.get("d_rest"))
        return {"out": out, "sums": sums}

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        d = torch.cat([a[name] for name in ("d", "d_rest") if name in a], 1)
        return {"out": d.t() @ torch.cat(self.pieces(a)), "sums": d.sum(0)}

    @staticmethod
    def pieces(a: Arguments) -> list[Tensor]:
        return [a[name] for name in ("x", "rest") if name in a]


class Linear(Call):
    tied = {"x": (1,), "w": (0, 1), "b": (0,)}  # noqa: RUF012
    optional = ("b",)

    def __init__(self) -> None:
        super().__init__()
        N, K, M = size(80), size(90), size(60)
        self.transposed = random.random() < 0.5
        b = torch.randn(M) if random.random() < 0.5 else None
        self.arguments = {"x": torch.randn(N, K), "w": torch.randn(K, M) if self.transposed else torch.randn(M, K)}
        if b is None:
            self.tied = {**self.tied, "w": (0,) if self.transposed else (1,)}  # w alone says how many columns
        else:
            self.arguments["b"] = b
        if random.random() < 0.3:  # some columns of a wider matrix
            self.arguments["x"] = torch.cat([self.arguments["x"]] * 2, 1)[:, :K]

    def run(self, a: Arguments) -> dict[str, Tensor | None]:
        return {"out": native.linear(a["x"], a["w"], a.get("b"), transposed=self.transposed)}

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        w = a["w"] if self.transposed else a["w"].t()
        return {"out": a["x"] @ w + (0.0 if a.get("b") is None else a["b"])}


class Matvec(Call):
    tied = {"w": (1,), "x": (0,), "b": (0,)}  # noqa: RUF012
    optional = ("b",)

    def __init__(self) -> None:
        super().__init__()
        rows, columns = size(40), size(60)
        b = torch.randn(rows) if random.random() < 0.5 else None
        self.arguments = {"w": torch.randn(rows, columns), "x": torch.randn(columns), "b": b}

    def run(self, a: Arguments) -> dict[str, Tensor | None]:
        return {"out": native.matvec(a["w"], a["x"], a["b"])}

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        out = a["w"] @ a["x"]
        return {"out": out if a["b"] is None else out + a["b"]}


class Gather(Call):
    tied = {"ids": (), "w": (), "b": (0,)}  # noqa: RUF012
    optional = ("b",)

    def __init__(self) -> None:
        super().__init__()
        G, V = size(40), size(50)
        self.arguments = {"ids": ids_of(size(30), V), "w": torch.randn(G, V), "b": torch.randn(G)}
        if random.random() < 0.5:
            self.arguments["b"] = None

    def spoil(self, wrong: bool) -> None:
        super().spoil(wrong and random.random() < 0.5)
        if wrong and not any("WRONG" in change for change in self.changes):
            outside = [-1, self.vocabulary(), -(2**63), 2**63 - 1]
            ids = double(self.arguments["ids"]).long().tolist() or [0]
            ids[random.randrange(len(ids))] = random.choice(outside)
            self.arguments["ids"] = torch.tensor(ids)
            if "d" in self.arguments:
                self.arguments["d"] = torch.randn(len(ids), self.arguments["d"].shape[1])
            self.changes.append(f"ids WRONG: {ids}")

    def vocabulary(self) -> int:
        return int(self.arguments["w"].shape[1])

    def run(self, a: Arguments) -> dict[str, Tensor | None]:
        return {"out": native.gather(a["ids"], a["w"], a["b"])}

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        rows = a["w"].t()[a["ids"].long()]
        return {"out": rows if a["b"] is None else rows + a["b"]}


class Scatter(Gather):
    tied = {"ids": (0,), "d": (0,)}  # noqa: RUF012
    optional = ()

    def __init__(self) -> None:
        Call.__init__(self)
        V = size(50)
        ids = ids_of(size(30), V)
        self.arguments = {"ids": ids, "d": torch.randn(len(ids), size(40)), "V": V}

    def spoil(self, wrong: bool) -> None:
        if wrong and random.random() < 0.2:
            self.arguments["V"] = random.choice([-1, 2.5, None, "3", 2**62, [3]])
            self.changes.append(f"V WRONG: {self.arguments['V']}")
            if self.arguments["V"] == 2**62:  # without a row it would fit
                self.arguments["d"] = torch.randn(len(self.arguments["ids"]), 3)
            return
        super().spoil(wrong)

    def vocabulary(self) -> int:
        return int(self.arguments["V"])

    def run(self, a: Arguments) -> dict[str, Tensor | None]:
        out, sums = native.scatter(a["ids"], a["d"], a["V"])
        return {"out": out, "sums": sums}

    def expect(self, a: Arguments) -> dict[str, Tensor]:
        out = a["d"].new_zeros(a["V"], a["d"].shape[1]).index_add(0, a["ids"].long(), a["d"])
        return {"out": out.t(), "sums": a["d"].sum(0)}
