"""A short measurement of this machine: twenty training steps and a little scoring, beside what was forecast."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from rankscope.cost.devices import Device
from rankscope.cost.estimate import Outline
from rankscope.cost.loads import TaskLoad, TrainingLoad
from rankscope.cost.pieces import adapted, evaluate_piece, step_work
from rankscope.data.examples import TokenisedExample
from rankscope.data.hub import model_folder
from rankscope.models.loading import DTYPES, load_model, padded_batch
from rankscope.models.methods.making import make_trainable
from rankscope.models.methods.pack import TrainablePack
from rankscope.plan import Plan
from rankscope.runs import RunSettings
from rankscope.scoring.losses import completion_losses
from rankscope.train.loop import RunState, accumulate_gradients, clip_gradients, set_learning_rate, start_run

_NUM_STEPS = 20
_NUM_ROWS, _NUM_PASSES = 32, 4


def measured_factors(plan: Plan, outline: Outline, device: Device) -> dict[str, float]:
    """Measured over forecast seconds of `full` and `adapter` training and of `evaluate`, on the plan's first base.

    Args:
        plan: The study's plan.
        outline: What its cost was computed from.
        device: What the forecast was made for.
    """
    torch.set_num_threads(plan.layout.threads_per_worker)
    first = outline.runs[0].base
    kinds = {run.arm.capabilities.saves == "model": run for run in outline.runs if run.base == first}
    factors = {}
    for is_full, run in kinds.items():
        # Full fine-tuning changes the base, so each kind has its own.
        folder = model_folder(run.base.source, run.base.revision)
        model = load_model(folder, DTYPES[plan.dtype], plan.layout.device, run.base.opening)
        pack = make_trainable(model, (run,), partial(_first_batches, outline, plan.layout.device))
        steps = _NUM_STEPS // len(kinds)
        measured = _step_seconds(pack, outline, run, steps)
        factors["full" if is_full else "adapter"] = measured / _forecast_step(outline, run, device)
        if "evaluate" not in factors:
            factors["evaluate"] = _scoring_factor(pack, outline, run, device)
        pack.close()
    return factors


def _first_batches(outline: Outline, device: str, run: RunSettings) -> list[dict[str, torch.Tensor]]:
    """For initialisations that look at examples; what they find does not matter to the time of a step."""
    vocab_size = outline.shapes[run.base.name].vocab_size
    return [padded_batch(_examples(_training(outline, run), run.optimization.batch_size, vocab_size), device)]


def _step_seconds(pack: TrainablePack, outline: Outline, run: RunSettings, num_steps: int) -> float:
    """The median of some steps, the first left out: memory is found in it."""
    size, vocab_size = run.optimization.batch_size, outline.shapes[run.base.name].vocab_size
    examples = _examples(_training(outline, run), 4 * size, vocab_size)
    order = [[(step * size + row) % len(examples) for row in range(size)] for step in range(num_steps)]
    state = start_run(pack, 0, examples, examples[:1], order)
    seconds = [_step(pack, state, outline.study.execute.max_tokens_per_batch) for _ in range(num_steps)]
    return median(seconds[1:])


def _step(pack: TrainablePack, state: RunState, max_tokens: int) -> float:
    clock = _clock(pack)
    started = clock()
    set_learning_rate(state)
    state.optimizer.zero_grad(set_to_none=True)
    accumulate_gradients(pack, {0: [state.examples[index] for index in state.order[state.step]]}, max_tokens)
    clip_gradients(state)  # waits for the device: its norm is read
    state.optimizer.step()
    state.step += 1
    return clock() - started


def _clock(pack: TrainablePack) -> Callable[[], float]:
    """One thread's own time, in which other work on the machine does not count; else the time of day."""
    is_alone = pack.model.device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if is_alone else time.perf_counter


def _forecast_step(outline: Outline, run: RunSettings, device: Device) -> float:
    shape = outline.shapes[run.base.name]
    # Here models are in one piece, and layers are computed once.
    whole = {"gradient_checkpointing": False, "shard": 1, "cpu_offload": False}
    execute = outline.study.execute.model_copy(update=whole)
    work, _ = step_work(run, _training(outline, run), shape, execute, is_joined=device.memory_bytes is None)
    return (device.in_half if run.optimization.bf16 is True else device).seconds(work)


def _scoring_factor(pack: TrainablePack, outline: Outline, run: RunSettings, device: Device) -> float:
    """Measured over forecast seconds of scoring some rows: the median of some passes, without the first."""
    load, shape = _training(outline, run), outline.shapes[run.base.name]
    rows = _examples(load, _NUM_ROWS, shape.vocab_size)
    pairs = [(row.input_ids[: row.num_prompt_tokens], row.input_ids[row.num_prompt_tokens :]) for row in rows]
    max_tokens = outline.study.execute.max_tokens_per_batch
    pack.route((0,), (_NUM_ROWS,), is_training=False)
    clock, longest, seconds = _clock(pack), max(len(row.input_ids) for row in rows), []
    for _ in range(_NUM_PASSES):
        started = clock()
        completion_losses(pack.model, pairs, longest, max_tokens)
        seconds.append(clock() - started)
    measured = median(seconds[1:])
    answers = sum(len(completion) for _, completion in pairs) / len(pairs)
    prompts = sum(len(prompt) for prompt, _ in pairs) / len(pairs)
    task = TaskLoad(len(pairs), "loss", prompts, answers, load.lengths[-1], 1)
    return measured / evaluate_piece(task, shape, device, max_tokens, adapted(run.arm, shape)).seconds


def _training(outline: Outline, run: RunSettings) -> TrainingLoad:
    return outline.loads[run.base.name].training[run.training_set.name]


def _examples(load: TrainingLoad, number: int, vocab_size: int) -> list[TokenisedExample]:
    """Rows of the training set's lengths; what stands in them does not matter to the time."""
    made = []
    for index in range(number):
        length = load.lengths[index * len(load.lengths) // number]
        ids = tuple((index * 7919 + position * 104729) % vocab_size for position in range(length))
        made.append(TokenisedExample(str(index), ids, min(length - 1, round(length * (1 - load.scored_fraction)))))
    # As an epoch would bring them: long and short ones mixed.
    return made[::2] + made[1::2]
