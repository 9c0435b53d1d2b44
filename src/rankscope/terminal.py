"""What the verbs print: the plan, the status and the verdicts, as text for a person."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.table import Table

from rankscope.display import duration
from rankscope.plan import DataSummary, Plan
from rankscope.records import ArmResult, DecideRecord, Interval, Verdict
from rankscope.runs import expand_arms
from rankscope.spec import Study

_BILLION = 1e9


def plan_lines(study: Study, plan: Plan) -> list[str]:
    """The plan for a person: arms, data as understood, runs, cost, warnings."""
    return [
        f"study {plan.study}",
        *_base_lines(plan),
        "",
        "arms (the fields on which they differ)",
        *_arm_lines(study),
        "",
        "data, as understood",
        *(line for summary in plan.data for line in _data_lines(summary)),
        "",
        *_cost_lines(study, plan),
        *(f"warning: {text}" for text in plan.warnings),
    ]


def status_lines(state: dict[str, Any]) -> list[str]:
    """The status for a person: what runs, what failed and why, how much is left."""
    counts = ", ".join(f"{number} {name}" for name, number in sorted(state["counts"].items()))
    lines = [f"{state['study']}: {state['state']} ({counts})"]
    for row in state["in_flight"]:
        loss = f", loss {row['loss']:.3f}" if row["loss"] is not None else ""
        lines.append(f"  running  {row['run']}: {row['stage']} {row['done']}/{row['total']}{loss}")
    for row in state["runs"]:
        if row["state"] == "failed":
            lines.append(f"  FAILED   {row['run']}: {row['stage']}: {row['error']}")
        elif row["state"] == "diverged":
            lines.append(f"  diverged {row['run']}: this rate is too high for this arm")
    for failure in state["failures"]:
        if failure["run"] is None:
            lines.append(f"  FAILED   base {failure['base']}: {failure['stage']} {failure['name']}: {failure['error']}")
    return lines


def verdict_tables(record: DecideRecord) -> list[Table | str]:
    """For each verdict a table with one line an arm, and what was decided; the recommended arm is marked."""
    shown: list[Table | str] = []
    for verdict in record.verdicts:
        title = f"trained on {verdict.training_set}" + (f", base {verdict.base}" if _has_bases(record) else "")
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for heading in ("arm", "rate", "gain", "forgotten", "in nats", "eligible"):
            table.add_column(heading, justify="left" if heading in {"arm", "eligible"} else "right", no_wrap=True)
        for arm in verdict.arms:
            is_chosen = verdict.decision == "recommended" and arm.arm == verdict.arm
            table.add_row(arm.arm, *_arm_cells(arm), style="bold" if is_chosen else None)
        shown += [table, _said(verdict)]
    return [*shown, "gain and forgotten in points of accuracy, intervals over items and seeds"]


def _said(verdict: Verdict) -> str:
    if verdict.decision == "recommended" and verdict.arm is not None:
        rate = "" if verdict.learning_rate is None else f" at rate {verdict.learning_rate:g}"
        lost = [text for arm in verdict.arms if arm.arm == verdict.arm for text in arm.lost_seeds]
        warning = f" (on the seeds that gave a number: {', '.join(lost)})" if lost else ""
        return f"-> {verdict.arm}{rate}{warning}\n"
    return f"-> undecided. {verdict.needed or ''}\n"


def _has_bases(record: DecideRecord) -> bool:
    return len({verdict.base for verdict in record.verdicts}) > 1


def _arm_cells(arm: ArmResult) -> tuple[str, str, str, str, str]:
    rate = "" if arm.learning_rate is None else f"{arm.learning_rate:g}"
    gain = _points(arm.gain) if arm.gain is not None else _nats(arm.gain_nats)
    return rate, gain, _points(arm.forgetting), _nats(arm.forgetting_nats), arm.eligible


def _points(interval: Interval | None) -> str:
    """An interval of fractions in percentage points."""
    if interval is None:
        return ""
    text = f"{100 * interval.value:z.1f}"
    if interval.low is None or interval.high is None:
        return text
    return f"{text} [{100 * interval.low:z.1f}, {100 * interval.high:z.1f}]"


def _nats(interval: Interval | None) -> str:
    """The same in nats per token, with the wider side alone: a line of a terminal is 80 characters."""
    if interval is None:
        return ""
    text = f"{interval.value:z.2f}"
    if interval.low is None or interval.high is None:
        return text
    return f"{text}±{max(interval.high - interval.value, interval.value - interval.low):.2f}"


def _base_lines(plan: Plan) -> list[str]:
    return [f"base {base.name}: {base.source} ({base.fingerprint[:12]})" for base in plan.bases.values()]


def _arm_lines(study: Study) -> list[str]:
    """Each arm with the fields in which it is not like all others, so that a confound is seen before it is run."""
    fields: list[dict[str, Any]] = []
    for settings, arm in expand_arms(study):
        overrides = arm.model_dump(exclude_none=True, exclude={"method", "name", "rank", "learning_rate"})
        rates = ", ".join(f"{rate:g}" for rate in arm.learning_rate)
        fields.append({"arm": settings.label, "rates": rates} | overrides | settings.options)
    keys = list(dict.fromkeys(key for row in fields for key in row))
    values = {key: [str(row[key]) for row in fields if key in row] for key in keys}
    shown = [key for key in keys if key == "arm" or len(set(values[key])) > 1]
    widths = {key: max(len(key), *map(len, values[key])) for key in shown}
    lines = ["  " + "  ".join(key.ljust(widths[key]) for key in shown)]
    lines += ["  " + "  ".join(str(row.get(key, "-")).ljust(widths[key]) for key in shown).rstrip() for row in fields]
    shared = study.optimization.model_dump(exclude_none=True, by_alias=True)
    same = {key: values[key][0] for key in keys if key not in shown} | shared
    return [*lines, "  the same for all that have it: " + ", ".join(f"{key} {value}" for key, value in same.items())]


def _data_lines(summary: DataSummary) -> list[str]:
    counts = [f"{summary.num_used} of {summary.num_rows} rows as {summary.form}", f"{summary.num_tokens} tokens"]
    if summary.num_truncated:
        counts.append(f"{summary.num_truncated} cut")
    if summary.num_duplicates:
        counts.append(f"{summary.num_duplicates} duplicates")
    lines = [f"  {summary.role} {summary.name} ({summary.source}): {', '.join(counts)}"]
    if summary.role == "train":
        lines.append(f"    one example, what is trained on in >>> <<<: {_marked(summary)}")
    return lines


def _marked(summary: DataSummary) -> str:
    return repr(f"{summary.sample_prompt}>>>{summary.sample_trained}<<<")


def _cost_lines(study: Study, plan: Plan) -> list[str]:
    cost = plan.estimate
    per_seed = Counter(run.seed for run in plan.runs)[study.seeds[0]]
    first = per_seed * len(plan.search_seeds)
    arms = len(plan.arms) * len(study.train) * len(study.model)
    later = arms * (len(study.seeds) - len(plan.search_seeds))
    time = "unknown" if cost.seconds is None else f"about {duration(cost.seconds)} (a rough forecast)"
    lines = [
        f"runs: {first} in the search for rates, then {later} more at the chosen ones",
        f"tokens: {cost.trained_tokens:,} trained, {cost.scored_tokens:,} scored; "
        f"{cost.arithmetic / _BILLION:,.0f} billion operations",
        f"time: {time} on {plan.layout.device}, {plan.layout.num_workers} processes x "
        f"{plan.layout.threads_per_worker} threads",
        f"disk: {cost.disk_bytes / 1e6:,.0f} MB of weights",
    ]
    for training_set, difference in plan.smallest_difference.items():
        lines.append(f"smallest difference that this study can decide on {training_set}: {difference:.3f}")
    return lines
