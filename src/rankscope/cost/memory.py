"""The most memory that one process holds, by what it does: train an arm, or score."""

from __future__ import annotations

import math

from rankscope.cost.loads import Loads, TaskLoad, TrainingLoad
from rankscope.cost.model_shapes import ModelShape
from rankscope.cost.passes import Adapted
from rankscope.cost.pieces import SCORED_LOGITS, SCORED_TOKENS_CPU, adapted
from rankscope.data.targets import layer_number
from rankscope.runs import RunSettings
from rankscope.spec import Execute, Optimization

# Python, torch, transformers and PEFT once imported (430 MB, with bitsandbytes 490); on a GPU they lie in the host's
# memory, and the driver's own part of the device's is what `nvidia-smi` shows of an idle process.
PROCESS_BYTES_CPU, CONTEXT_BYTES_GPU = 460_000_000, 500_000_000
# Values that autograd keeps of one token in one layer of a Llama: in d_model (two fewer where the norms are frozen), of
# the heads, in d_mlp, and of each adapter its rank; where texts share a row, what the heads give once more.
_KEPT_FULL, _KEPT_FROZEN, _KEPT_HEADS, _KEPT_MLP, _KEPT_JOINED = 6, 4, 2, 4, 1
# In mixed precision what the heads and the MLP keep is bfloat16; the residual stream stays float32, and products keep a
# copy of it in bfloat16 on top.
_HALF_BYTES, _KEPT_HALF = 2, 1
# Of a model in parts the first process makes weights and both of AdamW's values whole for a checkpoint (in 8 bits too:
# they are written in float32), and copies the larger file's; at the end all weights of the model (train/checkpoint.py).
_WHOLE_IN_CHECKPOINT = 1 + 2 + 2
# Logits, their logarithms and their gradient are there at the same time; the head makes so many in one piece, and its
# own gradient is there twice more before it is added to the others (models/heads.py).
_LOGITS, TRAINED_LOGITS, _HEAD_GRADIENTS = 3, 2**24, 2


def training_bytes(
    run: RunSettings, load: TrainingLoad, shape: ModelShape, execute: Execute, *, on_gpu: bool, together: int = 1
) -> int:
    """Training one run or a pack of such: weights, gradients, AdamW's state, a micro-batch, and the validation rows.

    On a processor what a step has freed stays with the process, in blocks of other sizes than the validation rows want,
    so that both are there; a GPU's allocator gives them the same memory.
    """
    step = _step_bytes(run, load, shape, execute, on_gpu=on_gpu, together=together)
    checked = _validation_bytes(run, load, shape, execute)
    working = max(step, checked) if on_gpu else step + checked
    held = _held_bytes(run, shape, together)
    if adapted(run.arm, shape).is_full and execute.is_sharded:
        parts = 0.0 if on_gpu and execute.cpu_offload else held / execute.shard
        held = _gathered_bytes(shape, _width(run.optimization)) + parts
    held += 0 if on_gpu else _checkpoint_bytes(run, shape, execute)
    return int(held + working) + (CONTEXT_BYTES_GPU if on_gpu else PROCESS_BYTES_CPU)


def host_bytes(run: RunSettings, shape: ModelShape, execute: Execute) -> int:
    """What training one run on GPUs takes of the host's memory, in all processes of a worker together.

    A base is read there before it goes to its device, and a checkpoint is written from there; what full fine-tuning
    keeps with `cpu_offload` lies there all the time.
    """
    is_in_parts = adapted(run.arm, shape).is_full and execute.is_sharded
    held = _held_bytes(run, shape) if is_in_parts and execute.cpu_offload else 0.0
    taken = max(shape.base_bytes(_width(run.optimization)), held + _checkpoint_bytes(run, shape, execute))
    return int(taken) + execute.shard * PROCESS_BYTES_CPU


def _held_bytes(run: RunSettings, shape: ModelShape, together: int = 1) -> float:
    """Weights, and of those that are trained a gradient and AdamW's two values."""
    part, width = adapted(run.arm, shape), _width(run.optimization)
    # In 8 bits each block of 256 has its largest in float32.
    state = 1 + 4 / 256 if run.optimization.optim == "adamw_8bit" else width
    own = 0 if part.is_full else width
    return shape.base_bytes(width) + together * part.num_trainable * (own + width + 2 * state)


def _checkpoint_bytes(run: RunSettings, shape: ModelShape, execute: Execute) -> float:
    """What a checkpoint makes on the host: a copy of the larger of weights and AdamW's values, or all of them whole."""
    part = adapted(run.arm, shape)
    copies = 2 * part.num_trainable
    if part.is_full and execute.is_sharded:
        copies = max(_WHOLE_IN_CHECKPOINT * part.num_trainable, shape.num_parameters)
    return _width(run.optimization) * copies


def _gathered_bytes(shape: ModelShape, width: int) -> float:
    """What is whole of a model in parts: weights and gradients of two layers (one is fetched ahead) and of the rest."""
    layers = sum(math.prod(size) for name, size in shape.tensors.items() if layer_number(name) is not None)
    return width * (2 * (shape.num_parameters - layers) + 3 * layers / shape.num_layers)


