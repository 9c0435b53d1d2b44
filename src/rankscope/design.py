"""What a study's design alone tells: the roles of its tasks, and what it can decide."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from rankscope.data.architectures import tree_refusal
from rankscope.data.experts import expert_parameters
from rankscope.data.shapes import num_parameters
from rankscope.data.targets import bare_sublayers, left_out, left_past
from rankscope.expansion import arms_of, derived_points, expand_arms, rates_beyond
from rankscope.methods.resolve import ALL_LINEAR
from rankscope.plan import MIN_HALVED, Grid, Layout
from rankscope.records import Analysis
from rankscope.runs import BaseSettings
from rankscope.spec import Scoring, Study
from rankscope.statistics import smallest_difference

Relation = Literal["in_domain", "out_of_domain", "retention"]
# How architectures call what reads pictures and sounds.
_SENSES = re.compile(r"(^|[._])(vision|visual|audio)[._]")


def relations(study: Study, training_set: str) -> dict[str, Relation]:
    """By task, its role towards a training set."""
    return {
        name: "in_domain" if training_set in task.in_domain_for else task.role or "out_of_domain"
        for name, task in study.evaluate.items()
    }


def smallest_differences(study: Study, tasks: Mapping[str, tuple[Scoring, int]]) -> dict[str, float]:
    """By training set, the difference in in-domain accuracy that its items and the study's seeds can decide.

    Args:
        study: The study.
        tasks: By task, how it is scored and how many items it has.
    """
    differences = {}
    for training_set in study.train:
        sizes = [
            tasks[name][1]
            for name, task in study.evaluate.items()
            if training_set in task.in_domain_for and tasks[name][0] != "loss"
        ]
        if sizes:
            differences[training_set] = smallest_difference(
                sizes,
                len(study.seeds),
                confidence=study.decide.confidence,
                num_arms=max(2, len(arms_of(study, training_set))),
            )
    return differences


def expert_warnings(
    study: Study, base: BaseSettings, shapes: Mapping[str, tuple[int, ...]], model_type: str
) -> list[str]:
    """What arms leave out of a mixture of experts, whose experts are no linear layers.

    Args:
        study: The study.
        base: One of its bases.
        shapes: Of its tensors.
        model_type: Of its configuration.
    """
    experts = expert_parameters(shapes)
    if not experts:
        return []
    warnings = []
    for settings, _ in expand_arms(study):
        if "target_modules" not in settings.options:
            continue
        named = settings.options.get("target_parameters") or ()
        if left := {name: size for name, size in experts.items() if not _is_named(name, named)}:
            mend = f"; `target_parameters: [{', '.join(experts)}]` adapts them" if settings.method == "lora" else ""
            held = _held(base, left, shapes)
            warnings.append(f"arm {settings.label}: {held} are no linear layers and stay as they are{mend}")
        is_everything = str(settings.options["target_modules"]).lower() == ALL_LINEAR
        if is_everything and (others := left_out(settings.method, dict(shapes), model_type)):
            names = ", ".join(sorted({".".join(name.split(".")[-2:]) for name in others}))
            warnings.append(
                f"arm {settings.label}: {len(others)} linear layers of base {base.name} ({names}) stay as they are, "
                f"too: PEFT's LoRA takes their names on {model_type} for experts"
            )
    if bits := base.opening.quantization_config:
        held = _held(base, experts, shapes)
        warnings.append(f"{held} are not held in {bits.label}, for they are no linear layers")
    return warnings


def sense_warnings(base: str, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """That a base holds matrices which no text goes through.

    Args:
        base: The name of one of a study's bases.
        shapes: Of its tensors.
    """
    matrices = [name for name, shape in shapes.items() if len(shape) > 1]
    found = [name for name in matrices if _SENSES.search(name)]
    if not found:
        return []
    return [
        f"base {base}: {len(found)} of its {len(matrices)} matrices are for pictures or sounds ({found[0]}, ...): no "
        "text goes through them, and `full` and `all-linear` count them as trained; "
        "with a regular expression as `target_modules` an adapter leaves them out"
    ]


def past_warnings(
    study: Study, base: BaseSettings, shapes: Mapping[str, tuple[int, ...]], model_type: str
) -> list[str]:
    """Which linear layers `all-linear` and `mlp` leave out because an adapter there would be passed over.

    Args:
        study: The study.
        base: One of its bases.
        shapes: Of its tensors.
        model_type: Of its configuration.
    """
    warnings = []
    for settings, _ in expand_arms(study):
        if past := left_past(settings.options.get("target_modules"), dict(shapes), model_type):
            names = ", ".join(sorted({name.rpartition(".")[2] for name in past}))
            warnings.append(
                f"arm {settings.label}: linear layers of base {base.name} stay as they are ({len(past)}: {names}): the "
                f"code of {model_type} reads their weights past them, and would pass over an adapter"
            )
    return warnings


def bottleneck_warnings(study: Study, base: str, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """In how many layers bottlenecks stand behind less than their placement says: experts are no MLP, for example.

    Args:
        study: The study.
        base: The name of one of its bases.
        shapes: Of its tensors.
    """
    return [
        f"arm {settings.label}: no {what} that a bottleneck is known to stand behind in {len(left)} of the {number} "
        f"layers of base {base}"
        for settings, _ in expand_arms(study)
        if "placement" in settings.options
        for what, left, number in bare_sublayers(dict(shapes), settings.options["placement"])
        if left
    ]


def row_warnings(base: str, config: Mapping[str, Any], scorings: Iterable[Scoring]) -> list[str]:
    """That the options of items are scored one row each, where nothing else was tried on a base's architecture.

    Args:
        base: Its name in the study.
        config: What its config.json says, or as much of that as is known.
        scorings: How tasks and validation items are scored.
    """
    why = tree_refusal(config) if "multiple_choice" in scorings else None
    text = f"base {base}: options are scored in separate rows, slower and with the same numbers"
    return [f"{text}: {why}"] if why else []


def _is_named(parameter: str, targets: Iterable[str]) -> bool:
    """By the ends of names, as PEFT compares them: `gate_up_proj` names `experts.gate_up_proj`."""
    return any(f".{parameter}".endswith(f".{name}") or f".{name}".endswith(f".{parameter}") for name in targets)


def _held(base: BaseSettings, experts: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> str:
    share = 100 * sum(experts.values()) / num_parameters(dict(shapes))
    return f"the experts of base {base.name} ({', '.join(experts)}: {share:.0f}% of its parameters)"


def design_warnings(
    study: Study,
    smallest: Mapping[str, float],
    tasks: Mapping[str, tuple[Scoring, int]],
    validation: Mapping[str, int],
) -> list[str]:
    """What the study cannot tell as it is laid out, said before it is paid for.

    Args:
        study: The study.
        smallest: From `smallest_differences`.
        tasks: By task, how it is scored and how many independent items it has, as far as that is known.
        validation: By training set, how many independent validation rows it has, as far as that is known.
    """
    warnings = [*_few_texts_warnings(study, tasks), *_few_rows_warnings(study, validation)]
    margin = study.decide.margin
    for training_set, difference in smallest.items():
        if difference > margin:
            warnings.append(
                f"decide.margin is {margin:g}, and on {training_set} differences below {difference:.3f} are hardly "
                "seen: the verdict may well be undecided; score more items, run more seeds, or widen the margin"
            )
    if study.search.halving and all(len(arm.learning_rate) < MIN_HALVED for arm in study.arms):
        warnings.append(f"search.halving does nothing: no arm has {MIN_HALVED} rates or more")
    if len(study.seeds) == 1:
        warnings.append("one seed shows no spread: intervals hold the choice of items only")
    if not any(task.role == "retention" for task in study.evaluate.values()):
        warnings.append("no task has role retention: nothing watches what is forgotten")
    return [*warnings, *_truncation_warnings(study), *_cluster_warnings(study)]


# How much losses differ from text to text is known of no study beforehand; over fewer, intervals are wide in any.
FEW_TEXTS = 100


def _few_texts_warnings(study: Study, tasks: Mapping[str, tuple[Scoring, int]]) -> list[str]:
    """Training sets whose arms are compared by their loss on a handful of texts."""
    warnings = []
    for training_set in study.train:
        in_domain = [name for name, task in study.evaluate.items() if training_set in task.in_domain_for]
        number = sum(tasks[name][1] for name in in_domain)
        if number < FEW_TEXTS and all(tasks[name][0] == "loss" for name in in_domain):
            warnings.append(
                f"on {training_set} arms are compared by their loss on {number} independent texts, which are few to "
                f"tell differences of decide.margin_nats ({study.decide.margin_nats:g}) apart: the verdict may well be "
                "undecided; score more texts, or widen the margin"
            )
    return warnings


# Rates are compared on the same rows and mostly lie a factor of two or more apart, so far fewer rows than for arms tell
# them apart; over fewer than these a row or two decide, whatever is scored.
FEW_ROWS = 20


def _few_rows_warnings(study: Study, validation: Mapping[str, int]) -> list[str]:
    """Training sets whose rates are chosen on a handful of rows."""
    return [
        f"train.{name}: rates are chosen on {number} independent validation {'row' if number == 1 else 'rows'}, few "
        "to tell rates apart: chance may well choose; hold out more rows, or name others: `validation: {source: FILE}`"
        for name, number in validation.items()
        if number < FEW_ROWS
        and any(study.search.extend or len(arm.learning_rate) > 1 for _, arm in arms_of(study, name))
    ]


def _cluster_warnings(study: Study) -> list[str]:
    """Settings of a Ray cluster in a study that does not use one."""
    if study.execute.backend == "ray":
        return []
    said = [f"execute.{key}" for key in ("address", "results") if key in study.execute.model_fields_set]
    return [f"{key} does nothing without `backend: ray`: the work stays on this machine" for key in said]


def _truncation_warnings(study: Study) -> list[str]:
    """Ranks to which nothing is cut, as no arm has a higher one."""
    wanted, arms = study.derive.truncate, [settings for settings, _ in expand_arms(study)]
    points = [point for arm in arms for point in derived_points(study, arm, arms) if point.kind == "truncate"]
    if wanted is True and not points:
        return ["derive.truncate: no arm has a rank above another's, so nothing is cut; name lower ranks: [1, 2]"]
    left = [] if isinstance(wanted, bool) else sorted(set(wanted) - {point.amount for point in points})
    if not left:
        return []
    ranks = " and ".join(map(str, left))
    return [
        f"derive.truncate: nothing is cut to rank {ranks}, as no arm that is derived from has a higher one; name lower"
    ]


def choice_warnings(
    study: Study, tasks: Mapping[str, tuple[Scoring, int]], validation: Mapping[str, tuple[Scoring, int]]
) -> list[str]:
    """Training sets whose rates are chosen by their loss without the study's word, while tasks ask for right answers.

    Args:
        study: The study.
        tasks: By task, how it is scored and how many items it has.
        validation: By training set, the same of its validation items.
    """
    warnings = []
    for name, (scoring, number) in validation.items():
        judged = [
            task for task, spec in study.evaluate.items() if name in spec.in_domain_for and tasks[task][0] != "loss"
        ]
        if scoring == "loss" and judged and study.train[name].validation.scoring is None:
            kind = tasks[judged[0]][0].replace("_", " ").replace("generate", "generated answers")
            text = f"rates are chosen by the loss on {number} validation rows, while {judged[0]} is judged by {kind}"
            mend = "`validation: {source: FILE}` with questions of that kind chooses by what is judged"
            warnings.append(f"train.{name}: {text}; {mend}")
    return warnings


def budget_warnings(study: Study, longest: Mapping[str, int]) -> list[str]:
    """That rows are longer than what goes through a model at once: the limit then bounds neither them nor their memory.

    Args:
        study: The study.
        longest: By what rows are for, such as `train facts`, the tokens of the longest; of items with one option.
    """
    limit = study.execute.max_tokens_per_batch
    above = {name: number for name, number in longest.items() if number > limit}
    if not above:
        return []
    rows = ", ".join(f"{name} has up to {number}" for name, number in above.items())
    return [
        f"execute.max_tokens_per_batch is {limit}, and rows are longer ({rows} tokens): each of these goes through the "
        "model alone and whole, with the memory that it takes"
    ]


def plan_fields(study: Study, layout: Layout) -> dict[str, Any]:
    """What a plan repeats of its study, whatever data and models hold; the study's precision is settled."""
    return {
        "study": study.study,
        "arms": tuple(settings.label for settings, _ in expand_arms(study)),
        "relations": {name: relations(study, name) for name in study.train},
        **_search(study),
        "layout": layout,
        "dtype": study.optimization.dtype,
        "max_tokens_per_batch": study.execute.max_tokens_per_batch,
        "gradient_checkpointing": study.execute.gradient_checkpointing,
        "checkpoint_seconds": study.execute.checkpoint_seconds,
        "scores_all_candidates": study.search.evaluate == "all",
        "analyses": tuple(name for name in get_args(Analysis) if getattr(study.analyse, name)),
    }


def _search(study: Study) -> dict[str, Any]:
    """How learning rates are searched: the seeds, by arm the rates and those that may be added."""
    found = {}
    for settings, arm in expand_arms(study):
        below, above = rates_beyond(arm.learning_rate) if study.search.extend else ((), ())
        found[settings.label] = Grid(rates=tuple(sorted(arm.learning_rate)), below=below, above=above)
    seeds = study.seeds[: study.search.seeds]
    return {"search_seeds": seeds, "grids": found, "is_halving": study.search.halving}
