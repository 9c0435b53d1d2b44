"""What `rankscope init` writes: the study file's text, and what suits models of a size."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ruamel.yaml import YAML


@dataclass(frozen=True)
class Scale:
    """What suits models of up to a size.

    Attributes:
        full_rates: Around which the literature's best rates of full fine-tuning lie; LoRA's are about ten times those
            (Biderman et al., 2405.09673; Schulman and Thinking Machines, "LoRA without regret", 2025).
        ranks: From one that may be too small to one that may be more than is needed.
        retention: Lines of tasks on which models of this size are well above chance, so that they have something to
            lose, and why these.
    """

    most_parameters: float
    full_rates: tuple[float, float, float]
    ranks: tuple[int, ...]
    why: str
    retention: tuple[str, ...]


_TEXT = "  wikitext: {source: wikitext2, max_examples: 200, role: retention}"
SCALES = (
    Scale(
        5e7,
        (1e-4, 3e-4, 1e-3),
        (1, 4, 16, 64),
        "Models of this size answer questions by chance; text is what they can forget",
        ("  tinystories: {source: tinystories, max_examples: 200, role: retention}", _TEXT),
    ),
    Scale(
        1e9,
        (1e-5, 3e-5, 1e-4),
        (2, 8, 32, 128),
        "Models of this size are above chance on easy questions; MMLU would show noise",
        (
            "  arc_easy: {source: arc_easy, max_examples: 500, role: retention}",
            "  piqa: {source: piqa, max_examples: 500, role: retention}",
            _TEXT,
        ),
    ),
    Scale(
        float("inf"),
        (3e-6, 1e-5, 3e-5),
        (8, 32, 128),
        "Models of this size know something in all of these",
        (
            "  mmlu: {source: mmlu, max_examples: 1000, role: retention}",
            "  hellaswag: {source: hellaswag, max_examples: 500, role: retention}",
            "  gsm8k: {source: gsm8k, max_examples: 200, few_shot: 5, role: retention}",
            _TEXT,
        ),
    ),
)
SMALL_WORLD = (
    "  general_recall: {source: smallworld:general_recall, split: test, role: retention}",
    "  general_text: {source: smallworld:general_text, split: test, role: retention}",
)

TEMPLATE = """\
# Written by `rankscope init`. Every key, with what it means: python -c "from rankscope.keys import show; show()"
# `rankscope plan {file}` says what this will do and cost; `rankscope run {file}` does it.
study: {study}
model: {model}          # {parameters} parameters, {template}

train:
  {name}:
    source: {source}    # {num_rows} rows, read as {form}
{columns}{train_part}
# Each rate of each arm is a candidate; the best on validation is kept and repeated over the seeds. Rates of LoRA are
# about ten times those of full fine-tuning. Three are the least from which an inner one can win. If the best one lies
# at an edge of its list all the same, the report says so: add one beyond.
arms:
  - {{method: full, learning_rate: [{full_rates}]}}
  - {{method: lora, rank: [{ranks}], lora_alpha: 2r, target_modules: all-linear, learning_rate: [{lora_rates}]}}

optimization:
  num_epochs: 2
  batch_size: {batch_size}
  max_length: {max_length}     # tokens; {length}
  lr_scheduler: cosine
  warmup_ratio: 0.03

seeds: [{seeds}]           # two are the least from which a spread can be seen; three or more narrow the intervals

evaluate:
{judged}  {name}_test: {{source: {source}, {test_columns}{test_part}, in_domain_for: [{name}]}}
  # What the model could do before, and may forget.
  # {why}.
  # Add what matters to you: a preset, a task of lm_eval, or a file of your own.
{retention}

# A difference below the margin does not matter to you; a mean loss above the budget is too much.
{remark}decide: {{margin: 0.02, margin_nats: 0.01, forgetting_budget: 0.02, forgetting_budget_nats: 0.05}}
"""


def mapping(columns: Mapping[str, str | tuple[str, ...]]) -> str:
    """Columns as YAML has them, in braces."""
    return "{" + ", ".join(f"{role}: {_column(column)}" for role, column in columns.items()) + "}"


def _column(column: str | tuple[str, ...]) -> str:
    return quoted(column) if isinstance(column, str) else f"[{', '.join(map(quoted, column))}]"


def quoted(text: str) -> str:
    """A text as YAML reads it back, also inside braces: in quotes where it could be read otherwise."""
    is_plain = re.fullmatch(r"[A-Za-z_./~][\w./:+-]*(?<!:)", text) and YAML(typ="safe", pure=True).load(text) == text
    if is_plain:
        return text
    escaped = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in text)
    return f'"{"".join(escaped)}"'


def listed(rates: Sequence[float]) -> str:
    """Rates as people write them: `1.0e-4, 3.0e-4`."""
    return ", ".join(f"{rate:.1e}".replace("e-0", "e-") for rate in rates)


def name_of(text: str) -> str:
    """A name that a folder can have, that YAML takes for a text and that no part of a study has already."""
    name = re.sub(r"[^A-Za-z0-9_.+-]", "-", text.rsplit("/", 1)[-1]).strip("-._+")[:60] or "study"
    is_taken = name.startswith("validation") or YAML(typ="safe", pure=True).load(name) != name
    return f"data-{name}" if is_taken else name


def rounded(number: int) -> str:
    """`1.4 million`, `135 million`, `7.6 billion`."""
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return str(number)
