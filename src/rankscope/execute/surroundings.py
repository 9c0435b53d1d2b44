"""What a worker's process finds when it starts: its threads, its GPU, and where its errors go."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from rankscope.plan import Layout

# What numerical libraries read when they are imported.
NUMBERS_OF_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def surroundings(layout: Layout, slot: int, rank: int = 0) -> Iterator[None]:
    """What a process reads once, when it starts: its number of threads, and which GPU is its own."""
    wanted = worker_environment(layout, slot, rank)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def worker_environment(layout: Layout, slot: int, rank: int = 0) -> dict[str, str]:
    """The environment variables of a worker's process.

    Args:
        layout: Device and threads.
        slot: The worker's number, from 0; of the GPUs that may be used, those in its place are its own.
        rank: Of the worker's processes, with a GPU each.
    """
    environment = dict.fromkeys(NUMBERS_OF_THREADS, str(layout.threads_per_worker))
    environment["TOKENIZERS_PARALLELISM"] = os.environ.get("TOKENIZERS_PARALLELISM", "false")
    if layout.device == "cuda" and layout.num_workers * layout.shard > 1:
        visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        number = slot * layout.shard + rank
        environment["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)] if visible else str(number)
    if layout.is_sharded:
        # Processes that hold a model in parts speak over ports, which nobody outside of this machine is to reach.
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        environment |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), loopback)
    return environment


@contextmanager
def errors_to(stream: IO[bytes]) -> Iterator[None]:
    """What processes that are started inside write to standard error, for as long as they live, goes to a file."""
    own = os.dup(2)
    os.dup2(stream.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)
