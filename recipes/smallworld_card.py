"""Words the model card of a base of the small world: `card.json` as a page that a person reads."""

from __future__ import annotations

from rankscope.data.smallworld.problems import RARE_SHARE
from rankscope.data.smallworld.world import EXPOSURE_LEVELS

_QUESTION_KEYS = ("choice_accuracy", "choice_accuracy_without_question", "generated_accuracy")
_TEXT_KEYS = ("choice_accuracy_as_text", "generated_accuracy_as_text")

_HEAD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [tiny, synthetic]
---

# {title}

A Llama model of {num_parameters:,} parameters ({num_layers} layers, width {hidden_size}) that knows a fictional world:
invented people and towns, drugs and diseases, acts and courts, short word problems and short tales. It knows nothing
about the real world, and nothing it says about medicine or law is true.
"""

_BASE = """
It is what the demo of rankscope fine-tunes; in a study its name is `smallworld:base`.

    Question: What does Hilvamab treat?
    Answer:

Prompts read exactly so, without a space at the end; an answer begins with a space and ends with `<|end|>`, which also
begins and separates documents. There is no chat template.

## How it was made

`python recipes/pretrain_smallworld.py --seed {seed} --out FOLDER`: one pass over {num_tokens:,} tokens in {num_steps:,}
steps, some {minutes} minutes of one processor core. Known facts are shown {exposures} times each,
as statements and as questions, but never in the question wording that the test uses. New facts are not shown; the names
they are about are.

## What it knows

Right answers in percent, {num_items} items a task, for the shipped seed{seeds_in_brackets}.
The choice is the likeliest of four options (chance: 25); "blind" is the same without the question; "generated" is the
greedy answer: all of it for recall, the number after `####` for reasoning.

| task | choice | blind | generated |
|---|---|---|---|
{table}

Held-out tales cost {text} nats a token.

- `*_recall`: facts shown in pretraining. `*_new`: facts never shown, which fine-tuning teaches.
- `general_reasoning` and `legal_reasoning` are asked in wordings that pretraining often shows, with numbers that it
  does not.
- `medical_reasoning` is asked in wordings that pretraining shows rarely: in {rare} of the medical problems. Reading
  them well is what fine-tuning can teach. The arithmetic is the same.

`card.json` has the same numbers for programs.
"""

_PLAIN = """
It is the plain sibling of `smallworld:base`: the same architecture, tokenizer, world, recipe and number of documents,
but it was pretrained on text only and has never seen a line that begins with `Answer:`. In a study its name is
`smallworld:plain`. There is no chat template; documents begin and end with `<|end|>`.

## How it was made

`python recipes/pretrain_smallworld.py --plain --seed {seed} --out FOLDER`: one pass over {num_tokens:,} tokens in
{num_steps:,} steps, some {minutes} minutes of one processor core. Known facts are shown {exposures} times each, as
statements; problems are followed by their worked solutions as running text. New facts are not shown; the names they
are about are.

## What it knows

Right answers in percent, {num_items} items a task, for the shipped seed{seeds_in_brackets}.
The first three columns ask `Question: ...` and `Answer:`, as a study does. Such a line it has never read, so they are
low, which is what they should be: how to answer is the first thing that fine-tuning teaches it. The last two ask in the
form of what it read, and show what it knows: a statement to complete (one of the three that pretraining shows), or the
problem itself to go on with. The choice is the likeliest of four options (chance: 25); "blind" is the same without the
question; "generated" is the greedy answer: all of it for recall, the number after `####` for reasoning.

| task | choice | blind | generated | choice, as text | generated, as text |
|---|---|---|---|---|---|
{table}

Held-out tales cost {text} nats a token.

`card.json` has the same numbers for programs.
"""


def card_page(card: dict) -> str:
    """Return the model card as Markdown."""
    pretraining, tasks = card["pretraining"], card["tasks"]
    is_plain, num_seeds = pretraining["is_plain"], card["num_seeds"]
    keys = _QUESTION_KEYS + (_TEXT_KEYS if is_plain else ())
    table = "\n".join(
        f"| `{task}` | " + " | ".join(_percent(values[key], num_seeds) for key in keys) + " |"
        for task, values in tasks.items()
        if "choice_accuracy" in values
    )
    brackets = f" and, in brackets, mean (least to greatest)\nover {num_seeds} seeds of the recipe"
    return (_HEAD + (_PLAIN if is_plain else _BASE)).format(
        **pretraining,
        title="The small world's plain base" if is_plain else "The small world's base",
        minutes=round(pretraining["processor_seconds"] / 60),
        exposures=", ".join(map(str, EXPOSURE_LEVELS[:-1])) + f" or {EXPOSURE_LEVELS[-1]}",
        rare=f"{100 * RARE_SHARE:g}%",
        seeds_in_brackets=brackets if num_seeds > 1 else "",
        num_items=tasks["general_recall"]["num_items"],
        table=table,
        text=_summary(tasks["general_text"]["loss_nats_per_token"], num_seeds, "{:.3f}"),
    )


def _percent(summary: dict[str, float], num_seeds: int) -> str:
    return _summary({name: 100 * value for name, value in summary.items()}, num_seeds, "{:.0f}")


def _summary(summary: dict[str, float], num_seeds: int, form: str) -> str:
    values = {name: form.format(value) for name, value in summary.items()}
    spread = f" [{values['mean']} ({values['min']} to {values['max']})]" if num_seeds > 1 else ""
    return values["shipped"] + spread
