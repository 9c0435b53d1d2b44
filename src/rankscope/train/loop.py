"""The one training loop: every method, alone or in a pack, goes through these lines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from rankscope.data.examples import TokenisedExample
from rankscope.models.checkpointing import recomputed_layers
from rankscope.models.heads import scored_losses
from rankscope.models.joined import can_join, joined_attention
from rankscope.models.memory import free_memory, is_out_of_memory
from rankscope.models.methods.pack import TrainablePack
from rankscope.models.packed import mixed
from rankscope.models.sharded import whole
from rankscope.records import Divergence, MemoryShortage, ValidationPoint
from rankscope.runs import RunSettings
from rankscope.train.batches import MicroBatch, Share, iter_micro_batches, num_positions, num_scored, split_rows
from rankscope.train.optimizer import make_optimizer, rate_factors

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class StepLog:
    """One optimizer step of one run; a line of steps.jsonl.

    Attributes:
        step: From 1.
        grad_norm: Before clipping.
        num_tokens: Scored or not, without padding.
        seconds: The run's part of the forwards and backwards of its pack, and its own clipping and optimizer step.
    """

    step: int
    loss_nats_per_token: float
    learning_rate: float
    grad_norm: float
    num_tokens: int
    seconds: float


@dataclass
class RunState:
    """A run in training: what changes from step to step, and what a checkpoint has to keep.

    Attributes:
        index: The run's index in the pack.
        order: The indices of the examples of each step.
        stop_at: The step after which the search pauses the run, or its last; the schedule is that of the whole run.
        shortages: Where memory ran out, and what was done about it.
        earlier_seconds: What the run had taken at its checkpoint, in calls before this one.
    """

    index: int
    run: RunSettings
    examples: Sequence[TokenisedExample]
    validation: Sequence[TokenisedExample]
    order: Sequence[Sequence[int]]
    optimizer: torch.optim.Optimizer
    factor: Callable[[int], float]
    stop_at: int
    step: int = 0
    logs: list[StepLog] = field(default_factory=list)
    validations: list[ValidationPoint] = field(default_factory=list)
    diverged_at_step: int | None = None
    divergence: Divergence | None = None
    shortages: list[MemoryShortage] = field(default_factory=list)
    earlier_seconds: float = 0.0

    @property
    def is_done(self) -> bool:
        """No step is left for now, or none would make sense."""
        return self.diverged_at_step is not None or self.step >= self.stop_at


@runtime_checkable  # the tests check types at run time
class Observer(Protocol):
    """What the loop tells of itself; it decides nothing about training but when to stop."""

    def after_step(self, state: RunState) -> None:
        """A run has made a step (or has diverged in it)."""

    def wants_stop(self) -> bool:
        """The loop is to return before its next step."""


def start_run(
    pack: TrainablePack,
    index: int,
    examples: Sequence[TokenisedExample],
    validation: Sequence[TokenisedExample],
    order: Sequence[Sequence[int]],
) -> RunState:
    """A run of a pack before its first step."""
    run = pack.runs[index]
    optimizer = make_optimizer(pack.parameter_groups(index), run.optimization, run.learning_rate)
    factor = rate_factors(run.optimization, run.num_steps, run.learning_rate)
    return RunState(index, run, examples, validation, order, optimizer, factor, stop_at=run.num_steps)


def train(
    pack: TrainablePack,
    states: Sequence[RunState],
    max_tokens: int,
    observer: Observer,
    *,
    gradient_checkpointing: bool = False,
) -> None:
    """Train the runs of a pack side by side until each is done, has diverged, or the observer wants to stop.

    The loss of a step is the mean over the scored tokens of the whole batch, however many micro-batches it takes.
    A run that has ended leaves the batch; the others do not notice, since no tensor of theirs has met its own.
    Of a model in parts every process goes through these lines with its share of each micro-batch's rows.

    Args:
        pack: The model with its trainable parts.
        states: Each run's state, changed in place.
        max_tokens: The most positions in one forward.
        observer: Told of every step.
        gradient_checkpointing: Keep one tensor a layer, and compute the rest again in the backward pass.
    """
    if gradient_checkpointing:
        with recomputed_layers(pack.model, [pack.generator(state.index) for state in states]):
            train(pack, states, max_tokens, observer)
        return
    bound = diverged_above(pack)
    found = [shortage.max_tokens_per_batch for state in states for shortage in state.shortages]
    budget = Budget(pack, min([max_tokens, *found]))  # a resumed run goes on with what sufficed
    while active := [state for state in states if not state.is_done]:
        if pack.group.agree(observer.wants_stop()):
            return
        started = time.perf_counter()
        batches = {state.index: [state.examples[i] for i in state.order[state.step]] for state in active}
        for state in active:
            set_learning_rate(state)
            state.optimizer.zero_grad(set_to_none=True)
        steps = {state.index: state.step for state in active}
        losses = budget.spend(active, batches, partial(accumulate_gradients, pack, batches, steps=steps))
        shared_seconds = (time.perf_counter() - started) / len(active)
        for state in active:
            started = time.perf_counter()
            norm = clip_gradients(state)
            state.step += 1
            loss = losses[state.index]
            state.divergence = divergence(loss, norm, bound)
            if state.divergence is not None:
                state.diverged_at_step = state.step
            else:
                state.optimizer.step()
                pack.after_step(state.index, state.step - 1)
            tokens = sum(len(example.input_ids) for example in batches[state.index])
            rate = state.optimizer.param_groups[0]["lr"]
            seconds = shared_seconds + time.perf_counter() - started
            state.logs.append(StepLog(state.step, loss, rate, norm, tokens, seconds))
            if state.diverged_at_step is None and state.step in {*validation_steps(state.run), state.stop_at}:
                loss_of = partial(mean_loss, pack, state.index, state.validation)
                value = budget.spend([state], {state.index: state.validation}, loss_of)
                state.validations.append(ValidationPoint(step=state.step, loss_nats_per_token=value))
            observer.after_step(state)


class Budget:
    """The most positions in one forward of a pack: halved where memory runs out, so that the batch stays what it is.

    Args:
        pack: The model with its trainable parts.
        max_tokens: What is tried first.
    """

    def __init__(self, pack: TrainablePack, max_tokens: int) -> None:
        self._pack = pack
        self.max_tokens = max_tokens

    def spend(
        self,
        states: Sequence[RunState],
        batches: Mapping[int, Sequence[TokenisedExample]],
        work: Callable[[int], _Result],
    ) -> _Result:
        """Do work within the budget; where memory runs out, again from its beginning with half of it.

        Args:
            states: The runs that the work is for; each notes the shortage.
            batches: By run, the examples that the work goes through.
            work: Given the most positions in one forward.

        Raises:
            RuntimeError: Memory ran out with a single example at a time.
        """
        generators = [self._pack.generator(state.index) for state in states]
        drawn = [generator.get_state() for generator in generators]
        while True:
            try:
                return work(self.max_tokens)
            except (RuntimeError, MemoryError) as error:
                # Of several processes the others wait in the middle of this forward, and cannot begin it again.
                is_alone = self._pack.group.size == 1
                if not is_alone or not is_out_of_memory(error) or not self._halve(batches):
                    raise
            # Outside of `except`, which holds on to the tensors of the failed forward.
            free_memory(self._pack.model.device)
            for state, generator, before in zip(states, generators, drawn, strict=True):
                state.optimizer.zero_grad(set_to_none=True)
                generator.set_state(before)
                state.shortages.append(MemoryShortage(step=state.step + 1, max_tokens_per_batch=self.max_tokens))

    def _halve(self, batches: Mapping[int, Sequence[TokenisedExample]]) -> bool:
        """Halve the largest micro-batch of the work; whether there was more than one example in any."""
        is_joined = can_join(self._pack.model)
        groups = split_rows(list(batches.items()), self.max_tokens, is_joined=is_joined)
        if all(len(rows) == 1 for rows in groups):
            return False
        largest = max(num_positions(rows, is_joined=is_joined) for rows in groups if len(rows) > 1)
        self.max_tokens = largest // 2
        return True


def accumulate_gradients(
    pack: TrainablePack,
    batches: dict[int, list[TokenisedExample]],
    max_tokens: int,
    steps: Mapping[int, int] | None = None,
) -> dict[int, float]:
    """Add each run's gradient of its mean loss over its scored tokens; returns the losses, in nats per token.

    Args:
        pack: The model with its trainable parts.
        batches: By run, the examples of the step.
        max_tokens: The most positions in one forward.
        steps: By run, how many came before; 0 where not given. What dropout draws is made of it.
    """
    totals = {index: sum(num_scored(example) for example in examples) for index, examples in batches.items()}
    losses = dict.fromkeys(batches, 0.0)
    for micro in _micro_batches(pack, list(batches.items()), max_tokens):
        weights = [micro.is_counted / totals[member] for member in micro.members]
        seeds = [mixed(pack.runs[member].seed, (steps or {}).get(member, 0)) for member in micro.members]
        shares, loss = _micro_losses(pack, micro, weights, seeds)
        # Runs share no trainable tensor, so one backward of the sum gives each its own gradient.
        loss.backward()
        for member, share in zip(micro.members, shares, strict=True):
            losses[member] += share
    losses = dict(zip(losses, pack.group.total(list(losses.values())), strict=True))
    for member in batches:
        # The losses that are reported stay those of the data.
        if (penalty := pack.regularisation(member)) is not None:
            penalty.backward()
    return losses


@torch.no_grad()
def mean_loss(pack: TrainablePack, index: int, examples: Sequence[TokenisedExample], max_tokens: int) -> float:
    """A run's mean loss over the scored tokens of examples, dropout off, in nats per token."""
    total = 0.0
    for micro in _micro_batches(pack, [(index, examples)], max_tokens):
        (share,), _ = _micro_losses(pack, micro, [float(micro.is_counted)])
        total += share
    return pack.group.total([total])[0] / sum(num_scored(example) for example in examples)


