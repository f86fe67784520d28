"""What `bench.downstream` runs of other packages: their classes that hold recurrent layers, at shapes that reach C.

A case is given `ready`, which brings a model it built to the dtype and the classes of the run, and returns named
outputs and gradients. Nothing here samples: the float64 run must compute the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.measure.downstream_swap import Ready, Results

Case = Callable[[Ready], Results]

B, T, H, INPUTS = 8, 40, 64, 12


def like(model: nn.Module, *shape: int) -> Tensor:
    """Normal numbers in the model's dtype; drawn in float32, so that every run gets the same."""
    return torch.randn(shape).to(next(model.parameters()).dtype)


def gradients(model: nn.Module, outputs: Sequence[Tensor]) -> Results:
    """The outputs, and each parameter's gradient for random cotangents of all of them."""
    cotangents = torch.Generator().manual_seed(1)
    loss = sum((out * torch.randn(out.shape, generator=cotangents).to(out)).sum() for out in outputs)
    assert isinstance(loss, Tensor)
    loss.backward()
    results = {f"output {i}": out for i, out in enumerate(outputs)}
    return results | {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}


def forecasting_layer(name: str) -> Case:
    """The layers of pytorch_forecasting.models.nn.rnn, with sequences of length 0."""

    def case(ready: Ready) -> Results:
        from pytorch_forecasting.models.nn.rnn import get_rnn

        layer = ready(get_rnn(name)(INPUTS, H, num_layers=2, batch_first=True))
        x, lengths = like(layer, B, T, INPUTS), torch.tensor([T, 0, 5, T - 1, 17, 0, 1, 30])
        out, state = layer(x, lengths=lengths, enforce_sorted=False)
        return gradients(layer, [out, *(state if isinstance(state, tuple) else [state])])

    return case


