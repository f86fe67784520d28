"""`fastcells.tune`, `fastcells tune` and what `fastcells doctor` says of verdicts."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import fastcells
from fastcells import doctor
from fastcells.charlm.cli import main
from fastcells.tuning import verdicts
from fastcells.tuning.memory import Memory, Verdict
from fastcells.tuning.tune import Tuned
from tests.support.trials import ToldClock


@pytest.fixture
def clock(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> Iterator[ToldClock]:
    told = ToldClock({"torch": 500.0, "cpu": 10.0})
    monkeypatch.setattr(verdicts, "clock_of", lambda device: told)
    return told


class Model(nn.Module):
    """Things that a forward pass changes, and layers in a place of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(5), nn.Dropout(0.5)
        self.stack = fastcells.GRU(5, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.last = fastcells.LSTM(16, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        out = self.drop(self.norm(x.transpose(1, 2)).transpose(1, 2)) * scale
        return self.head(self.last(self.stack(out)[0])[0])


def test_a_model_is_measured_layer_by_layer_and_left_as_it_was(clock: ToldClock, memory: Memory) -> None:
    model, x = Model(), torch.randn(3, 6, 5)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    tuned = fastcells.tune(model, x)
    kinds = [f"{cell} {mode}" for cell in ("gru", "lstm") for mode in ("inference", "training")]
    assert sorted({" ".join((k.split()[0], k.split()[3])) for k in tuned}) == sorted(kinds)
    assert {k.split()[7] for k in tuned if k.startswith("gru")} == {"I<=8", "I<=16"}
    assert all(" both directions " in k for k in tuned if k.startswith("gru"))
    assert all(v.chosen == "cpu" for v in tuned.values())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert next(iter(memory.everything().values())) == tuned
    choice = fastcells.explain(model.last, torch.randn(3, 6, 16))
    assert choice.impl == "cpu" and choice.reason.startswith("measured on this device")


def test_a_layer_alone_runs_nothing_but_trials(clock: ToldClock) -> None:
    layer = fastcells.GRU(5, 8)
    layer.register_forward_hook(lambda *_: pytest.fail("it ran"))
    assert len(fastcells.tune(layer, torch.randn(6, 3, 5))) == 2
    (kind,) = fastcells.tune(layer, torch.randn(6, 3, 5), training=False)
    assert " inference " in kind
    assert len(fastcells.tune(layer, torch.zeros(6, 3, dtype=torch.long))) == 2
    assert fastcells.tune(Model(), (torch.randn(3, 6, 5), 0.5))


def test_what_is_known_is_measured_again_and_replaced(clock: ToldClock, memory: Memory) -> None:
    layer, x = fastcells.GRU(5, 8), torch.randn(6, 3, 5)
    fastcells.tune(layer, x)
    clock.times = {"torch": 10.0, "cpu": 500.0}
    assert {v.chosen for v in fastcells.tune(layer, x).values()} == {"torch"}
    assert fastcells.explain(layer, x).impl == "torch"
    verdicts.reset()
    assert fastcells.explain(layer, x).impl == "torch"


def test_a_layer_that_names_its_implementation_has_nothing_to_measure(clock: ToldClock) -> None:
    tuned = fastcells.tune(fastcells.GRU(5, 8, impl="torch"), torch.randn(6, 3, 5))
    assert tuned == {} and str(tuned).startswith("nothing was measured")


def test_an_error_of_the_model_is_its_own_and_ends_the_tuning(clock: ToldClock) -> None:
    with pytest.raises(RuntimeError, match="running_mean should contain 7 elements"):
        fastcells.tune(Model(), torch.randn(3, 6, 7))
    verdicts.reset()
    layer = fastcells.LSTM(5, 8)
    assert verdicts.NOT_YET not in fastcells.explain(layer, torch.randn(6, 3, 5)).reason  # too short to be measured


def test_the_table_names_candidates_errors_times_and_reasons() -> None:
    found = Verdict(
        "b", "2026-11-26", 6, 3, {"torch": 1500.0, "b": 41.2, "a": 60.0}, {"b": 0.5, "torch": 0.4}, {"c": "it raised"}
    )
    lines = str(Tuned({"gru": found})).splitlines()
    assert lines == [
        "kind of call  candidate  error / allowed     us",
        "gru           b                     0.50     41  chosen",
        "              a                     0.00     60",
        "              torch                 0.40  1,500",
        "              c                                  out: it raised",
    ]


def test_the_command_measures_prints_and_says_where_it_is_kept(
    clock: ToldClock, memory: Memory, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--steps", "6", "--batch", "3", "--device", "cpu"]
    assert main(["tune", "--cell", "gru", "--cell", "rnn-relu", "--hidden", "8", "--hidden", "9", *sizes]) == 0
    said = capsys.readouterr().out
    assert said.count("chosen") == 8 and said.endswith(f"kept in {memory.path}\n")
    assert "rnn_relu float32 dense training H=9 I<=16 T<=8 B<=4" in said
    assert (
        main(["tune", "--cell", "lstm", "--ids", "--input", "20", "--mode", "inference", "--hidden", "8", *sizes]) == 0
    )
    assert "lstm float32 ids inference H=8 I<=32 T<=8 B<=4" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit:
        main(["tune", "--hidden", "-3"])
    assert exit.value.code == 2 and "must be a positive integer, got '-3'" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["nonsense", *([] if torch.cuda.is_available() else ["cuda"])])
def test_a_device_that_is_not_there_is_named(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--hidden", "8", "--device", device]) == 2
    assert capsys.readouterr().err.startswith(f"fastcells: error: --device {device}: ")


def test_the_command_says_that_a_verdict_could_not_be_kept(
    clock: ToldClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTCELLS_CACHE_DIR", str(tmp_path / "file"))
    verdicts.reset()
    assert main(["tune", "--hidden", "8", "--steps", "6", "--device", "cpu"]) == 0
    assert "not kept" in capsys.readouterr().out


def test_doctor_lists_verdicts_with_their_age_and_forgets_them(
    clock: ToldClock, memory: Memory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(doctor.remembered()) == [f"Measured: nothing yet ({memory.path})"]
    fastcells.tune(fastcells.GRU(5, 8), torch.randn(6, 3, 5), training=True)
    lines = list(doctor.remembered(datetime.date.today() + datetime.timedelta(days=3)))
    assert (lines[0] == f"Measured: {memory.path}" and "threads" in lines[1]) or "thread" in lines[1]
    assert lines[2].split() == [
        *["gru", "float32", "dense", "training", "H=8", "I<=8", "T<=8", "B<=4", "cpu,", "3", "days", "ago"]
    ]
    assert main(["doctor", "--forget"]) == 0 and capsys.readouterr().out == f"removed {memory.path}\n"
    assert main(["doctor", "--forget"]) == 0 and capsys.readouterr().out.startswith("there was no")
    assert list(doctor.remembered()) == [f"Measured: nothing yet ({memory.path})"]


STEPS = """
import hashlib, logging, sys, torch, fastcells
from fastcells.tuning import memory, verdicts
memory.shipped = lambda device: None
verdicts.WORTH = 0.0
logging.basicConfig(level=logging.INFO)
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.ModuleList([fastcells.GRU(6, 16, num_layers=2), fastcells.LSTM(16, 16), torch.nn.Linear(16, 3)])
optimizer = torch.optim.Adam(model.parameters())
for step in range(50):
    x = torch.randn(5 + step % 9, 4, 6)
    out = model[2](model[1](model[0](x)[0])[0])
    optimizer.zero_grad(); out.square().mean().backward(); optimizer.step()
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest())
"""


def trained(folder: Path) -> tuple[str, str]:
    environment = {**os.environ, "FASTCELLS_CACHE_DIR": str(folder)}
    environment.pop("FASTCELLS_TUNE")
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=True)
    return done.stdout.strip(), done.stderr


def test_training_is_the_same_to_the_bit_in_two_processes_and_the_second_measures_nothing(tmp_path: Path) -> None:
    (first, measured), (second, nothing) = trained(tmp_path), trained(tmp_path)
    assert first == second and len(first) == 64
    # Of the stack's second layer only where the first does not choose ATen, which runs both.
    assert 2 <= measured.count("measured gru") <= 4 and measured.count("measured lstm") == 2
    assert "measured" not in nothing


def test_two_processes_at_once_agree(tmp_path: Path) -> None:
    environment = {**os.environ, "FASTCELLS_CACHE_DIR": str(tmp_path)}
    environment.pop("FASTCELLS_TUNE")
    command = [sys.executable, "-c", STEPS]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    first, second = (process.communicate(timeout=300)[0].strip() for process in running)
    assert first == second and len(first) == 64