def _micro_batches(
    pack: TrainablePack, batches: Sequence[tuple[int, Sequence[TokenisedExample]]], max_tokens: int
) -> Iterator[MicroBatch]:
    """The micro-batches of a step: of a model in parts, this process's share of each."""
    group = pack.group
    device = group.device or pack.model.device
    share = Share(group.rank, group.size)
    return iter_micro_batches(batches, max_tokens, device, is_joined=can_join(pack.model), share=share)


def _micro_losses(
    pack: TrainablePack, micro: MicroBatch, weights: list[float], seeds: Sequence[int] | None = None
) -> tuple[list[float], Tensor]:
    """Each run's weighted sum of losses over the micro-batch, and their sum, which has the gradient.

    With a seed for each of the runs their dropout is on; without, off.
    """
    drawn = zip(seeds or (), micro.texts, strict=seeds is not None)
    texts = tuple(tuple(replace(text, seed=mixed(seed, text.seed)) for text in own) for seed, own in drawn)
    pack.route(micro.members, micro.num_rows, is_training=seeds is not None, texts=texts)
    dtype = torch.float64 if pack.model.dtype == torch.float64 else torch.float32
    device = micro.positions.device
    wanted = torch.tensor(weights, dtype=dtype, device=device)[micro.members_of_positions]
    # Mixed precision: weights, gradients and losses stay in float32.
    is_half = pack.runs[0].optimization.bf16 is True
    with (
        joined_attention(pack.model, micro.is_joined),
        # Its copies of weights would outlast the layers that a model in parts makes whole one at a time.
        torch.autocast(device.type, torch.bfloat16, enabled=is_half, cache_enabled=pack.group.device is None),
    ):
        loss, nll = scored_losses(pack.model, micro.positions, micro.targets, wanted, **micro.inputs)
    sums = torch.zeros(len(weights), dtype=dtype, device=nll.device)
    return sums.index_add_(0, micro.members_of_positions, nll * wanted).tolist(), loss


