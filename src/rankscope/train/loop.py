"""The one training loop: every method, alone or in a pack, goes through these lines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rankscope.data.examples import TokenisedExample
from rankscope.models.heads import negative_log_likelihoods, scored_logits
from rankscope.models.methods.pack import TrainablePack
from rankscope.records import Divergence, ValidationPoint
from rankscope.runs import RunSettings
from rankscope.train.batches import iter_micro_batches, num_scored
from rankscope.train.optimizer import make_optimizer, rate_factors


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
        earlier_seconds: What the run had taken at its checkpoint, in calls before this one.
    """

    index: int
    run: RunSettings
    examples: Sequence[TokenisedExample]
    validation: Sequence[TokenisedExample]
    order: Sequence[Sequence[int]]
    optimizer: torch.optim.AdamW
    factor: Callable[[int], float]
    stop_at: int
    step: int = 0
    logs: list[StepLog] = field(default_factory=list)
    validations: list[ValidationPoint] = field(default_factory=list)
    diverged_at_step: int | None = None
    divergence: Divergence | None = None
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


def train(pack: TrainablePack, states: Sequence[RunState], max_tokens: int, observer: Observer) -> None:
    """Train the runs of a pack side by side until each is done, has diverged, or the observer wants to stop.

    The loss of a step is the mean over the scored tokens of the whole batch, however many micro-batches it takes.
    A run that has ended leaves the batch; the others do not notice, since no tensor of theirs has met its own.

    Args:
        pack: The model with its trainable parts.
        states: Each run's state, changed in place.
        max_tokens: The most positions in one forward.
        observer: Told of every step.
    """
    bound = diverged_above(pack)
    while active := [state for state in states if not state.is_done]:
        if observer.wants_stop():
            return
        started = time.perf_counter()
        batches = {state.index: [state.examples[i] for i in state.order[state.step]] for state in active}
        for state in active:
            set_learning_rate(state)
            state.optimizer.zero_grad(set_to_none=True)
        losses = accumulate_gradients(pack, batches, max_tokens)
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
            if state.diverged_at_step is None and state.step in validation_steps(state.run):
                value = mean_loss(pack, state.index, state.validation, max_tokens)
                state.validations.append(ValidationPoint(step=state.step, loss_nats_per_token=value))
            observer.after_step(state)


def accumulate_gradients(
    pack: TrainablePack, batches: dict[int, list[TokenisedExample]], max_tokens: int
) -> dict[int, float]:
    """Add each run's gradient of its mean loss over its scored tokens; returns the losses, in nats per token."""
    totals = {index: sum(num_scored(example) for example in examples) for index, examples in batches.items()}
    losses = dict.fromkeys(batches, 0.0)
    for micro in iter_micro_batches(list(batches.items()), max_tokens, pack.model.device):
        pack.route(micro.members, micro.num_rows, is_training=True)
        nll = negative_log_likelihoods(
            scored_logits(pack.model, micro.positions, input_ids=micro.input_ids), micro.targets
        )
        sums = _sums(nll, micro.members_of_positions, len(micro.members))
        weights = torch.tensor([1.0 / totals[member] for member in micro.members], dtype=nll.dtype, device=nll.device)
        shares = sums * weights
        # Runs share no trainable tensor, so one backward of the sum gives each its own gradient.
        shares.sum().backward()
        for member, share in zip(micro.members, shares.tolist(), strict=True):
            losses[member] += share
    for member in batches:
        # The losses that are reported stay those of the data.
        if (penalty := pack.regularisation(member)) is not None:
            penalty.backward()
    return losses


@torch.no_grad()
def mean_loss(pack: TrainablePack, index: int, examples: Sequence[TokenisedExample], max_tokens: int) -> float:
    """A run's mean loss over the scored tokens of examples, dropout off, in nats per token."""
    total = 0.0
    for micro in iter_micro_batches([(index, examples)], max_tokens, pack.model.device):
        pack.route(micro.members, micro.num_rows, is_training=False)
        logits = scored_logits(pack.model, micro.positions, input_ids=micro.input_ids)
        total += negative_log_likelihoods(logits, micro.targets).sum().item()
    return total / sum(num_scored(example) for example in examples)


def set_learning_rate(state: RunState) -> None:
    """Set the rate of the step to come."""
    for group in state.optimizer.param_groups:
        group["lr"] = state.run.learning_rate * state.factor(state.step) * group.get("rate_factor", 1.0)


def clip_gradients(state: RunState) -> float:
    """Clip a run's gradients to its largest norm; returns the norm before."""
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    largest = state.run.optimization.max_grad_norm or math.inf
    return torch.nn.utils.clip_grad_norm_(parameters, largest).item()


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


def _sums(nll: Tensor, owners: Tensor, num_members: int) -> Tensor:
    """Sums of nll by member, differentiable."""
    return torch.zeros(num_members, dtype=nll.dtype, device=nll.device).index_add(0, owners, nll)
