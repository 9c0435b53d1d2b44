"""The cost of each piece of work: one training run, one task for one model, one analysis."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rankscope.cost.devices import Device
from rankscope.cost.loads import TaskLoad, TrainingLoad
from rankscope.cost.model_shapes import ModelShape
from rankscope.cost.passes import Adapted, Work, backward, decoding_step, forward, halving, update
from rankscope.data.targets import target_modules
from rankscope.runs import ArmSettings, RunSettings
from rankscope.sizes import num_trainable
from rankscope.spec import Execute

# Scoring on a processor never puts more positions into one pass (scoring/rows.py), nor more logits anywhere.
SCORED_TOKENS_CPU, SCORED_LOGITS = 1024, 2**26
# Seconds that a piece takes whatever its size: files, records, checks, and for a run PEFT's own set-up of an adapter.
TRAIN_SECONDS, TRAIN_SECONDS_PER_MATRIX, EVALUATE_SECONDS, ANALYSE_SECONDS = 0.25, 0.004, 0.06, 0.06
_ITEM_SECONDS = 1e-4  # encoding, reading answers, writing a row
_READ_BYTES_PER_SECOND = 1.0e9
_WRITE_BYTES_PER_SECOND = 0.4e9
# Singular values of a full update: a decomposition of each matrix takes about so many times d_out * d_in * min of both.
_DECOMPOSITION = 12.0
# In float64, at half the rate, and decompositions reach a fraction of a product's.
_FLOAT64 = 8
# Between devices, and between a device and the host: PCIe 4 as it is reached. Assumed; NVLink is some ten times faster.
_LINK_BYTES_PER_SECOND = 20e9
# The memory of a host with GPUs as AdamW reaches it there: assumed. All processes of a worker share it.
_HOST_BYTES_PER_SECOND = 50e9
_PER_PATTERN, _PER_COMPARED_PATTERN = 180.0, 520.0
# Most generations end at about the length of the reference; a few of a batch go on, and the batch with them.
_GENERATED_STEPS, _GENERATED_TOKENS = 1.6, 1.2


@dataclass(frozen=True)
class Piece:
    """A piece of work.

    Attributes:
        tokens: Trained on or scored, without padding.
        arithmetic: Floating-point operations in matrix products.
        seconds: On one device.
    """

    tokens: float
    arithmetic: float
    seconds: float

    def __add__(self, other: Piece) -> Piece:
        """Both, one after the other."""
        return Piece(self.tokens + other.tokens, self.arithmetic + other.arithmetic, self.seconds + other.seconds)

    def longer_by(self, seconds: float) -> Piece:
        """The same with time for what comes before or after it."""
        return Piece(self.tokens, self.arithmetic, self.seconds + seconds)


def adapted(arm: ArmSettings, shape: ModelShape) -> Adapted:
    """What an arm trains of a model."""
    # Every piece of work and every size asks, and walking through all tensors takes milliseconds.
    key = arm.model_dump_json()
    if key not in shape.adapted:
        shape.adapted[key] = _adapted(arm, shape)
    return shape.adapted[key]


def _adapted(arm: ArmSettings, shape: ModelShape) -> Adapted:
    # An adapter whose size only its training tells is small beside the base.
    size = num_trainable(arm, shape.tensors) or 0
    if arm.capabilities.saves == "model":
        return Adapted(size, len(shape.tensors), 0, 0, is_full=True)
    number = len(_targets(arm, shape))
    return Adapted(size, 2 * number, number, size, is_full=False)


def train_piece(run: RunSettings, load: TrainingLoad, shape: ModelShape, device: Device, execute: Execute) -> Piece:
    """One training run, with its validation losses, its set-up and its saving; a model in parts on all its devices."""
    part, optimization = adapted(run.arm, shape), run.optimization
    shares = execute.shard if part.is_full else 1
    work, number = step_work(run, load, shape, execute, is_joined=device.memory_bytes is None)
    validations = min(optimization.num_validations, run.num_steps)
    passes = math.ceil(load.num_validation_tokens / (execute.max_tokens_per_batch * shares))
    validation = forward(
        shape, load.num_validation_tokens, load.mean_tokens, load.num_validation_tokens * load.scored_fraction, part
    )
    checked = Work(validation.arithmetic, validation.moved, validation.operations * passes).times(validations)
    work = work.times(run.num_steps) + checked
    faster = device.in_half if optimization.bf16 is True else device
    # Each device starts every operation, on its share of the rows.
    divided = Work(work.arithmetic / shares, work.moved / shares, work.operations)
    sent = _exchange_seconds(shape, execute) * number * run.num_steps if part.is_full else 0.0
    if _steps_on_host(part, execute, on_gpu=device.memory_bytes is not None):
        sent += 4 * update(part).moved / _HOST_BYTES_PER_SECOND * run.num_steps
    tokens = optimization.batch_size * load.mean_tokens * run.num_steps
    return Piece(tokens, work.arithmetic, faster.seconds(divided) + sent + TRAIN_SECONDS + _around(part, shape))


def step_work(
    run: RunSettings, load: TrainingLoad, shape: ModelShape, execute: Execute, *, is_joined: bool
) -> tuple[Work, int]:
    """An optimizer step: its work on the device, and the number of micro-batches that it takes."""
    part, size = adapted(run.arm, shape), run.optimization.batch_size
    shares = execute.shard if part.is_full else 1
    number, positions = load.micro_batches(size, execute.max_tokens_per_batch * shares, is_joined=is_joined)
    scored = size * load.mean_tokens * load.scored_fraction / number
    sizes = (positions / number, positions / size, scored)
    once = forward(shape, *sizes, part) + backward(shape, *sizes, part)
    if execute.gradient_checkpointing:  # the layers once more; the head is outside of them
        once += forward(shape, *sizes[:2], 0.0, part)
    if run.optimization.bf16 is True:
        once += halving(shape).times(2 if execute.gradient_checkpointing else 1)
    on_device = Work() if _steps_on_host(part, execute, on_gpu=not is_joined) else update(part)
    return once.times(number) + on_device, number


def _steps_on_host(part: Adapted, execute: Execute, *, on_gpu: bool) -> bool:
    """Whether AdamW runs on the host's processor, where the weights lie that a GPU has only while it computes."""
    return on_gpu and part.is_full and execute.cpu_offload


