"""Words the model card of the small world's base: `card.json` as a page that a person reads."""

from __future__ import annotations

from rankscope.data.smallworld.world import EXPOSURE_LEVELS

_PAGE = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [tiny, synthetic]
---

# The small world's base

A Llama model of {num_parameters:,} parameters ({num_layers} layers, width {hidden_size}) that knows a fictional world:
invented people and towns, drugs and diseases, acts and courts, short word problems and short tales. It is what the demo
of rankscope fine-tunes. It knows nothing about the real world, and nothing it says about medicine or law is true.

    Question: What does Hilvamab treat?
    Answer:

Prompts read exactly so, without a space at the end; an answer begins with a space and ends with `<|end|>`, which also
begins and separates documents. There is no chat template.

## How it was made

`python recipes/pretrain_smallworld.py --seed {seed} --out FOLDER`: one pass over {num_tokens:,} tokens in {num_steps:,}
steps, some 380 seconds of one processor core. Known facts are shown {exposures} times each,
as statements and as questions, but never in the question wording that the test uses. New facts are not shown; the names
they are about are.

## What it knows

Right answers in percent, {num_items} items a task, for the shipped seed and, in brackets, mean (least to greatest) over
{num_seeds} seeds of the recipe. The choice is the likeliest of four options (chance: 25); "blind" is the same without
the question; "generated" is the greedy answer: all of it for recall, the number after `####` for reasoning.

| task | choice | blind | generated |
|---|---|---|---|
{table}

Held-out tales cost {text} nats a token.

- `*_recall`: facts shown in pretraining. `*_new`: facts never shown, which fine-tuning teaches.
- `general_reasoning` and `legal_reasoning` are asked in wordings that pretraining shows, with numbers that it does not.
- `medical_reasoning` is asked in wordings that it never shows. That is why it is lower, and why it differs most from
  seed to seed: reading them is what fine-tuning can teach. The arithmetic is the same.

`card.json` has the same numbers for programs.
"""


def card_page(card: dict) -> str:
    """Return the model card as Markdown."""
    pretraining, tasks = card["pretraining"], card["tasks"]
    choice_tasks = {task: values for task, values in tasks.items() if "choice_accuracy" in values}
    keys = ("choice_accuracy", "choice_accuracy_without_question", "generated_accuracy")
    table = "\n".join(
        f"| `{task}` | " + " | ".join(_percent(values[key]) for key in keys) + " |"
        for task, values in choice_tasks.items()
    )
    text = tasks["general_text"]["loss_nats_per_token"]
    return _PAGE.format(
        **pretraining,
        exposures=", ".join(map(str, EXPOSURE_LEVELS[:-1])) + f" or {EXPOSURE_LEVELS[-1]}",
        num_seeds=card["num_seeds"],
        num_items=tasks["general_recall"]["num_items"],
        table=table,
        text=f"{text['shipped']:.3f} [{text['mean']:.3f} ({text['min']:.3f} to {text['max']:.3f})]",
    )


def _percent(summary: dict[str, float]) -> str:
    values = {name: f"{100 * value:.0f}" for name, value in summary.items()}
    return f"{values['shipped']} [{values['mean']} ({values['min']} to {values['max']})]"
