"""Processes that train one model together: who is first, what all of them add up, what the first has decided."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rankscope.plan import Place

# As long as the first process may take to write a checkpoint while the others wait; one that has died is noticed by the
# parent at once.
_PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Group:
    """A process among those that hold a part of one model each; alone, every method gives back what it was given.

    Attributes:
        rank: From 0. The first decides and writes; nothing else tells the processes apart.
        size: How many there are.
        device: Where this process computes; None: where its model is.
        mesh: All of their devices, as torch divides a model among them; None alone.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    mesh: DeviceMesh | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def agree(self, value: bool) -> bool:
        """What the first process says, in all of them."""
        if self.size == 1:
            return value
        said = torch.tensor([value], dtype=torch.uint8)
        dist.broadcast(said, src=0)
        return bool(said.item())

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, the same to the last bit in each."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        # A reduction may add in another order elsewhere, and what follows has to go the same way everywhere.
        dist.broadcast(sums, src=0)
        return sums.tolist()

    def most(self, value: int) -> int:
        """The largest over all processes."""
        if self.size == 1:
            return value
        largest = torch.tensor([value])
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest.item())

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """One process after the other: so that a whole model is never in memory more than once."""
        for _ in range(self.rank if self.size > 1 else 0):
            dist.barrier()
        yield
        for _ in range(self.size - self.rank if self.size > 1 else 0):
            dist.barrier()


ALONE = Group()


def join(place: Place, device: str) -> Group:
    """Meet the other processes of a group; returns when all are there.

    They find each other by a file, and then speak over the loopback interface only (`worker_environment`).

    Args:
        place: This process's.
        device: `cpu` or `cuda`, of which each process sees one.
    """
    if not dist.is_initialized():
        store = dist.FileStore(place.meeting, place.size)
        # Whatever the device, what lies in the host's memory is exchanged by gloo.
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=_PATIENCE)
    return Group(place.rank, place.size, torch.device(device), _mesh(device, place.size))


@functools.cache
def _mesh(device: str, size: int) -> DeviceMesh:
    """The devices of a group, once while it lasts; for all processes to call.

    Where the machine has a GPU and the group computes on processors, torch makes a second group of the same processes:
    they have to do so together, and so never within `in_turn`.
    """
    return init_device_mesh(device, (size,))


def leave() -> None:
    """Say goodbye, if this process ever met others."""
    _mesh.cache_clear()
    if dist.is_initialized():
        dist.destroy_process_group()
