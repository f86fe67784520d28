"""The processes that train one model together, as `torchrun` starts them; one alone is a world too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous


@dataclass(frozen=True)
class World:
    """Each process has some rows of every batch: number `rank` of `size`. Number 0 writes and speaks."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def rows(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """This process's rows of a batch."""
        return tensor.chunk(self.size, dim)[self.rank] if self.size > 1 else tensor

    def all_rows(self, tensor: Tensor, dim: int) -> Tensor:
        """The whole batch, from the rows of each process. All have to ask."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts, dim)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes. All have to ask."""
        if self.size > 1:
            tensor = tensor.clone()
            distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it is so for any process. All have to ask."""
        return flag if self.size == 1 else bool(self.total(torch.tensor(float(flag), device=device)) > 0)

    def told(self, value: object) -> object:
        """What process 0 says. All have to ask."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]


def restarted() -> bool:
    """Whether torchrun has started this job anew, after a process was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """The world that torchrun's variables describe: NCCL on GPUs, gloo on CPUs. Without them this process alone."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World()
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, size = next(iter(rendezvous("env://")))
    # A restarted job would find the addresses of the processes that have gone.
    store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    distributed.init_process_group("nccl" if gpu else "gloo", store=store, rank=rank, world_size=size)
    try:
        yield World(distributed.get_rank(), distributed.get_world_size())
    finally:
        with contextlib.suppress(RuntimeError):  # a process that was lost does not answer
            distributed.destroy_process_group()