def set_learning_rate(state: RunState) -> None:
    """Set the rate of the step to come."""
    for group in state.optimizer.param_groups:
        group["lr"] = state.run.learning_rate * state.factor(state.step) * group.get("rate_factor", 1.0)


def clip_gradients(state: RunState) -> float:
    """Clip a run's gradients to its largest norm; returns the norm before."""
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    largest = state.run.optimization.max_grad_norm or math.inf
    return whole(torch.nn.utils.clip_grad_norm_(parameters, largest)).item()


def validation_steps(run: RunSettings) -> set[int]:
    """After which steps validation loss is taken: evenly spread, the last after the last step."""
    parts = run.optimization.num_validations
    return {max(1, round(run.num_steps * (part + 1) / parts)) for part in range(parts)}


def diverged_above(pack: TrainablePack) -> float:
    """The loss beyond which a run has diverged: twice that of guessing every token alike, in nats per token."""
    return 2.0 * math.log(pack.model.get_output_embeddings().weight.shape[0])


def divergence(loss: float, grad_norm: float, bound: float) -> Divergence | None:
    """Why a run cannot go on after a step, or None where it can.

    Args:
        loss: Of the step, in nats per token.
        grad_norm: Before clipping.
        bound: The highest loss that still counts as training, in nats per token.
    """
    if not math.isfinite(loss):
        return "loss_not_finite"
    if loss > bound:
        return "loss_too_high"
    return None if math.isfinite(grad_norm) else "gradient_not_finite"
