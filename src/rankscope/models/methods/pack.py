"""What the training loop knows of a method: runs that are trained together on one copy of the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rankscope.models.group import Group
from rankscope.models.packed import DrawnText
from rankscope.models.quantized import num_weights
from rankscope.runs import RunSettings

ADAPTER = "adapter"  # a PEFT folder, or one of bottleneck adapters
MODEL = "model"  # a Hugging Face folder
# By run, the batches of its first steps (`input_ids`, `attention_mask`, `labels`), for what looks at examples first.
Calibration = Callable[[RunSettings], list[dict[str, Tensor]]]

Texts = tuple[tuple[DrawnText, ...], ...]  # by member


@runtime_checkable  # the tests check types at run time
class TrainablePack(Protocol):
    """Runs that train together on one copy of the base; the loop knows no more of a method than this.

    Attributes:
        model: The model whose forward serves all rows.
        runs: What is trained; a run is named by its index here.
        alters_base: The base is no longer what it was, so it has to be read again.
        num_base_parameters: Of the base alone; a tied one counts once.
        group: The processes that hold a part of the model each; most often this one alone.
    """

    model: PreTrainedModel
    runs: tuple[RunSettings, ...]
    alters_base: bool
    num_base_parameters: int
    group: Group

    def route(self, members: Sequence[int], num_rows: Sequence[int], *, is_training: bool, texts: Texts = ()) -> None:
        """Say which rows of the next forward belong to which run: sorted by run, `num_rows` of each of `members`.

        `texts` are what stands in them, for dropout's draws.
        """

    def parameter_groups(self, index: int) -> list[dict[str, Any]]:
        """The run's trainable parameters as AdamW takes them, weight decay resolved; `rate_factor` is on the rate."""

    def regularisation(self, index: int) -> Tensor | None:
        """What a step adds to the run's loss, once for the whole batch; None where nothing is added."""

    def after_step(self, index: int, step: int) -> None:
        """Do what the method does after an optimizer step (counted from 0), the gradients still there."""

    def state(self, index: int) -> dict[str, Tensor]:
        """All that training changes in the run, by names that `load_state` knows; not copies."""

    def load_state(self, index: int, state: dict[str, Tensor]) -> None:
        """Put saved tensors back."""

    def generator(self, index: int) -> torch.Generator:
        """What the run's dropout draws from."""

    def save(self, index: int, folder: Path) -> list[str]:
        """Write the trained run for its own library to read; returns the files' names relative to `folder`."""

    def close(self) -> None:
        """Give the model back as it was given, unless `alters_base`."""


def put_back(parameters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Give parameters the values that were saved under their names."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def num_parameters(model: PreTrainedModel) -> int:
    """Parameters of a model; a tied one counts once."""
    return sum(num_weights(parameter) for parameter in model.parameters())
