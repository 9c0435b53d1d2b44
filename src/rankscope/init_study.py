"""A commented study file for a model and a data file, written after a look at both."""

from __future__ import annotations

import re
from pathlib import Path

from rankscope.data.forms import understand
from rankscope.data.hub import model_folder
from rankscope.data.shapes import layer_matrices, num_parameters, tensor_shapes
from rankscope.data.sources import read_rows
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError
from rankscope.spec import Data

# Rates around which the literature's best ones lie; LoRA's are about ten times those of full fine-tuning.
_FULL_RATES = {"small": (1e-4, 3e-4), "medium": (3e-5, 1e-4), "large": (1e-5, 3e-5)}
_RANKS = (1, 4, 16, 64, 128)

_PART = """\
    part: train         # cut by content: 80% train, 10% validation (where rates are chosen), 10% test
"""
_SPLIT = """\
    split: train
    validation: {fraction: 0.1}
"""
_TEMPLATE = """\
# Written by `rankscope init`. What is said of each key is in docs/study_file.md.
# `rankscope plan {file}` says what this will do and cost; `rankscope run {file}` does it.
study: {study}
model: {model}          # {parameters} parameters, {template}

train:
  {name}:
    source: {source}    # {num_rows} rows, read as {form}
{train_part}
# Each rate of each arm is a candidate; the best on validation is kept and repeated over the seeds. Rates of LoRA are
# about ten times those of full fine-tuning. If the best one lies at an edge of its list, the report says so: add one.
arms:
  - {{method: full, learning_rate: [{full_rates}]}}
  - {{method: lora, rank: [{ranks}], lora_alpha: 2r, target_modules: all-linear, learning_rate: [{lora_rates}]}}

optimization:
  num_epochs: 2
  batch_size: {batch_size}
  max_length: {max_length}     # tokens; `plan` says how many examples are longer
  lr_scheduler: cosine
  warmup_ratio: 0.03

seeds: [0, 1]           # two are the least from which a spread can be seen; three or more narrow the intervals

evaluate:
  {name}_test: {{source: {source}, {test_part}, in_domain_for: [{name}]}}
  # What the model could do before, and may forget. Add what matters to you: a preset, or a file of your own.
{retention}
# A difference below the margin does not matter to you; a mean loss above the budget is too much.
decide: {{margin: 0.02, margin_nats: 0.01, forgetting_budget: 0.02, forgetting_budget_nats: 0.05}}
"""


def write_study(model: str, train: str, out: Path) -> list[str]:
    """Look at a model and its data, write a study file, and say what was found.

    Args:
        model: Hub id or folder.
        train: A data file, a preset or a hub id.
        out: The file to write; one that exists is not overwritten.

    Raises:
        UserError: The model or the data cannot be read, or the file exists.
    """
    if out.exists():
        raise UserError("exists already", where=out, mend="choose another --out, or remove it")
    folder = model_folder(model, None)
    tokenizer = Tokenizer.from_folder(folder)
    shapes = tensor_shapes(folder)
    found = understand(read_rows(Data(source=train), "train"))
    num_rows = len(found.contents)
    size = num_parameters(shapes)
    scale = "small" if size < 5e7 else "medium" if size < 1e9 else "large"
    narrowest = min((min(shape) for shape in layer_matrices(shapes).values()), default=max(_RANKS))
    ranks = [rank for rank in _RANKS if rank <= narrowest // 2][-4:]
    full_rates = _FULL_RATES[scale]
    is_local = Path(train).exists()
    text = _TEMPLATE.format(
        file=out,
        study=_name(Path(train).stem if is_local else train),
        model=model,
        parameters=_rounded(size),
        template="answers through its chat template" if tokenizer.chat_template else "no chat template",
        name=_name(Path(train).stem if is_local else train),
        source=train,
        train_part=_PART if is_local else _SPLIT,
        test_part="part: test" if is_local else "split: test",
        num_rows=num_rows,
        form=found.form,
        full_rates=", ".join(f"{rate:g}" for rate in full_rates),
        lora_rates=", ".join(f"{10 * rate:g}" for rate in full_rates),
        ranks=", ".join(map(str, ranks)),
        batch_size=max(1, min(16, num_rows // 20)),
        max_length=min(1024, tokenizer.context_length or 1024),
        retention=_retention(model),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    return [
        f"{train}: {num_rows} rows, read as {found.form}",
        f"{model}: {_rounded(size)} parameters, context of {tokenizer.context_length or 'unknown'} tokens",
        f"wrote {out}; next: rankscope plan {out}",
    ]


def _retention(model: str) -> str:
    """Tasks on which a model of that kind can show a loss; the package's own model knows its own world only."""
    if model.startswith("smallworld:"):
        return (
            "  general_recall: {source: smallworld:general_recall, split: test, role: retention}\n"
            "  general_text: {source: smallworld:general_text, split: test, role: retention}\n"
        )
    return (
        "  arc_easy: {source: arc_easy, max_examples: 500, role: retention}\n"
        "  wikitext: {source: wikitext2, max_examples: 200, role: retention}\n"
    )


def _name(text: str) -> str:
    """A name that a folder can have."""
    return re.sub(r"[^A-Za-z0-9_.+-]", "-", text.rsplit("/", 1)[-1]).strip("-._+") or "study"


def _rounded(number: int) -> str:
    """`1.4 million`, `135 million`, `7.6 billion`."""
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return str(number)
