"""The card of an exported model: what it was made of, at which rate, what it gained and lost, and how sure that is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from rankscope.data.contamination import overlap_warnings
from rankscope.plan import Plan
from rankscope.records import Interval, RateChoice, TaskComparison, TrainRecord, Verdict
from rankscope.runs import DataOrigin, DerivedPoint, HarnessSettings

_RELATIONS = {"in_domain": "in domain", "out_of_domain": "out of domain", "retention": "retention"}
_PACKAGES = ("rankscope", "torch", "transformers", "peft")
_MAX_SHOWN = 2000  # characters of one text
_CHANGES = {
    "rewind": "its update times {amount:g}",
    "truncate": "its update cut to rank {amount:g}",
    "intruders": "its intruder dimensions times {amount:g}",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of.

    Attributes:
        train: The record of the run whose weights these are.
        point: How the model was made of the run's, where it was.
        choice: How the rate was chosen.
        comparisons: Of the run's arm with the base, on whole tasks, over all seeds; empty for a derived model.
        derived: Of a derived model, gain, forgetting and so on: by measure `value`, `low`, `high`.
        base_id: The base as a hub id, or its name where it is none.
        is_hub_base: Whether `base_id` can be loaded from the hub.
        has_tokenizer: The base's tokenizer lies beside the weights.
    """

    plan: Plan
    train: TrainRecord
    point: DerivedPoint | None
    choice: RateChoice | None
    verdict: Verdict | None
    comparisons: Sequence[TaskComparison]
    base_id: str
    is_hub_base: bool
    has_tokenizer: bool
    derived: Sequence[Mapping[str, Any]] = field(default=())

    @property
    def is_adapter(self) -> bool:
        """The weights are an adapter, to be put on the base."""
        return self.train.run.arm.capabilities.saves == "adapter"

    @property
    def title(self) -> str:
        """A name for the model."""
        run = self.train.run
        return f"{run.base.name}, {run.training_set.name}, {run.arm.label}" + (
            f", {self.point.name}" if self.point is not None else ""
        )


