"""bench.downstream on a stand-in package: what agrees, what is planted to differ, and what cannot be installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import downstream
from bench.downstream import NotHere, Package, compare_cases, compare_tests, verdict
from bench.measure.downstream_swap import Ran

pytestmark = pytest.mark.slow

PACKAGE = """
from abc import ABC
from torch import nn
from torch.nn import LSTM

class Net(nn.Module):
    def __init__(self, wrong=0.0):
        super().__init__()
        self.rnn, self.wrong = LSTM(3, 4), wrong

    def forward(self, x):
        ours = type(self.rnn).__module__.startswith("fastcells")
        return self.rnn(x)[0] * (1 + self.wrong * ours)
"""

CASES = """
import torch
from standin import Net

def case(wrong):
    def run(ready):
        model = ready(Net(wrong))
        out = model(torch.randn(6, 2, 3).to(model.rnn.weight_hh_l0))
        out.backward(torch.randn(out.shape).to(out))
        return {"out": out, "gradient": model.rnn.weight_hh_l0.grad}
    return run

def refused(ready):
    model = ready(Net())
    if type(model.rnn).__module__.startswith("fastcells"):
        raise TypeError("not a layer of torch")
    return {"out": model(torch.randn(6, 2, 3).to(model.rnn.weight_hh_l0))}

def empty(ready):
    return {"out": torch.zeros(1)}

CASES = {"standin": {"right": case(0.0), "wrong": case(1e-4), "refused": refused, "no layer": empty}}
"""

TESTS = """
import torch
from standin import Net

def test_right():
    assert Net()(torch.randn(6, 2, 3)).shape == (6, 2, 4)

def test_wrong():
    assert Net(1.0)(torch.randn(6, 2, 3)).abs().max() < 1 and not Net().rnn.__module__.startswith("fastcells")

def test_fails_everywhere():
    Net()(torch.randn(6, 2, 3))
    assert False

def test_without_a_layer():
    assert True
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As --install leaves it: the package in site, its source unpacked, and a module of cases."""
    for name, text in {"site/standin.py": PACKAGE, "cases.py": CASES, "standin-1/test_standin.py": TESTS}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_cases_that_differ_are_seen(folder: Path) -> None:
    rows = {row.name: row for row in compare_cases(Package("standin", ()), "1", folder, "cases")}
    assert {name: row.same for name, row in rows.items()} == dict.fromkeys(rows, "NO") | {"right": "yes"}
    assert rows["right"].sides["torch.nn"].endswith("torch.nn:1") and "cpu:1" in rows["right"].sides["fastcells-c"]
    assert "out is" in rows["wrong"].sides["fastcells"]
    assert rows["refused"].sides["convert"] == "TypeError: not a layer of torch"
    assert rows["no layer"].sides["fastcells"] == "our layers were not what ran: no call"


def test_tests_that_end_otherwise_are_seen(folder: Path) -> None:
    rows = {row.name.rpartition("::")[2]: row for row in compare_tests(Package("standin", (), (".",)), "1", folder)}
    same = {name: row.same for name, row in rows.items()}
    expected = {"test_right": "yes", "test_wrong": "NO", "test_fails_everywhere": "yes"}
    assert same == {**expected, "1 that call no recurrent layer": "yes"}
    assert rows["test_wrong"].sides["torch.nn"].startswith("passed")
    assert rows["test_wrong"].sides["fastcells"].startswith("failed: ")


def test_a_package_that_does_not_import_is_no_agreement(folder: Path) -> None:
    (folder / "site/standin.py").write_text(
        "from torch import nn\nassert nn.LSTM.__module__.startswith('torch.')\n" + PACKAGE
    )
    package = Package("standin", (), (".",), (("convert", "", "a reason"),))
    assert {row.same for row in compare_tests(package, "1", folder)[:-1]} == {"NO"}


@pytest.mark.parametrize("value", [float("nan"), 1.001])
def test_a_verdict_needs_the_same_numbers(value: float) -> None:
    truth = Ran("", {"x": torch.ones(3)}, {"torch.nn": 1})
    assert verdict(truth._replace(calls={"cpu": 1}), truth, truth) == ""
    assert "x is" in verdict(Ran("", {"x": torch.full((3,), value)}, {"cpu": 1}), truth, truth)
    assert "only one" in verdict(Ran("", {}, {"cpu": 1}), truth, truth)


def test_a_known_reason_covers_its_side_and_names_alone() -> None:
    package = Package("standin", (), known=(("convert", "part", "a reason"),))
    assert downstream._same({"convert"}, package, "a part") == "known, convert: a reason"
    assert downstream._same({"convert", "fastcells"}, package, "a part") == "NO"
    assert downstream._same({"convert"}, package, "another") == "NO"
    assert downstream._same((), package, "another") == "yes"


def test_a_gradient_that_cancels_is_judged_by_the_others() -> None:
    truth = Ran("", {"weight": torch.full((3,), 2.0), "bias": torch.full((1,), 1e-15)}, {"torch.nn": 1})
    for off, text in ((3e-6, ""), (3e-5, "bias is")):
        results = truth.results | {"bias": torch.full((1,), off)}
        assert verdict(Ran("", results, {"cpu": 1}), truth, truth).startswith(text)
        assert bool(verdict(Ran("", results, {"cpu": 1}), truth, truth)) == bool(text)


def test_what_cannot_be_installed_is_said_and_fails_without_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: str) -> None:
        raise NotHere("No matching distribution")

    monkeypatch.setattr(downstream, "_pip", refuse)
    assert downstream.main(["--install", str(tmp_path), "--packages", "opacus"]) == 1
    assert "opacus: could not be installed: No matching distribution" in capsys.readouterr().out
