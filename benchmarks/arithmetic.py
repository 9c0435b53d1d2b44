"""Useful arithmetic of the work, and what the machine could do in the same time.

Counted are floating-point operations that no method could leave out: for every token that is not padding, two for each
parameter of the layers' matrices in the forward pass, two for the gradient of the input, and two for the gradient of
the matrix where it is trained (a frozen one needs none); the same for the adapters; the output head at scored positions
only; and causal attention over half of the square. Norms, softmax, the optimizer and everything element by element
count nothing, so a share of 100% cannot be reached.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from work import Work

from rankscope.data.shapes import layer_matrices, tensor_shapes
from rankscope.data.tokens import Tokenizer


def training_arithmetic(work: Work) -> float:
    """Operations of all runs of the work."""
    tokenizer = Tokenizer.from_folder(work.model)
    rows = [json.loads(line) for line in Path(work.examples).read_text().splitlines()]
    pairs = tokenizer.encode_pairs([(row["prompt"], row["completion"]) for row in rows])
    config = json.loads((Path(work.model) / "config.json").read_text())
    matrices = layer_matrices(tensor_shapes(Path(work.model)))
    multiplied = sum(d_out * d_in for d_out, d_in in matrices.values())
    head = config["vocab_size"] * config["hidden_size"]
    width = (
        config["num_hidden_layers"]
        * config["num_attention_heads"]
        * (config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    )
    lengths = [min(len(prompt) + len(completion) + 1, work.max_length) for prompt, completion in pairs]
    scored = sum(min(len(completion) + 1, work.max_length) for _, completion in pairs)
    tokens, squares = sum(lengths), sum(length * length for length in lengths)
    total = 0.0
    for run in work.runs:
        products = 3 if run.rank is None else 2
        adapters = 0 if run.rank is None else sum(run.rank * (d_out + d_in) for d_out, d_in in matrices.values())
        total += 2 * products * (tokens * multiplied + scored * head)
        total += 2 * 3 * tokens * adapters
        total += 3 * 2 * squares * width  # scores and mixing, halved by causality, forward once and backward twice
    return total


def matrix_product_rate() -> float:
    """Floating-point operations a second of torch's matrix product, the best of five, as both stacks train.

    On a CUDA GPU in bfloat16; elsewhere in float32, all cores together.
    """
    import torch

    is_cuda = torch.cuda.is_available()
    # On a GPU a small product would time its launch.
    size, dtype, device = (8192, torch.bfloat16, "cuda") if is_cuda else (1536, torch.float32, "cpu")
    # Drawn: a GPU multiplies constants at a higher clock than it holds in training.
    matrix = torch.rand(size, size, generator=torch.Generator(device).manual_seed(0), device=device, dtype=dtype)
    wait = torch.cuda.synchronize if is_cuda else lambda: None
    best = 0.0
    for _ in range(5):
        wait()
        started = time.perf_counter()
        matrix @ matrix
        wait()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best