def model_card(facts: CardFacts) -> str:
    """The README.md beside the weights, as the hub reads it."""
    parts = [
        _front_matter(facts),
        f"# {facts.title}",
        _about(facts),
        "## Use",
        _use(facts),
        "## How prompts are written",
        _prompts(facts),
        "## Data",
        _data(facts),
        "## Training",
        _training(facts),
        "## What it learned and lost",
        _numbers(facts),
        "## The verdict",
        _verdict(facts),
        "## Limits",
        _LIMITS,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_LIMITS = (
    "What the study did not vary (data, prompts, hardware, everything but the arm, its rate and the seed) is in no "
    "interval. The numbers are about these items and say nothing about other uses of the model; nobody has looked at "
    "its safety."
)


def _front_matter(facts: CardFacts) -> str:
    method = facts.train.run.arm.method
    relation = "adapter" if facts.is_adapter else "finetune"
    tags = [*([f"base_model:{relation}:{facts.base_id}"] if facts.is_hub_base else []), method, "rankscope"]
    values = {
        "base_model": facts.base_id,
        "base_model_relation": relation,
        "library_name": "peft" if facts.is_adapter and method != "bottleneck" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    # JSON's texts and lists are YAML's too, whatever they hold.
    return "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()) + "---"


def _about(facts: CardFacts) -> str:
    run, verdict = facts.train.run, facts.verdict
    kind = f"A {_code(run.arm.label)} adapter of" if facts.is_adapter else f"{_code(run.arm.label)} fine-tuning of"
    text = f"{kind} {_code(facts.base_id)}, trained on {_code(run.training_set.name)}"
    text += f" in the study {_code(facts.plan.study)}."
    if facts.point is not None:
        change = _CHANGES[facts.point.kind].format(amount=facts.point.amount)
        text += f" It was not trained as it is: it is a trained model with {change}."
    if verdict is not None and verdict.arm == run.arm.label and facts.point is None:
        return f"{text} It is of the arm that the study recommends."
    said = "has not decided between its arms"
    if verdict is not None and verdict.arm is not None:
        said = "recommends not to fine-tune" if verdict.arm == "base" else f"recommends {_code(verdict.arm)}"
    return f"{text} The study {said}; a person chose to export this model."


def _imported(facts: CardFacts) -> str:
    is_held = facts.train.run.base.opening.quantization_config is not None
    return "AutoModelForCausalLM, BitsAndBytesConfig" if is_held else "AutoModelForCausalLM"


def _options(facts: CardFacts) -> str:
    """How the base is to be opened to be the one that was measured: as further arguments."""
    run = facts.train.run
    opening = run.base.opening
    code = f", revision={json.dumps(run.base.commit)}" if facts.is_hub_base else ""
    code += f", dtype={json.dumps(run.optimization.dtype)}"
    code += ", trust_remote_code=True" if opening.trust_remote_code else ""
    if opening.quantization_config is None:
        return code
    said = opening.quantization_config.model_dump(mode="json", exclude_defaults=True)
    bits = ", ".join(f"{name}={json.dumps(value) if isinstance(value, str) else value}" for name, value in said.items())
    return f"{code}, quantization_config=BitsAndBytesConfig({bits})"


def _use(facts: CardFacts) -> str:
    name = json.dumps(facts.base_id)
    if facts.train.run.arm.method == "bottleneck":
        body = (
            f"from pathlib import Path\n\nfrom transformers import {_imported(facts)}\n"
            "from rankscope.models.methods.bottleneck import load_bottlenecks\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({name}{_options(facts)})\n"
            'load_bottlenecks(model, Path("."))  # the folder of this card\n'
        )
    elif facts.is_adapter:
        body = (
            f"from peft import PeftModel\nfrom transformers import {_imported(facts)}\n\n"
            f"base = AutoModelForCausalLM.from_pretrained({name}{_options(facts)})\n"
            'model = PeftModel.from_pretrained(base, ".")  # the folder of this card\n'
        )
    else:
        body = (
            "from transformers import AutoModelForCausalLM\n\n"
            'model = AutoModelForCausalLM.from_pretrained(".")  # the folder of this card\n'
        )
    notes = []
    if facts.is_adapter and not facts.is_hub_base:
        notes.append("The base was no model of a hub: put its folder where the name stands.")
    if not facts.is_adapter and not facts.has_tokenizer:
        notes.append("The tokenizer is the base's; it was not on this machine and does not lie here.")
    return f"```python\n{body}```" + ("\n\n" + " ".join(notes) if notes else "")


def _prompts(facts: CardFacts) -> str:
    """The first example of the training data as it was trained on: other prompts than such may do worse."""
    run = facts.train.run
    wanted = (run.base.name, run.training_set.name, "train")
    found = (one for one in facts.plan.data if (one.base, one.name, one.role) == wanted)
    summary = next(found, None)
    if summary is None or not summary.sample_trained:
        return "The plan of the study does not say it."
    said = "The first training example, decoded from its tokens; a tokenizer may add the special ones itself."
    if not summary.sample_prompt:
        return f"{said} It has no prompt: all of it is learned.\n\n{_block(summary.sample_trained)}"
    return (
        f"{said} Write prompts in this form, blanks and line breaks too:\n\n{_block(summary.sample_prompt)}\n\n"
        f"The model learned to go on with\n\n{_block(summary.sample_trained)}"
    )


def _block(text: str) -> str:
    """A text as Markdown prints it on lines of its own, its middle left out where it is long."""
    if len(text) > _MAX_SHOWN:
        text = f"{text[: _MAX_SHOWN // 2]} [...] {text[-_MAX_SHOWN // 2 :]}"
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _data(facts: CardFacts) -> str:
    """Which version of which data, for training and for each task."""
    run = facts.train.run
    rows = [("trained on", run.training_set.name, _read(run.training_set.data), run.training_set.num_examples)]
    relations = facts.plan.relations[run.training_set.name]
    tasks = facts.plan.tasks[run.base.name]
    rows += [
        (_RELATIONS[relations[name]], name, _read(task.data, task.harness), task.num_items)
        for name, task in tasks.items()
    ]
    lines = ["| | name | source | split | revision or hash | rows |", "|---|---|---|---|---|---|"]
    for role, name, read, number in rows:
        cells = (role, _code(name), *map(_code, read), f"{number:,}")
        lines.append("| " + " | ".join(cells) + " |")
    known = overlap_warnings(
        [one for one in facts.plan.overlaps if (one.training_set, one.base) == (run.training_set.name, run.base.name)]
    )
    if known:
        lines += ["", "Test items that are in the training data:", "", *(f"- {_plain(text)}" for text in known)]
    return "\n".join(lines)


def _read(data: DataOrigin | None, harness: HarnessSettings | None = None) -> tuple[str, str, str]:
    """Source, split and version; a task of lm_eval, which reads its data itself, is named with lm_eval's version."""
    if data is None:
        return (f"lm_eval {harness.task}", "", f"lm_eval {harness.version}") if harness else ("", "", "")
    source = " ".join(part for part in (_origin(data), data.subset) if part)
    return source, data.split or "", data.commit or data.revision or (data.sha256 or "")[:12]


def _origin(data: DataOrigin) -> str:
    """A data set as others may know it: of local files their name, for their folder is nobody else's business."""
    return data.source if data.sha256 is None else PurePath(data.source).name


def _training(facts: CardFacts) -> str:
    record, run = facts.train, facts.train.run
    settings = run.optimization
    options = {name: value for name, value in run.arm.options.items() if value is not None}
    listed = ", ".join(f"{_code(f'{name}={_shown(value)}')}" for name, value in options.items())
    lines = [
        f"- method {_code(run.arm.method)}" + (f" with {listed}" if listed else ""),
        f"- learning rate {run.learning_rate:g}{_chosen(facts.choice)}",
        f"- {run.num_steps:,} steps of {settings.batch_size} examples, at most {settings.max_length} tokens each, "
        f"{settings.lr_scheduler} schedule, warm-up {settings.warmup_ratio:g}, weight decay {settings.weight_decay:g}, "
        f"{settings.dtype}{', products in bfloat16' if settings.bf16 is True else ''}",
        f"- seed {run.seed}: these weights are of one run, the numbers below are over all seeds of the study",
    ]
    if record.num_trainable is not None and record.num_parameters is not None:
        lines.append(f"- {record.num_trainable:,} trained parameters; the base has {record.num_parameters:,}")
    packages = record.provenance.get("packages", {})
    versions = ", ".join(f"{name} {packages[name]}" for name in _PACKAGES if packages.get(name))
    if versions:
        lines.append(f"- {versions}; base fingerprint {_code(run.base.fingerprint[:12])}")
    return "\n".join(lines)


def _chosen(choice: RateChoice | None) -> str:
    if choice is None:
        return ""
    tried = ", ".join(f"{float(rate):g}" for rate in choice.scores)
    beyond = {"highest": "a higher one may learn more", "lowest": "a lower one may do better"}
    edge = f"; it is the {choice.at_edge} of them, and {beyond[choice.at_edge]}" if choice.at_edge else ""
    return f", chosen on validation items among {tried}{edge}"


def _numbers(facts: CardFacts) -> str:
    if facts.point is not None:
        return _derived_numbers(facts.derived)
    if not facts.comparisons:
        return "The study has not compared this model with its base."
    lines = ["| task | | measured | base | tuned | better by | interval | items | seeds |",
             "|---|---|---|---:|---:|---:|---|---:|---:|"]  # fmt: skip
    for one in facts.comparisons:
        unit = one.unit
        kind = "accuracy, %" if unit == "accuracy" else "loss, nats per token"
        cells = (
            _code(one.task), _RELATIONS[one.relation], kind, _value(one.base_value, unit),
            _value(one.tuned_value, unit), _value(one.difference.value, unit), _ends(one.difference, unit),
            f"{one.difference.num_items:,}", str(one.difference.num_seeds),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    confidence = facts.comparisons[0].difference.confidence
    lines += ["", f"Intervals are at {100 * confidence:g}%, over items and seeds. Below zero is a loss."]
    return "\n".join(lines)


def _derived_numbers(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "The study has not scored this model."
    lines = ["| measure | value | interval | items | seeds |", "|---|---:|---|---:|---:|"]
    for row in rows:
        unit = "nats" if row["measure"].endswith("_nats") else "accuracy"
        interval = Interval(**{key: row[key] for key in Interval.model_fields})
        label = f"{_code(row['measure'])}, {'nats per token' if unit == 'nats' else 'points'}"
        counts = (str(interval.num_items), str(interval.num_seeds))
        cells = (label, _value(interval.value, unit), _ends(interval, unit), *counts)
        lines.append("| " + " | ".join(cells) + " |")
    confidence = rows[0]["confidence"]
    said = f"Against the base. Intervals are at {100 * confidence:g}%, over items and the arm's own seeds."
    return "\n".join([*lines, "", said])


def _verdict(facts: CardFacts) -> str:
    verdict = facts.verdict
    if verdict is None:
        return "The study has not been decided yet."
    decided = "Undecided." if verdict.arm is None else f"Recommended: {_code(verdict.arm)}."
    texts = [f"{decided} {_plain(verdict.rule)}"]
    texts += [f"Needed to decide: {_plain(verdict.needed)}"] if verdict.needed else []
    texts += [f"- {_plain(warning)}" for warning in verdict.warnings]
    return "\n\n".join(texts)


def _value(value: float, unit: str) -> str:
    text = f"{100 * value:.1f}" if unit == "accuracy" else f"{value:.3f}"
    return text.removeprefix("-") if float(text) == 0.0 else text


def _ends(interval: Interval, unit: str) -> str:
    if interval.low is None or interval.high is None:
        return "none"
    return f"{_value(interval.low, unit)} to {_value(interval.high, unit)}"


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _code(text: str) -> str:
    """A text as Markdown prints it, within a cell too: no character of it is markup."""
    if not text:
        return ""
    one_line = re.sub(r"\s+", " ", text).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", one_line)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {one_line} {fence}" if longest else f"`{one_line}`"


def _plain(text: str) -> str:
    """A sentence of ours that may hold names of a person's."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)
