"""The most memory that one process holds, by what it does: train an arm, or score."""

from __future__ import annotations

from rankscope.cost.loads import Loads, TaskLoad, TrainingLoad
from rankscope.cost.model_shapes import ModelShape
from rankscope.cost.passes import Adapted
from rankscope.cost.pieces import SCORED_LOGITS, SCORED_TOKENS_CPU, adapted
from rankscope.runs import RunSettings
from rankscope.spec import Execute, Optimization

# Python, torch, transformers and PEFT once imported, with their working space; on a GPU they lie in the host's memory,
# and the driver's own part of the device's is what `nvidia-smi` shows of an idle process.
PROCESS_BYTES_CPU, CONTEXT_BYTES_GPU = 540_000_000, 500_000_000
# Values that autograd keeps of one token in one layer of a Llama: in d_model (two fewer where the norms are frozen), of
# the heads, in d_mlp, and of each adapter its rank; where texts share a row, queries, keys and values of each again.
_KEPT_FULL, _KEPT_FROZEN, _KEPT_HEADS, _KEPT_MLP, _KEPT_JOINED = 6, 4, 2, 4, 3
# Logits, their logarithms and their gradient are there at the same time.
_LOGITS = 3


def training_bytes(run: RunSettings, load: TrainingLoad, shape: ModelShape, execute: Execute, *, on_gpu: bool) -> int:
    """Training one run: weights, gradients, AdamW's state, activations of a micro-batch, logits of scored positions."""
    max_tokens = execute.max_tokens_per_batch
    width = _width(run.optimization)
    part = adapted(run.arm, shape)
    number, positions = load.micro_batches(run.optimization.batch_size, max_tokens, is_joined=not on_gpu)
    positions = min(max_tokens, positions / number)
    scored = run.optimization.batch_size * load.mean_tokens * load.scored_fraction / number
    added = 0 if part.is_full else part.num_trainable
    trained = 3 * part.num_trainable
    # A checkpoint takes a copy of the larger of weights and optimizer state on the host.
    copies = 0 if on_gpu else 2 * part.num_trainable
    kept = _kept(shape, part, is_joined=not on_gpu)
    if execute.gradient_checkpointing:  # the input of every layer, and the inside of one
        kept = shape.num_layers * shape.d_model + kept / (shape.num_layers + 1)
    activations = positions * kept + _LOGITS * scored * shape.vocab_size
    process = CONTEXT_BYTES_GPU if on_gpu else PROCESS_BYTES_CPU
    return int(shape.base_bytes(width) + width * (added + trained + copies + activations)) + process


def scoring_bytes(
    loads: Loads, shape: ModelShape, optimization: Optimization, max_tokens: int, *, on_gpu: bool, reads_full: bool
) -> int:
    """Scoring the largest task; a model that was trained whole is read beside the base that it goes into."""
    weights = shape.base_bytes(_width(optimization)) * (2 if reads_full else 1)
    tasks = [*loads.tasks.values(), *loads.validation.values()]
    values = max((_scored_values(task, shape, max_tokens, on_gpu=on_gpu) for task in tasks), default=0.0)
    return int(weights + _width(optimization) * values) + (CONTEXT_BYTES_GPU if on_gpu else PROCESS_BYTES_CPU)


def _kept(shape: ModelShape, part: Adapted, *, is_joined: bool) -> float:
    """Values kept for the backward pass of one token, in all layers; gradients of one layer come on top."""
    inner, narrow = shape.num_heads * shape.d_head, shape.num_kv_heads * shape.d_head
    kept = _KEPT_FULL if part.is_full else _KEPT_FROZEN
    layer = kept * shape.d_model + _KEPT_HEADS * (inner + narrow) + _KEPT_MLP * shape.d_mlp
    layer += _KEPT_JOINED * inner if is_joined else 0
    adapters = part.num_matrices * part.num_multiplied / max(1, sum(map(sum, shape.matrices)))  # rank, a matrix
    return (shape.num_layers + 1) * layer + adapters


def _scored_values(task: TaskLoad, shape: ModelShape, max_tokens: int, *, on_gpu: bool) -> float:
    """Values of the largest batch of a task: a layer's activations, logits, and for generation the cache."""
    inner, narrow = shape.num_heads * shape.d_head, shape.num_kv_heads * shape.d_head
    layer = 4 * shape.d_model + 2 * (inner + narrow) + 3 * shape.d_mlp
    if task.scoring == "generate":
        positions = min(max_tokens, task.num_items * (task.longest + task.max_new_tokens))
        # The cache grows by copying, so that an old and a new one are there at once.
        return positions * (2 * narrow * (shape.num_layers + 1) + layer)
    positions = min(max_tokens, task.num_tokens, max_tokens if on_gpu else SCORED_TOKENS_CPU)
    scored = positions * task.num_answer_tokens / max(1.0, task.num_prompt_tokens + task.num_answer_tokens)
    return positions * layer + _LOGITS * min(SCORED_LOGITS, scored * shape.vocab_size)


def _width(optimization: Optimization) -> int:
    return {"float64": 8, "float32": 4}.get(optimization.dtype, 2)