def forecasting_model(name: str, **options: object) -> Case:
    """A whole model, on a batch of its own data set and with the loss of its own training step."""

    def case(ready: Ready) -> Results:
        import numpy as np
        import pandas as pd
        import pytorch_forecasting as forecasting

        random = np.random.default_rng(0)
        rows = [(s, t, random.normal() + np.sin(t / 3)) for s in "abcdefgh" for t in range(3 * T // 2)]
        data = pd.DataFrame(rows, columns=["series", "t", "y"]).astype({"y": "float32"})
        # RecurrentNetwork takes none; without one, the transformer makes the decoder's input itself, in float32.
        known = {"time_varying_known_reals": ["t"]} if name == "TemporalFusionTransformer" else {}
        data_set = forecasting.TimeSeriesDataSet(
            data,
            time_idx="t",
            target="y",
            group_ids=["series"],
            static_categoricals=["series"],
            time_varying_unknown_reals=["y"],
            **known,
            max_encoder_length=T,
            max_prediction_length=8,
            target_normalizer=forecasting.GroupNormalizer(groups=["series"]),
        )
        x, y = next(iter(data_set.to_dataloader(train=False, batch_size=B)))
        model = ready(getattr(forecasting, name).from_dataset(data_set, dropout=0.0, hidden_size=H, **options)).eval()
        to = next(model.parameters()).dtype
        x = {k: v.to(to) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in x.items()}
        model.train()  # the mode in which DeepAR draws no samples; there is no dropout
        prediction = model(x)["prediction"]
        return gradients(model, [prediction, model.loss(prediction, (y[0].to(to), y[1]))])

    return case


def torchrl_module(name: str) -> Case:
    """A recurrent TensorDictModule over trajectories that end in the middle, so that it packs."""

    def case(ready: Ready) -> Results:
        from tensordict import TensorDict
        from torchrl import modules

        states = ["h", "c"] if name == "LSTM" else ["h"]
        keys = {"in_keys": ["x", *states], "out_keys": ["out", *(("next", s) for s in states)]}
        model = ready(getattr(modules, f"{name}Module")(INPUTS, H, default_recurrent_mode=True, **keys))
        data = {s: like(model, B, T, 1, H) for s in states} | {"x": like(model, B, T, INPUTS)}
        data["is_init"] = torch.rand(B, T, 1) < 0.1
        done = model(TensorDict(data, [B, T]))
        return gradients(model, [done["out"], *(done["next", s] for s in states)])

    return case


def gluonts_deepar(ready: Ready) -> Results:
    """DeepAR's teacher-forced parameters and loss."""
    from gluonts.torch.model.deepar import DeepARModel

    model = ready(DeepARModel("D", T, 8, hidden_size=H, dropout_rate=0.0, lags_seq=[1, 2, 7]))
    past = model._past_length
    batch = {
        "feat_static_cat": torch.zeros(B, 1, dtype=torch.long),
        "feat_static_real": like(model, B, 1),
        "past_time_feat": like(model, B, past, 1),
        "past_target": like(model, B, past),
        "past_observed_values": torch.ones_like(like(model, B, past)),
        "future_time_feat": like(model, B, 8, 1),
        "future_target": like(model, B, 8),
    }
    parameters, _, outputs, _, state = model.unroll_lagged_rnn(**batch)
    loss = model.loss(**batch, future_observed_values=torch.ones_like(batch["future_target"]))
    return gradients(model, [*parameters, outputs, *state, loss])


def gluonts_tft(ready: Ready) -> Results:
    """The temporal fusion transformer's two LSTMs, the second begun from the first's state."""
    from gluonts.torch.model.tft.layers import TemporalFusionEncoder

    model = ready(TemporalFusionEncoder(INPUTS, H))
    return gradients(model, [model(like(model, B, T, INPUTS), like(model, B, 8, INPUTS))])


def pyg_aggregation(name: str, *sizes: int) -> Case:
    """An aggregation of torch_geometric over groups of unequal size."""

    def case(ready: Ready) -> Results:
        from torch_geometric.nn import aggr

        model = ready(getattr(aggr, name)(*sizes))
        index = torch.arange(B).repeat_interleave(torch.tensor([T, 1, 5, T - 1, 17, 3, 2, 30]))
        return gradients(model, [model(like(model, len(index), sizes[0]), index)])

    return case


def pyg_graph(name: str) -> Case:
    """Models of torch_geometric with cells inside, on a random graph."""

    def case(ready: Ready) -> Results:
        from torch_geometric import nn as pyg

        edges = torch.randint(0, T, (2, 4 * T))
        if name == "GatedGraphConv":
            model = ready(pyg.GatedGraphConv(H, num_layers=3))
            return gradients(model, [model(like(model, T, INPUTS), edges)])
        if name == "JumpingKnowledge":
            model = ready(pyg.JumpingKnowledge("lstm", channels=H, num_layers=4))
            return gradients(model, [model([like(model, T, H) for _ in range(4)])])
        model = ready(pyg.AttentiveFP(INPUTS, H, 3, edge_dim=4, num_layers=3, num_timesteps=2))
        batch = torch.arange(T) * B // T
        return gradients(model, [model(like(model, T, INPUTS), edges, like(model, 4 * T, 4), batch)])

    return case


def sb3_policy(starts: float) -> Case:
    """RecurrentPPO's policy: values, log-probabilities and entropy of a batch in which episodes begin."""

    def case(ready: Ready) -> Results:
        from gymnasium import spaces
        from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
        from sb3_contrib.common.recurrent.type_aliases import RNNStates

        box = spaces.Box(-1, 1, (INPUTS,))
        model = ready(RecurrentActorCriticPolicy(box, spaces.Discrete(4), lambda _: 1e-3, lstm_hidden_size=H))
        h = [like(model, 1, B, H) for _ in range(4)]
        begins = (torch.rand(B * T) < starts).to(h[0])
        actions, states = torch.randint(0, 4, (B * T,)), RNNStates((h[0], h[1]), (h[2], h[3]))
        features = like(model, B * T, INPUTS)
        model.extract_features = lambda *_: features  # which would cast them to float32
        return gradients(model, list(model.evaluate_actions(features, actions, states, begins)))

    return case


def opacus_validator(name: str) -> Case:
    """ModuleValidator.fix of a layer: the replacement is made from it by its class and its state_dict."""

    def case(ready: Ready) -> Results:
        from opacus.validators import ModuleValidator

        model = ready(nn.ModuleDict({"rnn": getattr(nn, name)(INPUTS, H, batch_first=True)}))
        errors = torch.tensor(float(len(ModuleValidator.validate(model, strict=False))))
        x = like(model, B, T, INPUTS)
        before = model["rnn"](x)[0]
        fixed = ModuleValidator.fix(model).to(x)  # the new layer has the default dtype
        return {"errors": errors, "before": before, "fixed": fixed["rnn"](x)[0]}

    return case


CASES: dict[str, dict[str, Case]] = {
    "pytorch-forecasting": {
        "LSTM, lengths of 0": forecasting_layer("LSTM"),
        "GRU, lengths of 0": forecasting_layer("GRU"),
        "TemporalFusionTransformer": forecasting_model("TemporalFusionTransformer", lstm_layers=2),
        "RecurrentNetwork, GRU": forecasting_model("RecurrentNetwork", cell_type="GRU", rnn_layers=2),
        "RecurrentNetwork, LSTM": forecasting_model("RecurrentNetwork", cell_type="LSTM", rnn_layers=2),
    },
    "torchrl": {"GRUModule, episodes": torchrl_module("GRU"), "LSTMModule, episodes": torchrl_module("LSTM")},
    "gluonts": {"DeepARModel": gluonts_deepar, "TemporalFusionEncoder": gluonts_tft},
    "torch-geometric": {
        "LSTMAggregation": pyg_aggregation("LSTMAggregation", INPUTS, H),
        "GRUAggregation": pyg_aggregation("GRUAggregation", INPUTS, H),
        "Set2Set": pyg_aggregation("Set2Set", INPUTS, 5),
        "LCMAggregation": pyg_aggregation("LCMAggregation", INPUTS, H),
        "GatedGraphConv": pyg_graph("GatedGraphConv"),
        "JumpingKnowledge": pyg_graph("JumpingKnowledge"),
        "AttentiveFP": pyg_graph("AttentiveFP"),
    },
    "sb3-contrib": {"policy, one episode": sb3_policy(0.0), "policy, episodes": sb3_policy(0.05)},
    "opacus": {f"ModuleValidator, {name}": opacus_validator(name) for name in ("GRU", "LSTM", "RNN")},
}
