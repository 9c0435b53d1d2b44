"""What several studies say of each setting: in how many of them it was within the margin of the best, counted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from rankscope.records import ArmResult, Verdict
from rankscope.report.contents import Contents
from rankscope.runs import ArmSettings

_BASE = "base"  # what verdicts call the model before training
# What a setting can turn out to be in one verdict, in the order of the columns.
OUTCOMES = ("within the margin", "worse", "forgets too much", "cannot tell", "not judged")
GROUPS = ("all", "model", "domain", "kind")


@dataclass(frozen=True)
class Study:
    """One study with the name that tells it from others."""

    name: str
    contents: Contents


def findings(studies: Sequence[Study]) -> pl.DataFrame:
    """One row a setting and verdict: what it turned out to be, on which model, domain and kind of task."""
    rows = []
    for study in studies:
        decision = study.contents.decision
        for verdict in decision.verdicts if decision is not None else ():
            rows += list(_rows(study, verdict))
    names = ("study", "model", "domain", "kind", "setting", "outcome", "source")
    return pl.DataFrame(rows, schema={**dict.fromkeys(names, pl.String), "learning_rate": pl.Float64})


def counts(found: pl.DataFrame) -> pl.DataFrame:
    """How often each setting had each outcome: over all verdicts, and by model, by domain and by kind of task."""
    tables = []
    for group in GROUPS:
        value = pl.lit("") if group == "all" else pl.col(group)
        tables.append(
            found.with_columns(pl.lit(group).alias("by"), value.alias("value"))
            .group_by("by", "value", "setting", maintain_order=True)
            .agg(
                *((pl.col("outcome") == outcome).sum().cast(pl.Int64).alias(outcome) for outcome in OUTCOMES),
                pl.len().cast(pl.Int64).alias("verdicts"),
                pl.col("study").n_unique().cast(pl.Int64).alias("studies"),
                pl.col("learning_rate").drop_nulls().unique().sort().alias("chosen_rates"),
            )
        )
    return pl.concat(tables)


def _rows(study: Study, verdict: Verdict) -> Iterable[dict[str, Any]]:
    plan, margin = study.contents.plan, _margin(study.contents, verdict)
    arms = {run.arm.label: run.arm for run in plan.runs}
    relations, tasks = plan.relations[verdict.training_set], plan.tasks[verdict.base]
    kinds = {task.kind or "other" for name, task in tasks.items() if relations[name] == "in_domain"}
    for result in verdict.arms:
        yield {
            "study": study.name,
            "model": plan.bases[verdict.base].source,
            "domain": verdict.training_set,
            "kind": " and ".join(sorted(kinds)),
            "setting": "no fine-tuning" if result.arm == _BASE else setting_in_words(arms[result.arm]),
            "outcome": outcome(result, margin),
            "learning_rate": result.learning_rate,
            "source": f"{study.name}/decide/record.json",
        }


def _margin(contents: Contents, verdict: Verdict) -> float | None:
    """The margin of the score by which the verdict compares arms; None where the study file cannot be read."""
    if contents.settings is None:
        return None
    has_accuracy = any(arm.gain is not None for arm in verdict.arms if arm.arm != _BASE)
    return contents.settings.margin if has_accuracy else contents.settings.margin_nats


def outcome(result: ArmResult, margin: float | None) -> str:
    """What an arm turned out to be, as its intervals say; where they leave two answers it is `cannot tell`."""
    if result.arm != _BASE and result.gain is None and result.gain_nats is None:
        return "not judged"
    if result.eligible == "no":
        return "forgets too much"
    behind = result.behind_best
    if behind is not None and (behind.low is None or behind.high is None or margin is None):
        return "cannot tell"
    if behind is not None and behind.low > margin:
        return "worse"
    is_within = behind is None or behind.high <= margin
    return "within the margin" if is_within and result.eligible == "yes" else "cannot tell"


def setting_in_words(arm: ArmSettings) -> str:
    """An arm by what it sets, whatever its study calls it: `lora r16, alpha 2r, all-linear`."""
    said = {name: value for name, value in arm.options.items() if value not in (None, False, 0.0, {}, [])}
    rank, alpha = said.pop("r", None), said.pop("lora_alpha", None)
    parts = [arm.method if rank is None else f"{arm.method} r{rank}"]
    if alpha is not None:
        parts.append(f"alpha {alpha / rank:g}r" if rank else f"alpha {alpha:g}")
    targets = said.pop("target_modules", None)
    if targets is not None:
        parts.append(targets if isinstance(targets, str) else f"on {', '.join(sorted({_short(t) for t in targets}))}")
    parts += [name.removeprefix("use_") if value is True else f"{name} {value}" for name, value in sorted(said.items())]
    return ", ".join(parts)


def _short(module: str) -> str:
    """A module's name without its place: `model.layers.0.self_attn.q_proj` is `q_proj`."""
    return re.sub(r"^.*\.", "", module)
