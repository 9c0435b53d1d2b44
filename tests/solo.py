"""A run alone: through our loop, and through plain PEFT and torch as its reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from rankscope.data.order import batches
from rankscope.models.loading import padded_batch
from rankscope.models.methods.making import make_trainable
from rankscope.models.methods.pack import TrainablePack
from rankscope.runs import RunSettings
from rankscope.train.checkpoint import read_checkpoint, write_checkpoint
from rankscope.train.loop import RunState, start_run, train
from tiny import examples

EXAMPLES = examples(24)
IDS = torch.arange(3, 20)[None]


class Silent:
    """Watches nothing, and stops after `stop_after` steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.left = stop_after

    def after_step(self, state: RunState) -> None:
        if self.left is not None:
            self.left -= 1

    def wants_stop(self) -> bool:
        return self.left == 0


def order_of(run: RunSettings) -> list[list[int]]:
    return batches(len(EXAMPLES), run.optimization.batch_size, run.num_steps, run.seed)


def calibration(run: RunSettings) -> list[dict[str, torch.Tensor]]:
    """As `Models` makes it: the batches of the first steps."""
    return [padded_batch([EXAMPLES[i] for i in batch], "cpu") for batch in order_of(run)[:8]]


def trained(
    model: PreTrainedModel, runs: list[RunSettings], max_tokens: int = 10_000, gradient_checkpointing: bool = False
) -> tuple[TrainablePack, list[RunState]]:
    """Runs through our loop."""
    pack = make_trainable(model, runs, calibration)
    states = [start_run(pack, index, EXAMPLES, EXAMPLES[:4], order_of(run)) for index, run in enumerate(runs)]
    train(pack, states, max_tokens, Silent(), gradient_checkpointing=gradient_checkpointing)
    return pack, states


def stopped_and_resumed(
    make_model: Callable[[], PreTrainedModel], run: RunSettings, folder: Path, after_steps: int
) -> RunState:
    """A run that stops after so many steps with a checkpoint, and goes on from it in a model made anew."""

    def fresh() -> tuple[TrainablePack, RunState]:
        pack = make_trainable(make_model(), [run], calibration)
        return pack, start_run(pack, 0, EXAMPLES, EXAMPLES[:4], order_of(run))

    pack, state = fresh()
    train(pack, [state], 10_000, Silent(stop_after=after_steps))
    write_checkpoint(folder, pack, state, 0.0)
    again, resumed = fresh()
    assert read_checkpoint(folder, again, resumed) and resumed.step == state.step == after_steps
    train(again, [resumed], 10_000, Silent())
    return resumed


def losses_of(state: RunState) -> list[float]:
    return [log.loss_nats_per_token for log in state.logs]


def logits(pack: TrainablePack, index: int = 0) -> torch.Tensor:
    """Of a fixed text, as the run gives them when it is scored; virtual positions are not among them."""
    pack.route((index,), (1,), is_training=False)
    with torch.no_grad():
        return pack.model(input_ids=IDS, use_cache=False).logits


def exact_loss(logits: torch.Tensor, labels: torch.Tensor, **_: object) -> torch.Tensor:
    """What transformers' own loss computes, which it does in float32 whatever the model's precision."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def reference(
    wrapped: PeftModel,
    run: RunSettings,
    groups: list[dict] | None = None,
    after_step: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """PEFT's own training of the run: padded batches with labels, torch's AdamW, transformers' schedule."""
    trainable = [p for p in wrapped.parameters() if p.requires_grad]
    groups = groups or [{"params": trainable, "weight_decay": run.optimization.weight_decay}]
    optimizer = torch.optim.AdamW(groups, lr=run.learning_rate)
    warmup = math.ceil(run.num_steps * run.optimization.warmup_ratio)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, run.num_steps)
    wrapped.get_base_model().loss_function = exact_loss
    losses = []
    for step, batch in enumerate(order_of(run)):
        loss = wrapped(**padded_batch([EXAMPLES[i] for i in batch], "cpu")).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, run.optimization.max_grad_norm)
        optimizer.step()
        after_step(step)
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
