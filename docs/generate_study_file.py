"""Write docs/study_file.md from `rankscope.spec`, the one schema of a study file.

`python docs/generate_study_file.py` writes the page; with `--check` it fails where the page is not what would be
written.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

from generated import write_or_check

from rankscope.quantization import QuantizationConfig
from rankscope.section import Section
from rankscope.spec import (
    Analyse,
    Arm,
    Decide,
    Derive,
    Execute,
    FewShot,
    ModelSource,
    Optimization,
    OptimizationFields,
    Search,
    Study,
    Task,
    TrainingSet,
    Validation,
)

PAGE = Path(__file__).with_name("study_file.md")
EXAMPLE = """\
study: rank-for-our-questions
model: Qwen/Qwen2.5-0.5B-Instruct        # hub id or folder
train:
  ours: {source: data/ours.jsonl}        # a tenth is held out for choosing learning rates
arms:
  - {method: full, learning_rate: [1.0e-5, 3.0e-5]}
  - {method: lora, rank: [8, 32, 128], lora_alpha: 2r, target_modules: all-linear, learning_rate: [1.0e-4, 3.0e-4]}
optimization: {num_epochs: 2, batch_size: 16, max_length: 1024}
seeds: [0, 1, 2]
evaluate:
  ours_test: {source: data/ours_test.jsonl, in_domain_for: [ours]}
  mmlu:      {source: mmlu, max_examples: 1000, role: retention}
  wikitext:  {source: wikitext2, role: retention}
decide: {margin: 0.02, forgetting_budget: 0.02}
"""

_INTRODUCTION = """A study is one YAML file. This page has every key that it may hold and is written by
    `docs/generate_study_file.py` from `src/rankscope/spec.py`. A key that is not here is refused, with its line and the
    nearest valid name. Keys have the names of Hugging Face and PEFT where those have the setting; where a short
    spelling is given too, both mean the same, and giving both is refused. `rankscope init` writes a commented file for
    a model and a data file. Without this page at hand:
    `python -c "from rankscope.keys import show; show()"` lists every key with what it means."""
_OVERRIDES = """`--set KEY=VALUE` (for `plan` and `run`, repeatable) lays a value over the file. The value is YAML and
    goes through the same schema; dots lead into sections, numbers into lists: `--set seeds='[0, 1, 2, 3]'`,
    `--set optimization.max_steps=50`, `--set arms.0.learning_rate=1e-4`. It counts for that call alone: to go on with
    a study give it again, for a call without it takes the file's own value, and says what has changed since the last.
    The study as it was run, overrides applied, is `study.yaml` in the study directory. Paths are taken
    from the folder in which the command is called."""

# What each section is for; `{name}` stands for a name of your choice.
_SECTIONS: tuple[tuple[str, type[Section], str], ...] = (
    ("The top level", Study, "A study needs `study`, `model`, `train`, `arms` and `evaluate`."),
    (
        "model",
        ModelSource,
        """`model: SOURCE`, or `model: {source: SOURCE, ...}`, names one base. A mapping compares several:
        `model: {small: org/a, large: {source: org/b, revision: main}}`.
        A folder needs `config.json`, `tokenizer.json` and safetensors; pickles are not read.""",
    ),
    (
        "model.quantization_config",
        QuantizationConfig,
        """The base in 4 or 8 bits, as transformers' `BitsAndBytesConfig` says it, with its defaults (QLoRA's `nf4` has
        to be said). It needs `pip install 'rankscope[bitsandbytes]'` and runs on a processor too. What can be
        trained over
        such a base: [methods.md](methods.md).""",
    ),
    (
        "train.{name}",
        TrainingSet,
        "One entry for each training set; every arm is trained on each of them, and each gets a verdict of its own.",
    ),
    (
        "train.{name}.validation",
        Validation,
        """Without `source` and `split` a share of the training set is held out, by a hash of what is asked: the same
        question always falls on the same side, whatever else the file holds.""",
    ),
    (
        "arms[]",
        Arm,
        """A list; each entry is an arm, or one arm for each rank. Each learning rate of an arm is a candidate.""",
    ),
    (
        "optimization",
        Optimization,
        """How runs are trained; the same for all arms, except where an arm says otherwise. TrainingArguments' names are
        `num_train_epochs`, `max_steps`, `lr_scheduler_type`, `warmup_ratio` (before transformers 5), `weight_decay`,
        `max_grad_norm`, `adam_beta1`, `adam_beta2`, `adam_epsilon`, `optim`, `bf16`, and `learning_rate` of an arm.
        `batch_size` is the effective batch, the product of their `per_device_train_batch_size`,
        `gradient_accumulation_steps` and number of devices, so the first two are
        refused with this one's name.""",
    ),
    (
        "evaluate.{name}",
        Task,
        """One entry for each task. A task is in domain for the training sets that it names, retention where it says so,
        and out of domain otherwise. Each training set needs a task in its domain.""",
    ),
    (
        "evaluate.{name}.few_shot",
        FewShot,
        """Worked examples before every item. They are the first rows of their split, of the item's own category where
        that has enough, and never rows whose question the task asks.""",
    ),
    ("analyse", Analyse, "What is looked at inside the runs at the chosen rates."),
    (
        "derive",
        Derive,
        """What becomes of trained models that are changed without training again. A tensor that holds several matrices
        (queries, keys and values of GPT-2, GPT-NeoX, Phi-3) is cut to a rank as it was trained: an adapter's as the one
        matrix that its factors adapt, so that it stays a LoRA of that rank; a whole model's matrix by matrix. Intruders
        are those of each matrix in both.""",
    ),
    ("search", Search, 'How each arm\'s learning rate is chosen: see docs/concepts.md, "Two waves".'),
    ("decide", Decide, "The numbers of the rule: see docs/concepts.md and docs/statistics.md."),
    ("execute", Execute, "Where and how work runs. Results do not depend on the number of processes."),
)

