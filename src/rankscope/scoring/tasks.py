"""Scoring a task: items in, one row an item and the task's measures out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import polars as pl
from transformers import PreTrainedModel

from rankscope.data.examples import Item
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError
from rankscope.models.methods.pack import TrainablePack
from rankscope.runs import TaskSettings
from rankscope.scoring.answers import judge
from rankscope.scoring.generation import Generation, Limits, generate, generate_together
from rankscope.scoring.likelihoods import Choice, OptionTrees, checked_option_trees, option_log_likelihoods
from rankscope.scoring.losses import completion_losses
from rankscope.scoring.rows import context_length
from rankscope.scoring.user_scorer import load_scorer

# items.parquet. The first nine are the format that other programs read; what does not apply is null.
ITEM_SCHEMA = {
    "item_id": pl.String,
    "category": pl.String,
    "is_correct": pl.Boolean,
    "prediction": pl.String,
    "target": pl.String,
    "is_invalid": pl.Boolean,
    "option_log_likelihoods": pl.List(pl.Float64),
    "num_scored_tokens": pl.Int64,
    "nll_nats": pl.Float64,
    "is_correct_per_byte": pl.Boolean,
    "is_correct_strict": pl.Boolean,
    "num_bytes": pl.Int64,
    "generated": pl.String,
}


@dataclass(frozen=True)
class ScoredTask:
    """A model's scores on one task.

    Attributes:
        items: One row an item, in the items' order, with the columns of `ITEM_SCHEMA`.
        values: The task's measures by key; what does not apply is absent.
        num_truncated: Items whose prompt was cut from the left to fit the model's context.
        scored_by: `option_tree` or `separate_rows` for multiple choice, else None.
        trees: Whether options may be scored in trees, once that is known: pass it on to the next task.
        lm_eval: What lm_eval itself reports, by its names (`acc_norm,none`), where the task is one of its own.
        num_unfinished: Generated answers that nothing ended but their limit; None where none are generated.
        note: Why all options were scored in separate rows, where they were.
    """

    items: pl.DataFrame
    values: dict[str, float]
    num_truncated: int
    scored_by: str | None = None
    trees: OptionTrees | None = None
    lm_eval: dict[str, float] = field(default_factory=dict)
    num_unfinished: int | None = None
    note: str | None = None


@dataclass(frozen=True)
class _Scorer:
    """What every kind of scoring needs."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    settings: TaskSettings
    max_tokens: int
    trees: OptionTrees | None
    context: int = field(init=False)

    def __post_init__(self) -> None:
        limit = self.tokenizer.context_length or self.max_tokens
        object.__setattr__(self, "context", context_length(self.model, limit))


def score_task(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    settings: TaskSettings,
    max_tokens_per_batch: int,
    trees: OptionTrees | None = None,
) -> ScoredTask:
    """Score a model on the items of a task.

    Args:
        model: A causal model in evaluation mode; adapters may be active inside it.
        tokenizer: The model's.
        items: The task's items.
        settings: How they are scored.
        max_tokens_per_batch: Token positions in one forward pass, padding included.
        trees: From an earlier task of the study: a refusal to score options in trees stands.

    Raises:
        UserError: An item cannot be scored as the settings say.
    """
    if settings.harness is not None:
        return _score_with_lm_eval(_Scorer(model, tokenizer, settings, max_tokens_per_batch, trees))
    score: Callable[[_Scorer, Sequence[Item]], ScoredTask] = {
        "multiple_choice": _score_choices,
        "generate": _score_generations,
        "loss": _score_losses,
    }[settings.scoring]
    return score(_Scorer(model, tokenizer, settings, max_tokens_per_batch, trees), items)


def score_together(
    pack: TrainablePack,
    members: Sequence[int],
    tokenizer: Tokenizer,
    items: Sequence[Item],
    settings: TaskSettings,
    max_tokens_per_batch: int,
) -> list[ScoredTask]:
    """Score several adapters of a pack on a task whose answers are generated, decoding side by side.

    Args:
        pack: Trained runs over one base.
        members: Those to score, by their indices in the pack; ascending.
        tokenizer: The base's.
        items: The task's items.
        settings: How they are scored.
        max_tokens_per_batch: Token positions in one forward pass, padding included.
    """
    scorer = _Scorer(pack.model, tokenizer, settings, max_tokens_per_batch, None)
    limits = Limits(settings.max_new_tokens, settings.stop, max_tokens_per_batch)
    route = partial(pack.route, is_training=False)
    written = generate_together(pack.model, tokenizer, [item.prompt for item in items], limits, members, route)
    return [_judged(scorer, items, generations) for generations in written]


