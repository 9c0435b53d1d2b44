"""What a study's design alone tells: the roles of its tasks, and what it can decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rankscope.data.experts import expert_parameters
from rankscope.data.shapes import num_parameters
from rankscope.plan import Grid
from rankscope.runs import BaseSettings, arms_of, expand_arms, rates_beyond
from rankscope.spec import Scoring, Study
from rankscope.statistics import smallest_difference

Relation = Literal["in_domain", "out_of_domain", "retention"]


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


def expert_warnings(study: Study, base: BaseSettings, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What arms leave out of a mixture of experts, whose experts are no linear layers.

    Args:
        study: The study.
        base: One of its bases.
        shapes: Of its tensors.
    """
    experts = expert_parameters(shapes)
    if not experts:
        return []
    names, share = ", ".join(experts), 100 * sum(experts.values()) / num_parameters(dict(shapes))
    held = f"the experts of base {base.name} ({names}: {share:.0f}% of its parameters)"
    warnings = []
    for settings, _ in expand_arms(study):
        named = settings.options.get("target_parameters") or ()
        if "target_modules" in settings.options and not any("experts" in name for name in named):
            mend = f"; `target_parameters: [{names}]` adapts them" if settings.method == "lora" else ""
            warnings.append(f"arm {settings.label}: {held} are no linear layers and stay as they are{mend}")
    if bits := base.opening.quantization_config:
        warnings.append(f"{held} are not held in {bits.label}, for they are no linear layers")
    return warnings


def design_warnings(study: Study, smallest: Mapping[str, float]) -> list[str]:
    """What the study cannot tell as it is laid out, said before it is paid for."""
    warnings = []
    margin = study.decide.margin
    for training_set, difference in smallest.items():
        if difference > margin:
            warnings.append(
                f"decide.margin is {margin:g}, and on {training_set} differences below {difference:.3f} are hardly "
                "seen: the verdict may well be undecided; score more items, run more seeds, or widen the margin"
            )
    if len(study.seeds) == 1:
        warnings.append("one seed shows no spread: intervals hold the choice of items only")
    if not any(task.role == "retention" for task in study.evaluate.values()):
        warnings.append("no task has role retention: nothing watches what is forgotten")
    return warnings


def search(study: Study) -> dict[str, Any]:
    """How learning rates are searched, as a plan holds it: the seeds, by arm the rates and those that may be added."""
    found = {}
    for settings, arm in expand_arms(study):
        below, above = rates_beyond(arm.learning_rate) if study.search.extend else ((), ())
        found[settings.label] = Grid(rates=tuple(sorted(arm.learning_rate)), below=below, above=above)
    seeds = study.seeds[: study.search.seeds]
    return {"search_seeds": seeds, "grids": found, "is_halving": study.search.halving}
