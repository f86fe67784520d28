"""What tests run in two processes: `torchrun --nproc-per-node=2 -m tests.support.processes lose|each ...`."""

from __future__ import annotations

import json
import os
import signal
import sys
from unittest import mock

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.nn import functional as F


def lose(steps: list[int], arguments: list[str]) -> int:
    """The command line, in which process 1 is killed before a step: another one each time that torchrun starts it."""
    from fastcells.charlm.cli import main
    from fastcells.charlm.training import Training

    if os.environ["RANK"] == "1":
        original, step = Training._step, steps[int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))]

        def losing(self: Training, pairs: list[tuple[Tensor, Tensor]]) -> int:
            if self.place.step == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, pairs)

        Training._step = losing
    return main(arguments)


def each(commands: list[list[str]]) -> int:
    """Command lines one after another, as if each had processes of its own; then `shard`."""
    from fastcells.charlm import world
    from fastcells.charlm.cli import main

    for number, arguments in enumerate(commands):
        prefix = lambda name, store, number=number: PrefixStore(f"{number}/{name}", store)  # noqa: E731
        with mock.patch.object(world, "PrefixStore", prefix):
            try:
                status = main(arguments)
            except SystemExit as left:
                status = left.code
        print(f"process {os.environ['RANK']}, command {number}: status {status}", flush=True)
    return shard()


def shard() -> int:
    """A model sharded by FSDP2 beside one that is whole: the losses of five steps."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from fastcells.charlm import CharLM, Config

    distributed.init_process_group("gloo")
    rank, V = distributed.get_rank(), 27
    ids = torch.randint(V, (4, 10), generator=torch.Generator().manual_seed(1))
    losses: list[list[float]] = []
    for sharded in (True, False):
        torch.manual_seed(0)
        model = CharLM(V, Config(hidden=16, layers=2))
        if sharded:
            mesh = init_device_mesh("cpu", (2,))
            fully_shard(model.layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            assert all(p.to_local().numel() < p.numel() for p in model.parameters()), "each process holds a part"
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses.append([])
        for _ in range(5):
            rows = ids[2 * rank : 2 * rank + 2] if sharded else ids
            logits, _ = model(rows[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mean = loss.detach().clone()
            distributed.all_reduce(mean)
            losses[-1].append(mean.item() / 2)
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-6, atol=0.0)
    print(f"process {rank}: the same losses", flush=True)
    distributed.barrier()
    distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    sys.exit(each(given) if sys.argv[1] == "each" else lose(given, sys.argv[3:]))