def _score_choices(scorer: _Scorer, items: Sequence[Item]) -> ScoredTask:
    """The option of the highest log-likelihood is the prediction; the first of several."""
    choices = _choices(scorer, items)
    trees = checked_option_trees(scorer.model, choices, scorer.context, scorer.max_tokens, scorer.trees)
    scores = option_log_likelihoods(scorer.model, choices, trees, scorer.context, scorer.max_tokens)
    rows = []
    for item, choice, values in zip(items, choices, scores.log_likelihoods, strict=True):
        # lm-eval counts the bytes of the option without the blank that joins it to the prompt.
        per_byte = [
            value / max(1, len(option.lstrip().encode())) for value, option in zip(values, item.options, strict=True)
        ]
        best, best_per_byte = (item.options[_first_highest(scale)] for scale in (values, per_byte))
        right = item.options[item.target_index]
        rows.append(
            _row(
                item,
                # By text: an option that is written twice is right wherever it stands.
                is_correct=best == right,
                is_correct_per_byte=best_per_byte == right,
                prediction=best,
                option_log_likelihoods=list(values),
                num_scored_tokens=len(choice.option_ids[item.target_index]),
                nll_nats=-values[item.target_index],
                num_bytes=len(right.encode()),
            )
        )
    frame = _frame(rows)
    values = {
        **_mean(frame, "is_correct", "accuracy"),
        **_mean(frame, "is_correct_per_byte", "accuracy_per_byte"),
        **_loss_per_token(frame),
        **_option_mass(choices, scores.log_likelihoods),
    }
    return ScoredTask(frame, values, scores.num_truncated, scores.scored_by, trees, note=scores.note)


def _score_generations(scorer: _Scorer, items: Sequence[Item]) -> ScoredTask:
    """Greedy generation, with the answer read out of the text."""
    generations = generate(
        scorer.model,
        scorer.tokenizer,
        [item.prompt for item in items],
        max_new_tokens=scorer.settings.max_new_tokens,
        stop=scorer.settings.stop,
        max_tokens=scorer.max_tokens,
    )
    return _judged(scorer, items, generations)


def _judged(scorer: _Scorer, items: Sequence[Item], generations: Sequence[Generation]) -> ScoredTask:
    own = None if scorer.settings.scorer is None else load_scorer(scorer.settings.scorer)
    rows = []
    for item, generation in zip(items, generations, strict=True):
        text = generation.text
        judgement = own(text, item) if own else judge(text, item.target, scorer.settings.answer)
        rows.append(
            _row(
                item,
                is_correct=judgement.is_correct,
                is_correct_strict=judgement.is_correct_strict,
                prediction=judgement.prediction,
                is_invalid=judgement.is_invalid,
                generated=generation.text,
            )
        )
    frame = _frame(rows)
    values = {**_mean(frame, "is_correct", "accuracy"), **_mean(frame, "is_invalid", "invalid_fraction")}
    if scorer.settings.answer == "number" and own is None:
        values |= _mean(frame, "is_correct_strict", "accuracy_strict")
    return ScoredTask(
        frame,
        values,
        sum(generation.is_truncated for generation in generations),
        trees=scorer.trees,
        num_unfinished=sum(generation.is_unfinished for generation in generations),
    )


def _score_losses(scorer: _Scorer, items: Sequence[Item]) -> ScoredTask:
    """The loss of each target given its prompt; a text alone stands behind the beginning token."""
    pairs = scorer.tokenizer.encode_pairs([(item.prompt, item.target) for item in items])
    losses = completion_losses(scorer.model, pairs, scorer.context, scorer.max_tokens)
    frame = _frame(
        [
            _row(
                item,
                num_scored_tokens=loss.num_scored_tokens,
                nll_nats=loss.nll_nats,
                num_bytes=len(item.target.encode()),
            )
            for item, loss in zip(items, losses, strict=True)
        ]
    )
    values = {**_loss_per_token(frame), **_bits_per_byte(frame)}
    # A text longer than the context is read in windows, not cut; only prompts are.
    num_truncated = sum(
        len(prompt) > 1 and len(prompt) + len(completion) > scorer.context + 1 for prompt, completion in pairs
    )
    return ScoredTask(frame, values, num_truncated, trees=scorer.trees)


