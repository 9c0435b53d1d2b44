"""Log-likelihoods of the options of multiple-choice items: in trees where that is safe, else one row an option.

A tree is a row in which the prompt stands once, all options behind it. Items whose prompts begin alike, as behind the
same worked examples, are branches of what they share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from rankscope.models.masks import attention_window, option_tree_refusal
from rankscope.models.text_trees import TextTree
from rankscope.scoring.prefixes import shared_beginnings
from rankscope.scoring.rows import ScoredRow, completion_rows, slot_log_likelihoods

# Trees and separate rows differ by rounding, a wrong mask by whole nats: per scored token, and at least so much in all.
_TOLERANCE_NATS = {torch.float64: (1e-9, 1e-8), torch.float32: (1e-5, 1e-4)}
_TOLERANCE_HALF = (5e-2, 2e-1)
_NUM_CHECKED = 4
_NONE_FITS = "no item fits the model's context and sliding window with its options"
# What was found equal: of a model with such kinds of modules, such trees. Weights do not decide who sees whom.
_FOUND_EQUAL: WeakKeyDictionary[PreTrainedModel, set[tuple[object, ...]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Choice:
    """A multiple-choice item as token ids; options with the same tokens share one likelihood.

    Attributes:
        prompt_ids: At least one token.
        option_ids: The options' tokens, each at least one.
    """

    prompt_ids: tuple[int, ...]
    option_ids: tuple[tuple[int, ...], ...]

    @property
    def distinct(self) -> tuple[tuple[int, ...], ...]:
        """The options without repetitions, in order of first appearance."""
        return tuple(dict.fromkeys(self.option_ids))

    @property
    def has_branches(self) -> bool:
        """Whether two options have tokens that are read: only then do they need to be kept from each other."""
        return sum(len(option) > 1 for option in self.distinct) > 1

    @property
    def has_read_options(self) -> bool:
        """Whether an option has tokens that are read: its last one is only predicted."""
        return any(len(option) > 1 for option in self.option_ids)


@dataclass(frozen=True)
class OptionTrees:
    """Whether a study's options may be scored in trees: `refusal` says why not.

    Made by `checked_option_trees` for a model on a few items of each form, and kept while that model is scored.
    """

    refusal: str | None


@dataclass(frozen=True)
class OptionScores:
    """What a model thinks of the options of some items.

    Attributes:
        log_likelihoods: One tuple an item, in the order of its options; nats, summed over an option's tokens.
        num_truncated: Items of which at least one option saw a prompt cut from the left.
        scored_by: `option_tree` where an item's options, or several items, were scored in one row.
        note: Why all were scored in separate rows, where they were.
    """

    log_likelihoods: tuple[tuple[float, ...], ...]
    num_truncated: int
    scored_by: Literal["option_tree", "separate_rows"]
    note: str | None = None


def checked_option_trees(
    model: PreTrainedModel,
    choices: Sequence[Choice],
    context: int,
    max_tokens: int,
    earlier: OptionTrees | None = None,
) -> OptionTrees | None:
    """Decide whether items are scored in trees: a known architecture, and the same numbers on a few items of each form.

    A loaded model is compared once for each form of tree, and again where it gets modules of other kinds (adapters) or
    was found to differ.

    Args:
        model: The model, or one of the same architecture and precision.
        choices: The items that are to be scored; the first of each form of tree are compared.
        context: Positions that the model has.
        max_tokens: Padded positions in one forward pass.
        earlier: What was decided for other items of the study; a refusal stands.

    Returns:
        The decision, or None where nothing branches, so that nothing is to be decided yet.
    """
    if earlier is not None and earlier.refusal is not None:
        return earlier
    if refusal := option_tree_refusal(model):
        return OptionTrees(refusal)
    depth = _tree_depth(model, context)
    forms = _forms([choice for choice in choices if _fits(choice, depth)], max_tokens)
    if not forms:
        return None
    kinds = frozenset(type(module) for module in model.modules())
    found_with = (kinds, model.dtype, model.config.get_text_config()._attn_implementation)
    known = _FOUND_EQUAL.setdefault(model, set())
    new = [form for form in forms if (*found_with, form.name) not in known]
    worst = _largest_difference(model, new, context, max_tokens) if new else None
    if worst is not None:
        return OptionTrees(f"option trees differed from separate rows by {worst:.2g} nats on a few items")
    # One item behind a beginning says nothing of whether several are kept from each other.
    known.update((*found_with, form.name) for form in new if not form.shared or len(form.choices) > 1)
    return OptionTrees(None)


@dataclass(frozen=True)
class _Form:
    """Items that stand in trees of one form: each alone, or all behind the first `shared` tokens of their prompts."""

    name: Literal["options behind a prompt", "items behind a beginning", "items with options behind a beginning"]
    choices: tuple[Choice, ...]
    shared: int = 0

    def rows(self, members: Sequence[tuple[Choice, int]]) -> list[ScoredRow]:
        """The trees of its items, which come with the slots of their first options."""
        return [_tree_row(members, self.shared)] if self.shared else [_tree_row([member]) for member in members]


def _forms(choices: Sequence[Choice], max_tokens: int) -> list[_Form]:
    """The forms of tree that items are scored in, each with the first few of its items."""
    telling = _first(choice for choice in choices if choice.has_branches)
    forms = [_Form("options behind a prompt", telling)] if telling else []
    prompts, totals = [choice.prompt_ids for choice in choices], [_total(choice) for choice in choices]
    beginnings = [beginning for beginning in shared_beginnings(prompts, totals, max_tokens) if beginning.length]
    for name, has_options in (("items behind a beginning", False), ("items with options behind a beginning", True)):
        found = [
            (beginning.length, few)
            for beginning in beginnings
            if (few := _first(choices[i] for i in beginning.members if choices[i].has_read_options is has_options))
        ]
        if found:  # of several items they can be kept from each other or not
            length, few = next((each for each in found if len(each[1]) > 1), found[0])
            forms.append(_Form(name, few, length))
    return forms


def _first(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """The first few that differ: items may be written twice."""
    return tuple(dict.fromkeys(choices))[:_NUM_CHECKED]


def _largest_difference(model: PreTrainedModel, forms: Sequence[_Form], context: int, max_tokens: int) -> float | None:
    """The largest difference of an option in a tree from a row of its own, in nats; None where all is rounding."""
    compared = list(dict.fromkeys(choice for form in forms for choice in form.choices))
    members = dict(_with_slots(compared))
    separate = [row for choice, slot in members.items() for row in _separate_rows(choice, slot, context)]
    expected = _sums(model, separate, compared, max_tokens)
    numbers = torch.tensor([len(option) for choice in compared for option in choice.distinct])
    per_token, least = _TOLERANCE_NATS.get(model.dtype, _TOLERANCE_HALF)
    allowed = (numbers * per_token).clamp(min=least)
    wrong = []
    for form in forms:
        own = [(choice, members[choice]) for choice in form.choices]
        slots = [slot + number for choice, slot in own for number in range(len(choice.distinct))]
        differences = (_sums(model, form.rows(own), compared, max_tokens) - expected).abs()[slots]
        # A comparison with NaN is false, so what is not finite is refused too.
        if not bool((differences <= allowed[slots]).all()):
            wrong.append(differences)
    return torch.cat(wrong).max().item() if wrong else None


def option_log_likelihoods(
    model: PreTrainedModel, choices: Sequence[Choice], trees: OptionTrees | None, context: int, max_tokens: int
) -> OptionScores:
    """The log-likelihood of every option of every item.

    An item that does not fit the context is scored as lm-eval does it, each option in a row of its own behind as much
    of the prompt's end as fits; so is one that is deeper than a sliding window, which a tree would get wrong.

    Args:
        model: A causal model in evaluation mode.
        choices: The items.
        trees: Whether trees may be used; None: not decided, so no.
        context: Positions that the model has.
        max_tokens: Padded positions in one forward pass.
    """
    depth = _tree_depth(model, context)
    may = trees is not None and trees.refusal is None
    members = list(_with_slots(choices))
    in_trees = [member for member in members if may and _fits(member[0], depth)]
    alone = [member for member in members if not (may and _fits(member[0], depth))]
    tree_rows, plain_rows, num_single = [], [], 0
    prompts, totals = [choice.prompt_ids for choice, _ in in_trees], [_total(choice) for choice, _ in in_trees]
    for beginning in shared_beginnings(prompts, totals, max_tokens):
        group = [in_trees[index] for index in beginning.members]
        if beginning.length or group[0][0].has_branches:
            tree_rows.append(_tree_row(group, beginning.length))
        else:
            alone += group
    for choice, slot in alone:
        if not choice.has_branches and _fits(choice, context):
            # One branch behind the prompt is an ordinary row: no mask, nothing to trust.
            plain_rows.append(replace(_tree_row([(choice, slot)]), tree=None))
            num_single += 1
        else:
            plain_rows += _separate_rows(choice, slot, context)
    sums = _sums(model, tree_rows, choices, max_tokens) + _sums(model, plain_rows, choices, max_tokens)
    results = []
    for choice, slot in members:
        values = dict(zip(choice.distinct, sums[slot : slot + len(choice.distinct)].tolist(), strict=True))
        results.append(tuple(values[option] for option in choice.option_ids))
    refusal = trees.refusal if trees is not None else None
    is_separate = refusal is not None or not (tree_rows or num_single)
    return OptionScores(
        log_likelihoods=tuple(results),
        num_truncated=sum(not _fits(choice, context) for choice in choices),
        scored_by="separate_rows" if is_separate else "option_tree",
        note=(refusal or _NONE_FITS) if is_separate else None,
    )


def _fits(choice: Choice, context: int) -> bool:
    """Whether the prompt and each option fit; the last token is predicted and never read."""
    return len(choice.prompt_ids) + max(map(len, choice.option_ids)) <= context + 1


def _tree_depth(model: PreTrainedModel, context: int) -> int:
    window = attention_window(model)
    return context if window is None else min(context, window)


def _with_slots(choices: Sequence[Choice]) -> Iterator[tuple[Choice, int]]:
    """Each item with the slot of its first option; distinct options have a slot each."""
    slot = 0
    for choice in choices:
        yield choice, slot
        slot += len(choice.distinct)


def _sums(
    model: PreTrainedModel, rows: Sequence[ScoredRow], choices: Sequence[Choice], max_tokens: int
) -> Float[Tensor, " slots"]:
    return slot_log_likelihoods(model, rows, sum(len(choice.distinct) for choice in choices), max_tokens)


def _total(choice: Choice) -> int:
    """Positions of an item's tree: the options' last tokens are only predicted."""
    return len(choice.prompt_ids) + sum(len(option) - 1 for option in choice.distinct)


def _tree_row(members: Sequence[tuple[Choice, int]], shared: int = 0) -> ScoredRow:
    """[what the prompts share][prompt 1][option][option]...[prompt 2]..., each option without its last token.

    Args:
        members: Items, each with the slot of its first option.
        shared: Tokens that all prompts begin with, fewer than any of them has; 0 of one item.
    """
    input_ids = [*members[0][0].prompt_ids[:shared]]
    predict_at: list[int] = []
    targets: list[int] = []
    slots: list[int] = []
    items: list[TextTree] = []
    for choice, slot in members:
        own, branches = choice.prompt_ids[shared:], []
        input_ids += own
        last = len(input_ids) - 1
        for number, option in enumerate(choice.distinct):
            begin, read = len(input_ids), len(option) - 1
            input_ids += option[:-1]
            predict_at += [last, *range(begin, begin + read)]
            targets += option
            slots += [slot + number] * len(option)
            branches += [TextTree(read)] if read else []
        items.append(TextTree(len(own), tuple(branches)))
    return ScoredRow(input_ids, predict_at, targets, slots, TextTree(shared, tuple(items)) if shared else items[0])


def _separate_rows(choice: Choice, slot: int, context: int) -> list[ScoredRow]:
    """One row an option, cut from the left where it does not fit."""
    rows = []
    for number, option in enumerate(choice.distinct):
        rows += completion_rows(choice.prompt_ids, option, slot + number, context)
    return rows