# Left out, these mean something that `expansion.py` fills in; tests compare.
RESOLVED = {("Arm", "lora_alpha"): "2r", ("Arm", "lora_dropout"): 0.0, ("Arm", "use_rslora"): False,
            ("Arm", "target_modules"): "all-linear"}  # fmt: skip
# A single value is taken for a list of one; a mapping may be written short. The schema does not show either.
_WRITTEN = {
    ("Study", "model"): "text, or mapping of names to `model` sections",
    ("Arm", "learning_rate"): "number or list of numbers",
    ("Arm", "rank"): "whole number or list of them",
    ("Task", "few_shot"): "whole number, or a section",
}
_HEAD = ("| key | also | type | default | limits | meaning |", "|---|---|---|---|---|---|")
_TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
_NAME = "^[A-Za-z0-9][A-Za-z0-9_.+-]*$"


def page() -> str:
    """The whole page as Markdown."""
    lines = ["# The study file", "", _wrapped(_INTRODUCTION), "", "```yaml", *EXAMPLE.splitlines(), "```", ""]
    lines.append(_wrapped(_OVERRIDES))
    for title, part, text in _SECTIONS:
        lines += ["", f"## {title}" if title == "The top level" else f"## `{title}`", "", _wrapped(text)]
        lines += ["", *_HEAD, *rows(part)]
        if part is Arm:
            names = ", ".join(f"`{name}`" for name in OptimizationFields.model_fields)
            text = f"An arm may also override these keys of `optimization`, one by one; the others stay: {names}."
            lines += ["", _wrapped(text)]
    return "\n".join(lines) + "\n"


def rows(part: type[Section]) -> list[str]:
    """The table's rows of one section."""
    schema = part.model_json_schema(by_alias=False)
    inherited = set(OptimizationFields.model_fields) if part is Arm else set()
    return [
        _row(part, name, field, name in schema.get("required", ()))
        for name, field in schema["properties"].items()
        if name not in inherited
    ]


def _row(part: type[Section], name: str, field: dict[str, Any], is_required: bool) -> str:
    alias = part.model_fields[name].alias
    cells = [
        f"`{name}`",
        f"`{alias}`" if alias else "",
        _WRITTEN.get((part.__name__, name)) or _type(field),
        "required" if is_required else _default(RESOLVED.get((part.__name__, name), field.get("default"))),
        "; ".join(dict.fromkeys(_limits(field))),
        field["description"],
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"] if option.get("type") != "null")
    if "enum" in field or "const" in field:
        return " or ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if "$ref" in field:
        return "a section"
    if field["type"] == "array":
        return f"list of {_plural(field['items'])}"
    if field["type"] == "object":
        values = field.get("additionalProperties") or next(iter(field["patternProperties"].values()))
        return f"mapping of names to {_plural(values)}"
    return _TYPES[field["type"]]


def _plural(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_plural(option) if "type" in option else _type(option) for option in field["anyOf"])
    if field.get("type") == "array":
        return f"lists of {_plural(field['items'])}"
    return "sections" if "$ref" in field else {"string": "texts"}.get(field["type"], f"{_TYPES[field['type']]}s")


def _limits(field: dict[str, Any]) -> list[str]:
    """What values are allowed, of a value or of the values inside it."""
    found = [text for option in field.get("anyOf", ()) for text in _limits(option)]
    found += _limits(field["items"]) if isinstance(field.get("items"), dict) else []
    if "minimum" in field and "maximum" in field:
        found.append(f"{field['minimum']:g} to {field['maximum']:g}")
    else:
        words = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}
        found += [f"{word} {field[key]:g}" for key, word in words.items() if key in field]
    if field.get("pattern") == _NAME:
        found.append(f"letters, digits and `_.+-`, at most {field['maxLength']}")
    return found


def _default(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, (list, tuple)) else value}`"


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), width=120, break_on_hyphens=False, break_long_words=False)


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(), "docs/generate_study_file.py", sys.argv[1:]))
