"""The forecast before training: from the gradients of the untrained base to the ranks worth trying."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankscope.analyse.stage import Models
from rankscope.data.examples import TokenisedExample, examples_from_frame
from rankscope.data.order import batches
from rankscope.errors import UserError
from rankscope.internals.gradients import capacity_rank, ranks_to_try, signal_rank
from rankscope.plan import Plan
from rankscope.provenance import provenance
from rankscope.records import ForecastRecord
from rankscope.runs import settings_hash
from rankscope.store import EXAMPLES, Store, write_parquet, write_record

MATRICES = "matrices.parquet"
NUM_EXAMPLES = 64
# What a trained parameter stores, where facts were learned (Allen-Zhu and Li 2024; LoRA Without Regret).
BITS_PER_PARAMETER = 2.0


def run(plan: Plan, store: Store, models: Models) -> list[ForecastRecord]:
    """Write the forecast for each base and training set, unless it is there; returns all of them."""
    found = []
    for base, settings in plan.bases.items():
        if settings.opening.quantization_config is not None:
            text = "the forecast is made of the gradient of every matrix, and what is in 4 or 8 bits has none"
            mend = "leave --forecast or quantization_config out"
            raise UserError(text, key=("model", base, "quantization_config"), mend=mend)
        for training_set in plan.relations:
            data = next(r.training_set for r in plan.runs if (r.base.name, r.training_set.name) == (base, training_set))
            expected = settings_hash(["forecast", 2, NUM_EXAMPLES, settings.fingerprint, data.fingerprint])
            old = store.read_forecast(base, training_set)
            if old is not None and old.settings_hash == expected:
                found.append(old)
                continue
            started_at, started = datetime.now(UTC).isoformat(), time.perf_counter()
            examples = pl.read_parquet(store.training_data(base, training_set) / EXAMPLES)
            train = examples_from_frame(examples.filter(pl.col("split") == "train"))
            values, table = forecast(models.base(settings), train)
            write_parquet(store.forecast(base, training_set) / MATRICES, table)
            record = ForecastRecord(
                status="complete",
                settings_hash=expected,
                provenance=provenance(),
                started_at=started_at,
                seconds=time.perf_counter() - started,
                base=base,
                training_set=training_set,
                **values,
            )
            write_record(store.forecast(base, training_set), record, [MATRICES])
            found.append(record)
    return found


def forecast(model: PreTrainedModel, examples: Sequence[TokenisedExample]) -> tuple[dict, pl.DataFrame]:
    """What the base's gradients on a sample, and the number of tokens in all, let one expect.

    Args:
        model: The base, frozen; it is given back so.
        examples: The whole training set.

    Returns:
        The fields of `ForecastRecord`, and one row a matrix.
    """
    (order,) = batches(len(examples), min(NUM_EXAMPLES, len(examples)), 1, seed=0)
    sample = [examples[index] for index in order]
    halves = [sample[0::2], sample[1::2] or sample[0::2]]
    matrices = adapted_matrices(model)
    losses, gradients = zip(*(gradient(model, matrices, half) for half in halves), strict=True)
    rows = []
    for name, weight in matrices.items():
        signal, energy_90, energy_99 = signal_rank(gradients[0][name], gradients[1][name])
        d_out, d_in = weight.shape
        rows.append((name, d_out, d_in, signal, energy_90, energy_99))
    names = ("name", "d_out", "d_in", "signal_rank", "energy_rank_90", "energy_rank_99")
    table = pl.DataFrame(rows, schema=names, orient="row")
    loss = sum(losses) / len(losses)
    num_scored = sum(example.num_scored_tokens for example in examples)
    bits, per_rank = loss * num_scored / math.log(2), BITS_PER_PARAMETER * sum(row[1] + row[2] for row in rows)
    needed = capacity_rank(bits, per_rank)
    typical, high = (int(np.quantile(table["signal_rank"], share, method="nearest")) for share in (0.5, 0.9))
    energy = int(np.quantile(table["energy_rank_90"], 0.5, method="nearest"))
    smallest = min(min(row[1], row[2]) for row in rows)
    return {
        "num_examples": len(sample),
        "num_scored_tokens": num_scored,
        "loss_nats_per_token": loss,
        "bits_to_store": bits,
        "bits_per_rank": per_rank,
        "capacity_rank": needed,
        "signal_rank_median": typical,
        "signal_rank_high": high,
        "energy_rank_90_median": energy,
        "ranks_to_try": ranks_to_try(needed, typical, max(high, energy), smallest),
    }, table


def adapted_matrices(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The weights that `all-linear` adapts: of every linear layer but the output head."""
    head = model.get_output_embeddings()
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }


def gradient(
    model: PreTrainedModel, matrices: dict[str, nn.Parameter], examples: Sequence[TokenisedExample]
) -> tuple[float, dict[str, Tensor]]:
    """The mean loss of examples over their scored tokens in nats, and its gradient for each matrix."""
    total = sum(example.num_scored_tokens for example in examples)
    loss = 0.0
    for weight in matrices.values():
        weight.requires_grad_(True)
    try:
        for example in examples:
            ids = torch.tensor([example.input_ids], device=model.device)
            start = max(1, example.num_prompt_tokens)
            logits = model(input_ids=ids).logits[0, start - 1 : -1]
            share = nn.functional.cross_entropy(logits.float(), ids[0, start:], reduction="sum") / total
            share.backward()
            loss += share.item()
        found = {name: weight.grad.detach().clone() for name, weight in matrices.items() if weight.grad is not None}
        found |= {name: torch.zeros_like(weight) for name, weight in matrices.items() if name not in found}
    finally:
        for weight in matrices.values():
            weight.requires_grad_(False)
            weight.grad = None
    return loss, found
