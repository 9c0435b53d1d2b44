"""Which examples each optimizer step sees: decided by the seed alone, never by the method."""

from __future__ import annotations

import numpy as np


def batches(num_examples: int, batch_size: int, num_steps: int, seed: int) -> list[list[int]]:
    """The examples of every step, by index: each epoch is a new permutation, its last batch may be short.

    Args:
        num_examples: How many examples there are.
        batch_size: Examples in a step.
        num_steps: Steps in all; the last epoch may end early.
        seed: Of the run. The same seed gives every arm the same batches, and a longer run begins as a shorter one.
    """
    if num_examples < 1 or batch_size < 1:
        raise ValueError("there are no batches without examples, or of none")
    generator = np.random.default_rng(seed)
    steps: list[list[int]] = []
    while len(steps) < num_steps:
        order = generator.permutation(num_examples).tolist()
        steps += [order[start : start + batch_size] for start in range(0, num_examples, batch_size)]
    return steps[:num_steps]
