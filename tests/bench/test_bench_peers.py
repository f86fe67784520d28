"""The adapters of bench/cases/peers.py, against stand-ins that compute what each peer documents, in plain torch.

None of the peers runs without a GPU. This proves that weights and gradients are laid out as their documents say.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bench.cases import peers
from bench.cases.case import Case
from bench.cases.model import Skipped
from bench.measure import duel

CPU = torch.device("cpu")
TINY = Case("GRU", "forward+backward", T=4, B=3, I=5, H=6)


def flashrnn(
    Wx: Tensor,  # [B, T, G, 1, H]
    R: Tensor,  # [G, 1, to H, from H]
    b: Tensor,  # [G or 4, 1, H]
    *,
    function: str,
    backend: str,
    dtype: str,
) -> tuple[Tensor, Tensor]:
    """States [S, B, T, 1, H] and the last ones."""
    assert (backend, dtype) == ("cuda_fused", "float32") and Wx.shape[3] == R.shape[1] == b.shape[1] == 1
    h = c = Wx.new_zeros(len(Wx), Wx.shape[-1])
    states = []
    for gates in Wx.squeeze(3).unbind(1):
        recurrent = torch.einsum("bp,gdp->gbd", h, R.squeeze(1))
        bias = b.squeeze(1).unsqueeze(1)
        if function == "gru":
            n_h, r_h, z_h = recurrent
            r_x, z_x, n_x = gates.unbind(1)
            r, z = torch.sigmoid(r_x + r_h + bias[1]), torch.sigmoid(z_x + z_h + bias[2])
            h = z * h + (1 - z) * torch.tanh(n_x + bias[3] + r * (n_h + bias[0]))
        elif function == "lstm":
            i, f, g, o = gates.transpose(0, 1) + recurrent + bias
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        else:
            assert function == "elman"
            h = torch.tanh(gates[:, 0] + recurrent[0] + bias[0])
        states.append(torch.stack([h, c]).unsqueeze(2))
    return torch.stack(states, 2), states[-1].unsqueeze(2)


class Haste(nn.Module):
    """Kernels [I, G*H] and [H, G*H]; the outputs may start with the initial state."""

    gates: int

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        width = self.gates * hidden_size
        self.kernel, self.recurrent_kernel = (nn.Parameter(torch.randn(n, width)) for n in (input_size, hidden_size))
        self.bias, self.recurrent_bias = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        h = c = x.new_zeros(x.shape[1], len(self.recurrent_kernel))
        outs = [h]
        for step in x:
            h, c = self.step(step @ self.kernel + self.bias, h @ self.recurrent_kernel, h, c)
            outs.append(h)
        return torch.stack(outs), None

    def step(self, x: Tensor, r: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class HasteGRU(Haste):
    gates = 3

    def step(self, x: Tensor, r: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        (x_z, x_r, x_g), (r_z, r_r, r_g) = x.chunk(3, 1), (r + self.recurrent_bias).chunk(3, 1)
        z = torch.sigmoid(x_z + r_z)
        return z * h + (1 - z) * torch.tanh(x_g + torch.sigmoid(x_r + r_r) * r_g), c


class HasteLSTM(Haste):
    gates = 4

    def step(self, x: Tensor, r: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, g, f, o = (x + r).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class TorchRL(nn.Module):
    """A layer behind a TensorDict: batch first, a state and a reset for every step."""

    label: str

    def __init__(
        self,
        *,
        input_size: int,
        hidden_size: int,
        in_keys: list[str],
        out_keys: list[str],
        recurrent_backend: str,
        default_recurrent_mode: bool,
        device: torch.device,
    ) -> None:
        super().__init__()
        assert recurrent_backend == "triton" and default_recurrent_mode and len(in_keys) == len(out_keys)
        self.rnn = getattr(nn, self.label)(input_size, hidden_size, batch_first=True, device=device)
        self.in_keys = in_keys

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        B, T, _ = data["x"].shape
        assert not data["is_init"].any() and data["is_init"].shape == (B, T, 1)
        assert all(data[key].shape == (B, T, 1, self.rnn.hidden_size) for key in self.in_keys[1:])
        return {"out": self.rnn(data["x"])[0]}


class GRUModule(TorchRL):
    label = "GRU"


class LSTMModule(TorchRL):
    label = "LSTM"


STAND_INS = {
    "flashrnn": SimpleNamespace(flashrnn=flashrnn),
    "haste_pytorch": SimpleNamespace(GRU=HasteGRU, LSTM=HasteLSTM),
    "torchrl.modules": SimpleNamespace(GRUModule=GRUModule, LSTMModule=LSTMModule),
    "tensordict": SimpleNamespace(TensorDict=lambda data, batch_size: data),
}


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_need", lambda name, task: STAND_INS[name])


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("peer", list(peers.PEERS))
def test_outputs_and_all_gradients_agree_with_torch(peer: str, cell: str) -> None:
    if cell == "RNN" and peer != "flashrnn":
        with pytest.raises(Skipped, match="no plain RNN"):
            duel.prepare(replace(TINY, cell=cell), peer, CPU)
        return
    duel.prepare(replace(TINY, cell=cell), peer, CPU)
    duel.prepare(replace(TINY, cell=cell, mode="training step", ids=True), peer, CPU)


@pytest.mark.usefixtures("stand_ins")
def test_a_version_without_the_triton_backend_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAND_INS, "torchrl.modules", SimpleNamespace(GRUModule=lambda input_size: None))
    with pytest.raises(Skipped, match=r"TorchRL: .*unexpected keyword"):
        duel.prepare(TINY, "torchrl-triton", CPU)


@pytest.mark.usefixtures("stand_ins")
def test_haste_has_float32_only() -> None:
    with pytest.raises(Skipped, match="float32"):
        duel.prepare(replace(TINY, dtype="bfloat16"), "haste", CPU)
