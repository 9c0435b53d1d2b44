"""How much there is to train on and to score, for one base: the numbers of the data that cost depends on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rankscope.data.prefixes import LEAST_SAVED, MOST_TOKENS
from rankscope.spec import Scoring

# Rows of like length share a micro-batch, so little of it is padding.
_SORTED_PADDING = 1.1


@dataclass(frozen=True)
class TrainingLoad:
    """A training set.

    Attributes:
        lengths: Tokens of every example, or of a typical sample of them, in rising order.
        scored_fraction: Of the tokens, how many are learned.
        num_validation_examples: For the validation losses within a run.
        num_validation_tokens: Of all of those together.
    """

    num_examples: int
    lengths: tuple[int, ...]
    scored_fraction: float
    num_validation_examples: int
    num_validation_tokens: int

    @property
    def mean_tokens(self) -> float:
        """Tokens of an example."""
        return sum(self.lengths) / len(self.lengths)

    def longest_of(self, number: int) -> float:
        """The expected longest of so many examples."""
        size = len(self.lengths)
        powers = [(rank / size) ** number for rank in range(size + 1)]
        return sum(length * (powers[rank + 1] - powers[rank]) for rank, length in enumerate(self.lengths))

    def micro_batches(self, batch_size: int, max_tokens: int, *, is_joined: bool) -> tuple[int, float]:
        """How many micro-batches a step takes, and the positions in all of them, padding included.

        Args:
            batch_size: Examples in a step.
            max_tokens: Positions in one forward.
            is_joined: Examples share a row without padding, as on a processor.
        """
        if is_joined:
            tokens = batch_size * self.mean_tokens
            return max(1, math.ceil(tokens / max_tokens)), tokens
        together = batch_size * self.longest_of(batch_size)
        if together <= max_tokens:
            return 1, together
        tokens = batch_size * self.mean_tokens * _SORTED_PADDING
        return max(2, math.ceil(tokens / max_tokens)), tokens


@dataclass(frozen=True)
class TaskLoad:
    """A task's items, or the validation items of a training set.

    Attributes:
        num_prompt_tokens: Of a mean item.
        num_answer_tokens: Of all options, or of the target.
        longest: Tokens of the longest item.
        max_new_tokens: For generation.
        num_shared_tokens: Of a mean item's prompt, what it begins with together with its neighbours (worked examples).
        cut_fraction: Of the items, how many have an option that does not fit the model behind the prompt.
        num_options: Of a mean item; of one that is cut each is a row of its own, as long as the model takes.
        context: The positions that the model has, where items are cut.
        has_own_rows: Every option is a row of its own, behind a prompt of its own (no option trees).
    """

    num_items: int
    scoring: Scoring
    num_prompt_tokens: float
    num_answer_tokens: float
    longest: int
    max_new_tokens: int
    num_shared_tokens: float = 0.0
    cut_fraction: float = 0.0
    num_options: float = 1.0
    context: int = 0
    has_own_rows: bool = False

    @property
    def num_tokens(self) -> float:
        """Tokens of all items, read or generated, for one model."""
        return self.num_items * (self.num_prompt_tokens + self.num_answer_tokens)

    @property
    def num_read_tokens(self) -> float:
        """Those that the model sees: items whose options are compared stand in a row behind what they share."""
        cut = self.num_items * self.num_options * self.context
        return (1 - self.cut_fraction) * self._num_read_whole + self.cut_fraction * cut

    @property
    def row_length(self) -> float:
        """How many keys a query meets: those of an item, or of what is left of it with one of its options."""
        answers = self.num_answer_tokens / (self.num_options if self.has_own_rows else 1.0)
        whole = self.num_prompt_tokens + answers
        return (1 - self.cut_fraction) * whole + self.cut_fraction * self.context

    @property
    def _num_read_whole(self) -> float:
        if self.has_own_rows:
            return self.num_items * (self.num_options * self.num_prompt_tokens + self.num_answer_tokens)
        shared = self.num_shared_tokens
        own = self.num_prompt_tokens + self.num_answer_tokens - shared
        number = max(1.0, (MOST_TOKENS - shared) / max(1.0, own))  # items in a row
        if self.scoring != "multiple_choice" or shared < LEAST_SAVED:
            return self.num_tokens
        return self.num_items * (own + shared / min(number, max(1, self.num_items)))


@dataclass(frozen=True)
class Loads:
    """All data of one base.

    Attributes:
        training: By training set.
        validation: By training set, what rates are chosen on.
        tasks: By task.
        probe_lengths: Tokens of each probe text.
        in_trees: Whether this base's options can stand behind one prompt.
    """

    training: dict[str, TrainingLoad]
    validation: dict[str, TaskLoad]
    tasks: dict[str, TaskLoad]
    probe_lengths: tuple[int, ...]
    in_trees: bool = True

    def scored(self, task: TaskLoad, *, in_trees: bool = True) -> TaskLoad:
        """A task as it is scored of this base, or of an arm whose method may not let options share a prompt."""
        has_own_rows = task.scoring == "multiple_choice" and not (self.in_trees and in_trees)
        return replace(task, has_own_rows=has_own_rows)


def typical_lengths(mean: float, limit: int | None, variation: float = 0.5) -> tuple[int, ...]:
    """Quantiles of text lengths of which only the mean is known: log-normal, as those of questions and answers are.

    Args:
        mean: Tokens.
        limit: The longest that is kept.
        variation: Standard deviation over mean.
    """
    from statistics import NormalDist

    sigma = math.sqrt(math.log(1 + variation**2))
    middle = math.log(max(1.0, mean)) - sigma**2 / 2
    normal = NormalDist()
    lengths = [math.exp(middle + sigma * normal.inv_cdf((rank + 0.5) / 100)) for rank in range(100)]
    return tuple(max(2, round(min(length, limit or math.inf))) for length in lengths)


def sample_of(lengths: Sequence[int], number: int = 1000) -> tuple[int, ...]:
    """Lengths in rising order, at most about so many of them, evenly chosen."""
    ordered = sorted(lengths)
    stride = max(1, len(ordered) // number)
    return tuple(ordered[::stride])