def _step_bytes(
    run: RunSettings, load: TrainingLoad, shape: ModelShape, execute: Execute, *, on_gpu: bool, together: int
) -> float:
    """What a micro-batch adds while its gradients are made."""
    part, width = adapted(run.arm, shape), _width(run.optimization)
    shares = execute.shard if part.is_full else 1
    size = together * run.optimization.batch_size
    number, positions = load.micro_batches(size, execute.max_tokens_per_batch * shares, is_joined=not on_gpu)
    positions = min(execute.max_tokens_per_batch, positions / number / shares)
    scored = size * load.mean_tokens * load.scored_fraction / number / shares
    is_half = run.optimization.bf16 is True
    layer = _kept_bytes(shape, part, run.optimization, is_joined=not on_gpu)
    # Products in bfloat16 keep their own copy of every weight for the backward pass.
    copies = _HALF_BYTES * shape.num_in_layers if is_half else 0
    if execute.gradient_checkpointing:  # the input of every layer, and the inside of one
        kept = shape.num_layers * width * shape.d_model + layer
        # Copies of weights that are trained last to the end of the forward pass all the same, but for models in parts.
        copies = copies if part.is_full and not execute.is_sharded else copies / shape.num_layers
    else:
        kept = (shape.num_layers + 1) * layer  # gradients of one layer come on top
    logits = _LOGITS * width * min(scored * shape.vocab_size, TRAINED_LOGITS)
    head = _HEAD_GRADIENTS * width * shape.vocab_size * shape.d_model if part.is_full else 0
    return positions * kept + copies + logits + head


def _validation_bytes(run: RunSettings, load: TrainingLoad, shape: ModelShape, execute: Execute) -> float:
    """The largest forward pass over the rows whose losses are taken along the way: one layer at a time, and logits."""
    width = _width(run.optimization)
    shares = execute.shard if adapted(run.arm, shape).is_full else 1
    positions = min(execute.max_tokens_per_batch, load.num_validation_tokens / shares)
    logits = min(positions * load.scored_fraction * shape.vocab_size, TRAINED_LOGITS)
    return width * (positions * _layer_values(shape) + _LOGITS * logits)


def scoring_bytes(
    loads: Loads, shape: ModelShape, optimization: Optimization, max_tokens: int, *, on_gpu: bool, reads_full: bool
) -> int:
    """Scoring the largest task; a model that was trained whole is read beside the base that it goes into."""
    weights = shape.base_bytes(_width(optimization)) * (2 if reads_full else 1)
    tasks = [*loads.tasks.values(), *loads.validation.values()]
    values = max((_scored_values(task, shape, max_tokens, on_gpu=on_gpu) for task in tasks), default=0.0)
    return int(weights + _width(optimization) * values) + (CONTEXT_BYTES_GPU if on_gpu else PROCESS_BYTES_CPU)


def _kept_bytes(shape: ModelShape, part: Adapted, optimization: Optimization, *, is_joined: bool) -> float:
    """Kept for the backward pass of one token in one layer."""
    inner, narrow = shape.num_heads * shape.d_head, shape.num_kv_heads * shape.d_head
    width = _width(optimization)
    products = _HALF_BYTES if optimization.bf16 is True else width
    stream = (_KEPT_FULL if part.is_full else _KEPT_FROZEN) * width
    stream += _KEPT_HALF * _HALF_BYTES if optimization.bf16 is True else 0
    values = _KEPT_HEADS * (inner + narrow) + _KEPT_MLP * shape.d_mlp + (_KEPT_JOINED * inner if is_joined else 0)
    ranks = part.num_matrices * part.num_multiplied / max(1, sum(map(sum, shape.matrices))) / shape.num_layers
    return stream * shape.d_model + products * (values + ranks)


def _layer_values(shape: ModelShape) -> float:
    """Values of one token in one layer while it computes and nothing is kept."""
    inner, narrow = shape.num_heads * shape.d_head, shape.num_kv_heads * shape.d_head
    return 4 * shape.d_model + 2 * (inner + narrow) + 3 * shape.d_mlp


def _scored_values(task: TaskLoad, shape: ModelShape, max_tokens: int, *, on_gpu: bool) -> float:
    """Values of the largest batch of a task: a layer's activations, logits, and for generation the cache."""
    narrow, layer = shape.num_kv_heads * shape.d_head, _layer_values(shape)
    if task.scoring == "generate":
        positions = min(max_tokens, task.num_items * (task.longest + task.max_new_tokens))
        # The cache grows by copying, so that an old and a new one are there at once.
        return positions * (2 * narrow * (shape.num_layers + 1) + layer)
    positions = min(max_tokens, task.num_tokens, max_tokens if on_gpu else SCORED_TOKENS_CPU)
    scored = positions * task.num_answer_tokens / max(1.0, task.num_prompt_tokens + task.num_answer_tokens)
    return positions * layer + _LOGITS * min(SCORED_LOGITS, scored * shape.vocab_size)


def _width(optimization: Optimization) -> int:
    return {"float64": 8, "float32": 4}.get(optimization.dtype, 2)