def _score_with_lm_eval(scorer: _Scorer) -> ScoredTask:
    """A task of lm_eval: its prompts, its judgement, our likelihoods and generations."""
    # An optional extra, which takes seconds to import.
    from rankscope.scoring.lm_eval_model import score_harness

    rows, reported, wrapped = score_harness(
        scorer.model, scorer.tokenizer, scorer.settings, scorer.max_tokens, scorer.trees
    )
    frame = _frame(rows)
    values = {
        **_mean(frame, "is_correct", "accuracy"),
        **_mean(frame, "is_correct_strict", "accuracy_strict"),
        **_mean(frame, "is_invalid", "invalid_fraction"),
        **_loss_per_token(frame),
    }
    if scorer.settings.scoring == "loss":
        values |= _bits_per_byte(frame)
    return ScoredTask(
        frame,
        values,
        wrapped.num_truncated,
        wrapped.scored_by,
        wrapped.trees,
        reported,
        wrapped.num_unfinished,
        wrapped.note,
    )


def _choices(scorer: _Scorer, items: Sequence[Item]) -> list[Choice]:
    """The items as token ids.

    Raises:
        UserError: An item has no options or no right one, or an option has no tokens of its own.
    """
    for item in items:
        if not item.options or item.target_index is None:
            raise _unscorable(scorer, item, "has no options to choose from")
    pairs = iter(scorer.tokenizer.encode_pairs([(item.prompt, option) for item in items for option in item.options]))
    choices = []
    for item in items:
        encoded = [next(pairs) for _ in item.options]
        if not all(completion for _, completion in encoded):
            raise _unscorable(scorer, item, "has an option that adds no tokens to its prompt")
        choices.append(Choice(tuple(encoded[0][0]), tuple(tuple(completion) for _, completion in encoded)))
    return choices


def _unscorable(scorer: _Scorer, item: Item, why: str) -> UserError:
    where = f"task {scorer.settings.name}, item {item.item_id}"
    return UserError(f"the item {why}", where=where, mend="correct or remove the item, or state another `scoring`")


def _first_highest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: (values[index], -index))


def _option_mass(choices: Sequence[Choice], log_likelihoods: Sequence[Sequence[float]]) -> dict[str, float]:
    """Mean probability that the model gives to the options together, each distinct one once."""
    masses = [
        sum(math.exp(value) for value in dict(zip(choice.option_ids, values, strict=True)).values())
        for choice, values in zip(choices, log_likelihoods, strict=True)
    ]
    return {"option_mass": sum(masses) / len(masses)} if masses else {}


def _row(item: Item, **cells: object) -> dict[str, object]:
    return {"item_id": item.item_id, "category": item.category, "target": item.target, **cells}


def _frame(rows: Sequence[dict[str, object]]) -> pl.DataFrame:
    return pl.DataFrame([{**dict.fromkeys(ITEM_SCHEMA), **row} for row in rows], schema=ITEM_SCHEMA)


def _mean(frame: pl.DataFrame, column: str, key: str) -> dict[str, float]:
    value = frame[column].mean()
    return {} if value is None else {key: float(value)}


def _loss_per_token(frame: pl.DataFrame) -> dict[str, float]:
    """Nats per token over all items, every token counting alike."""
    num_tokens = frame["num_scored_tokens"].sum()
    return {"loss_nats_per_token": frame["nll_nats"].sum() / num_tokens} if num_tokens else {}


def _bits_per_byte(frame: pl.DataFrame) -> dict[str, float]:
    """The same per byte of UTF-8, so that tokenizers can be compared."""
    num_bytes = frame["num_bytes"].sum()
    return {"bits_per_byte": frame["nll_nats"].sum() / math.log(2) / num_bytes} if num_bytes else {}