def _around(part: Adapted, shape: ModelShape) -> float:
    """Seconds before and after: a base that was trained is read again; an adapter is set up matrix by matrix."""
    written = 4 * part.num_trainable / _WRITE_BYTES_PER_SECOND
    return written + (shape_seconds(shape) if part.is_full else TRAIN_SECONDS_PER_MATRIX * part.num_matrices)


def _exchange_seconds(shape: ModelShape, execute: Execute) -> float:
    """What a model in parts takes to exchange in a micro-batch: weights forward and backward, and gradients."""
    sent = 3 * 4 * shape.num_parameters / _LINK_BYTES_PER_SECOND
    offloaded = sent / execute.shard if execute.cpu_offload else 0.0
    return sent * (execute.shard - 1) / execute.shard + offloaded


def evaluate_piece(
    load: TaskLoad, shape: ModelShape, device: Device, max_tokens: int, part: Adapted | None = None
) -> Piece:
    """One task for one model; the model itself is made ready once for all of its tasks."""
    fixed = EVALUATE_SECONDS + _ITEM_SECONDS * load.num_items
    if load.scoring == "generate":
        work = _generation(load, shape, max_tokens, part)
    else:
        most = min(max_tokens, SCORED_TOKENS_CPU) if device.memory_bytes is None else max_tokens
        scored = load.num_items * load.num_answer_tokens
        passes = max(load.num_read_tokens / most, scored * shape.vocab_size / SCORED_LOGITS, 1)
        once = forward(shape, load.num_read_tokens, load.row_length, scored, part)
        work = Work(once.arithmetic, once.moved, once.operations * math.ceil(passes))
    return Piece(load.num_tokens, work.arithmetic, device.seconds(work) + fixed)


