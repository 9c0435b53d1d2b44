"""Worked examples before the items of a task: which rows they are, the same in every run and never the task's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rankscope.data.content import Content
from rankscope.data.forms import Contents, understand
from rankscope.data.sources import Rows, read_rows
from rankscope.data.splits import in_part, normalised
from rankscope.errors import UserError, within
from rankscope.spec import Data, FewShot, Task

Shots = Callable[[Content], Sequence[Content]]


def no_shots(_content: Content) -> Sequence[Content]:
    """Nothing comes before the items."""
    return ()


def few_shot(spec: Task, rows: Rows, understood: Contents) -> Shots:
    """The examples that stand before each item: the first ones of their split, of the item's own category if it can be.

    A row whose question is asked in the task is left out, whatever split it lies in.

    Args:
        spec: What the study file says of the task.
        rows: The task's rows, for their preset.
        understood: What the task's rows say.

    Raises:
        UserError: It is not said where the examples come from, they are the task's own rows, or there are too few.
    """
    wanted = spec.few_shot
    if wanted is None:
        return no_shots
    if understood.form == "text":
        raise UserError(
            "there is nothing to show examples of in plain text", key=("few_shot",), mend="leave `few_shot` out"
        )
    pool = _pool(spec, wanted, rows)
    if pool.form != understood.form:
        what = f"the examples have the form {pool.form}, the task {understood.form}"
        raise UserError(what, key=("few_shot",), mend="take examples of the same form")
    asked = {normalised(content.question) for content in understood.contents}
    fit = [content for content in pool.contents if normalised(content.question) not in asked]
    if len(fit) < wanted.number:
        raise UserError(
            f"few_shot asks for {wanted.number} examples, and {len(fit)} of {len(pool.contents)} rows are no items of "
            "the task themselves",
            key=("few_shot",),
            mend="ask for fewer, or name another `split`, `part` or `source` in few_shot",
        )
    return _by_category(fit, wanted.number)


def _by_category(contents: Sequence[Content], number: int) -> Shots:
    first: dict[str | None, list[Content]] = {}
    for content in contents:
        mine = first.setdefault(content.category, [])
        if len(mine) < number:
            mine.append(content)
    of_all = contents[:number]

    def shots(content: Content) -> Sequence[Content]:
        mine = first.get(content.category, ())
        return mine if len(mine) == number else of_all

    return shots


def _pool(spec: Task, wanted: FewShot, rows: Rows) -> Contents:
    is_same = wanted.source is None or wanted.source == spec.source
    preset_split = rows.preset.few_shot_split if rows.preset is not None and wanted.part is None else None
    split = wanted.split or (preset_split if is_same else None)
    if is_same and split is None and wanted.part is None:
        mend = "say it: `few_shot: {number: 5, split: train}`, or a `part` or `source` of its own"
        raise UserError("it is not said where the few-shot examples come from", key=("few_shot",), mend=mend)
    data = Data(
        source=wanted.source or str(spec.source),
        subset=wanted.subset or (spec.subset if is_same else None),
        revision=spec.revision if is_same else None,
        split=split or (spec.split if is_same else None),
        part=wanted.part,
        preset=wanted.preset or (spec.preset if is_same else None),
        columns=spec.columns if is_same else None,
    )
    with within("few_shot", default="source"):
        pool = read_rows(data, "train")
        understood = understand(pool, data.columns)
    if is_same and wanted.part is None and pool.version == rows.version:
        raise UserError(
            "the few-shot examples would be the rows of the task itself",
            key=("few_shot",),
            mend="name another `split`, `part` or `source` in few_shot",
        )
    if wanted.part is None:
        return understood
    return Contents(understood.form, [row for row in understood.contents if in_part(row.question, wanted.part)])