def analyse_piece(
    name: str, probe_lengths: tuple[int, ...], shape: ModelShape, device: Device, part: Adapted | None
) -> Piece:
    """One analysis of one model (`part` None: of the base)."""
    if name == "spectra":
        return _spectra(shape, device, part)
    if name == "subspaces":
        return _subspaces(shape, device, part)
    tokens = sum(probe_lengths)
    length = max(probe_lengths, default=0)
    work = forward(shape, tokens, length, 1, part)
    if name == "representations":
        # Streams are written and read, and three products of them are summed in float64.
        moved = 16.0 * tokens * shape.d_model * shape.num_layers
        work += Work(2 * 6.0 * tokens * shape.d_model**2 * shape.num_layers, moved, 60.0 * shape.num_layers)
        return Piece(tokens, work.arithmetic, device.seconds(work) + ANALYSE_SECONDS)
    if name == "neurons":
        work += Work(0.0, 60.0 * tokens * shape.d_mlp * shape.num_layers, 60.0 * shape.num_layers)
        return Piece(tokens, work.arithmetic, device.seconds(work) + ANALYSE_SECONDS)
    # Patterns of all heads are made, measured in float64 and, of a tuned model, compared with the base's: entropies and
    # divergences are logarithms, each as slow as dozens of values that are moved (docs/log.md).
    patterns = sum(number**2 for number in probe_lengths) * shape.num_heads * shape.num_layers
    moved = (_PER_PATTERN if part is None else _PER_COMPARED_PATTERN) * patterns
    work += Work(0.0, moved, 60.0 * shape.num_layers * max(1, tokens // 2048))
    return Piece(tokens, work.arithmetic, device.seconds(work) + ANALYSE_SECONDS)


def shape_seconds(shape: ModelShape) -> float:
    """Reading a model from disk."""
    return 0.1 + 4 * shape.num_parameters / _READ_BYTES_PER_SECOND


def _targets(arm: ArmSettings, shape: ModelShape) -> list[tuple[int, int]]:
    """The matrices that an arm adapts."""
    targets = arm.options.get("target_modules")
    if targets is None or not arm.capabilities.adapts_matrices:
        return []
    return list(target_modules(targets, dict(shape.tensors), arm.options.get("layers_to_transform")).values())


def _generation(load: TaskLoad, shape: ModelShape, max_tokens: int, part: Adapted | None) -> Work:
    room = load.num_prompt_tokens + load.max_new_tokens
    rows = max(1, min(load.num_items, int(max_tokens / room)))
    batches = math.ceil(load.num_items / rows)
    rows = load.num_items / batches
    steps = min(load.max_new_tokens, _GENERATED_STEPS * load.num_answer_tokens + 4)
    new = min(load.max_new_tokens, _GENERATED_TOKENS * load.num_answer_tokens + 1)
    prompt = forward(shape, rows * load.num_prompt_tokens * 1.1, load.num_prompt_tokens, rows, part)
    # Rows leave the batch as they end, so that the mean step has fewer than the first.
    step = decoding_step(shape, rows * min(1.0, new / steps), load.num_prompt_tokens + new / 2, part)
    return (prompt + step.times(steps)).times(batches)


def decomposition_seconds(shape: ModelShape, device: Device) -> float:
    """The decompositions of a base's matrices, which are made once for all studies."""
    arithmetic = sum(2 * _DECOMPOSITION * d_out * d_in * min(d_out, d_in) for d_out, d_in in shape.matrices)
    return _FLOAT64 * device.seconds(Work(arithmetic))


def _subspaces(shape: ModelShape, device: Device, part: Adapted | None) -> Piece:
    if part is None:
        return Piece(0, 0.0, 0.0)
    if part.is_full:
        arithmetic = sum(_DECOMPOSITION * d_out * d_in * min(d_out, d_in) for d_out, d_in in shape.matrices)
    else:
        # The largest triplets from a small problem, about a third as wide as the matrix.
        arithmetic = sum(_DECOMPOSITION * (min(pair) / 3) ** 3 + 600 * min(pair) ** 2 for pair in shape.matrices)
    seconds = 8 * shape.num_parameters / _READ_BYTES_PER_SECOND
    return Piece(0, arithmetic, _FLOAT64 * device.seconds(Work(arithmetic)) + seconds + ANALYSE_SECONDS)


def _spectra(shape: ModelShape, device: Device, part: Adapted | None) -> Piece:
    if part is None:
        return Piece(0, 0.0, 0.0)
    if part.is_full:
        arithmetic = sum(_DECOMPOSITION * d_out * d_in * min(d_out, d_in) for d_out, d_in in shape.matrices)
        seconds = 12 * shape.num_parameters / _READ_BYTES_PER_SECOND
    else:
        rank = part.num_multiplied / max(1, sum(d_out + d_in for d_out, d_in in shape.matrices))
        arithmetic = sum(4 * (d_out + d_in) * rank**2 for d_out, d_in in shape.matrices)
        seconds = 8 * part.num_trainable / _READ_BYTES_PER_SECOND + 1e-3 * part.num_matrices
    return Piece(0, arithmetic, _FLOAT64 * device.seconds(Work(arithmetic)) + seconds + ANALYSE_SECONDS)
