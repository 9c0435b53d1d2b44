"""What the verbs print: the plan, the status and the verdicts, as text for a person."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rankscope.cost.fit import Fitted
from rankscope.data.summaries import data_lines
from rankscope.decide.standing import BASE
from rankscope.display import duration
from rankscope.expansion import expand_arms
from rankscope.plan import UNREAD, Plan
from rankscope.records import ArmResult, DecideRecord, ForecastRecord, Interval, Verdict
from rankscope.spec import OptimizationFields, Study

_BILLION = 1e9
_WIDTH, _WIDEST = 100, 1000


class PatientConsole(Console):
    """A console whose work goes on where nobody reads on (`rankscope run study.yaml | head`).

    Rich's own ends the program there, and with it what trains; overriding this method is how it lets others do better.
    """

    def on_broken_pipe(self) -> None:
        """Print nothing from now on."""
        self.quiet = True


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
        *data_lines(plan.data),
        *_overlap_lines(plan),
        *_task_lines(study, plan),
        "",
        *_cost_lines(study, plan),
        *(f"warning: {text}" for text in plan.warnings),
    ]


def forecast_lines(records: Sequence[ForecastRecord], out: Path) -> list[str]:
    """What the gradients before training let one expect, named a forecast."""
    lines = []
    for record in records:
        where = f"{record.training_set}, base {record.base}"
        ranks = ", ".join(map(str, record.ranks_to_try))
        lines += [
            f"FORECAST for {where}, from {record.num_examples} examples before any training (nothing was measured):",
            f"  ranks worth trying: {ranks}",
            f"  to store: at most {record.bits_to_store:,.0f} bits in {record.num_scored_tokens:,} trained tokens; "
            f"a rank on all linear layers holds about {record.bits_per_rank:,.0f}, so rank {record.capacity_rank} or "
            "more holds them",
            f"  the gradient stands out of its noise in {record.signal_rank_median} directions of the median matrix, "
            f"{record.signal_rank_high} in one of ten; 90% of its energy lies in {record.energy_rank_90_median}",
        ]
    return [*lines, f"recorded in {out}; after the study its report holds the forecast against what was measured"]


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
        elif row["state"] == "interrupted":
            lines.append(f"  stopped  {row['run']}: goes on from its checkpoint")
        elif row["state"] == "diverged":
            lines.append(f"  diverged {row['run']}: this rate is too high for this arm")
    if state["state"] == "stopped":
        lines.append("  the same `rankscope run` goes on where it stopped")
    for failure in state["failures"]:
        if failure["run"] is None:
            lines.append(f"  FAILED   base {failure['base']}: {failure['stage']} {failure['name']}: {failure['error']}")
    return lines


def print_verdicts(console: Console, record: DecideRecord) -> None:
    """What `verdict_tables` says; a table is as wide as it is, since a number that is cut is none."""
    usual = console.width
    for part in verdict_tables(record):
        if isinstance(part, Table):
            console.width = _WIDEST
            console.width = max(usual, console.measure(part).maximum)
        console.print(part, markup=False, highlight=False)
        console.width = usual


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
    arms = [arm for one in record.verdicts for arm in one.arms if arm.arm != BASE]
    has_points = any(arm.gain is not None or arm.forgetting is not None for arm in arms)
    has_losses = any(arm.gain is None and arm.gain_nats is not None for arm in arms)
    points = ["gain and forgotten in points of accuracy, intervals over items and seeds"] if has_points else []
    losses = ["a gain with ± is in nats per token: its task has no right answers"] if has_losses else []
    return [*shown, "\n".join(points + losses)]


def _said(verdict: Verdict) -> str:
    """The decision in a line or two, and what the reader must know beside it."""
    return "\n".join([_decision(verdict), *(f"warning: {text}" for text in verdict.warnings), ""])


def _decision(verdict: Verdict) -> str:
    if verdict.arm == BASE:
        return "\n".join(text for text in ("-> base: do not fine-tune", verdict.because) if text)
    if verdict.decision == "recommended" and verdict.arm is not None:
        rate = "" if verdict.learning_rate is None else f" at rate {verdict.learning_rate:g}"
        lost = [text for arm in verdict.arms if arm.arm == verdict.arm for text in arm.lost_seeds]
        warning = f" (on the seeds that gave a number: {', '.join(lost)})" if lost else ""
        return f"-> {verdict.arm}{rate}{warning}"
    return "\n".join(text for text in ("-> undecided", verdict.because, verdict.needed) if text)


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
    lines = []
    for base in plan.bases.values():
        known = "its shape is known, its files were not read" if base.fingerprint == UNREAD else base.fingerprint[:12]
        bits = base.opening.quantization_config
        held = f", in {bits.label}" if bits else ""
        lines.append(f"base {base.name}: {base.source} ({known}){held}")
    return lines


def _arm_lines(study: Study) -> list[str]:
    """Each arm with the fields in which it is not like all others, so that a confound is seen before it is run."""
    fields: list[dict[str, Any]] = []
    methods: list[str] = []
    for settings, arm in expand_arms(study):
        overrides = arm.model_dump(exclude_none=True, include=set(OptimizationFields.model_fields))
        rates = ", ".join(f"{rate:g}" for rate in arm.learning_rate)
        fields.append({"arm": settings.label, "rates": rates} | overrides | settings.options)
        methods.append(settings.method)
    keys = list(dict.fromkeys(key for row in fields for key in row))
    values = {key: [str(row[key]) for row in fields if key in row] for key in keys}
    # What one arm of a method says and another leaves out is a difference, too; other methods may not have the field.
    told_by = {key: [method for row, method in zip(fields, methods, strict=True) if key in row] for key in keys}
    is_left_out = {key: any(methods.count(name) > told_by[key].count(name) for name in told_by[key]) for key in keys}
    shown = [key for key in keys if key == "arm" or len(set(values[key])) > 1 or is_left_out[key]]
    widths = {key: max(len(key), *map(len, values[key])) for key in shown}
    lines = ["  " + "  ".join(key.ljust(widths[key]) for key in shown)]
    lines += ["  " + "  ".join(str(row.get(key, "-")).ljust(widths[key]) for key in shown).rstrip() for row in fields]
    shared = study.optimization.model_dump(exclude_none=True, by_alias=True)
    same = {key: values[key][0] for key in keys if key not in shown} | shared
    return [*lines, *_wrapped("  the same for all that have it: ", [f"{key} {value}" for key, value in same.items()])]


def _wrapped(head: str, parts: Sequence[str]) -> list[str]:
    """Parts after a head, with commas between them, in lines of a width that can be read; none is broken."""
    lines = [head]
    for number, part in enumerate(parts, start=1):
        text = part if number == len(parts) else f"{part}, "
        if len(f"{lines[-1]}{text}".rstrip()) > _WIDTH:
            lines.append("    ")
        lines[-1] += text
    return [line.rstrip() for line in lines]


def _overlap_lines(plan: Plan) -> list[str]:
    if not plan.overlaps:
        return ["  test items in the training data: not looked for, as the data were not read"]
    found = [overlap for overlap in plan.overlaps if overlap.warning]
    checked = f"{len(plan.overlaps)} pairs of training or validation rows and tasks"
    if not found:
        return [f"  test items in the training data: none ({checked} compared, whole questions and runs of 13 words)"]
    return [f"  test items in the training data: in {len(found)} of {checked}; the warnings below say how many"]


def fitted_lines(budget: str, fitted: Fitted | None) -> list[str]:
    """What to leave out to fit a budget, in the words that `--set` takes."""
    if fitted is None:
        return []
    if not fitted.cuts:
        return [f"fits {budget} as it is"]
    lines = [f"to fit {budget}, leave out (in this order, each with the time that is left):"]
    for cut in fitted.cuts:
        lines += [f"  --set '{cut.override}'", f"      {cut.why}; {duration(cut.seconds)}"]
    return [*lines, f"then it takes about {duration(fitted.estimate.seconds or 0.0)}"]


def _task_lines(study: Study, plan: Plan) -> list[str]:
    """Each task with what it asks for, how it is scored, and its role towards the training sets."""
    tasks = next(iter(plan.tasks.values()))
    rows = [("task", "items", "kind", "scored by", "role")]
    for name, task in tasks.items():
        domains = ", ".join(key for key in study.train if plan.relations[key][name] == "in_domain")
        role = f"in domain for {domains}" if domains else plan.relations[next(iter(study.train))][name]
        rows.append((name, str(task.num_items), task.kind or "-", task.scoring, role.replace("_", " ")))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return ["  " + "  ".join(cells).rstrip() for cells in padded]


def _cost_lines(study: Study, plan: Plan) -> list[str]:
    cost, layout = plan.estimate, plan.layout
    first, later = plan.num_runs
    guess = "about " if cost.is_estimate else ""
    lines = [
        f"runs: {first} in the search for rates{_search_words(plan)}, then {later} more at the chosen ones: "
        f"{first + later} in all",
        f"tokens: {guess}{cost.trained_tokens:,} trained, {guess}{cost.scored_tokens:,} scored; "
        f"{cost.arithmetic / _BILLION:,.0f} billion operations",
        *_time_lines(plan),
        *_memory_lines(plan),
        f"disk: at most {amount(cost.disk_bytes)} ("
        + ", ".join(f"{name} {amount(size)}" for name, size in cost.disk_bytes_by_use.items() if size)
        + f") with keep: {study.keep}",
    ]
    for training_set, difference in plan.smallest_difference.items():
        lines.append(f"smallest difference that this study can decide on {training_set}: {difference:.3f}")
    if layout.device != "cpu":
        lines.append(f"times on {cost.device} are taken from its data sheet; nothing was measured on one")
    return lines


def _search_words(plan: Plan) -> str:
    """How the search goes on, where it does not train its grids and no more."""
    halved = [run for run in plan.runs if plan.round_steps(run)]
    words = []
    if halved:
        steps = ", ".join(map(str, plan.round_steps(halved[0])))
        words.append(f"the worse half of them only to steps {steps} of {halved[0].num_steps}")
    if any(plan.is_beyond(run) for run in plan.runs):
        words.append("more where the best rate lies at the edge")
    return f" ({'; '.join(words)})" if words else ""


def forecast_line(plan: Plan) -> str:
    """How long a study will take, in one line."""
    return _time_lines(plan)[0]


def _time_lines(plan: Plan) -> list[str]:
    """How long it takes, and of what that is made."""
    cost, layout = plan.estimate, plan.layout
    if cost.seconds is None:
        return [f"time: unknown on {layout.device}"]
    threads = f" x {layout.threads_per_worker} threads" if layout.device == "cpu" else ""
    number = layout.num_workers * layout.shard
    parts = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in cost.seconds_by_stage.items() if seconds)
    return [
        f"time: about {duration(cost.seconds)} on {number} x {cost.device}{threads}{layout.pack_words} (a forecast)",
        f"  of one of them: {parts}",
    ]


def _memory_lines(plan: Plan) -> list[str]:
    """The most that one process or device holds, and whether it has that much."""
    cost = plan.estimate
    if cost.memory_bytes is None:
        return []
    has = "" if cost.device_memory_bytes is None else f" of {amount(cost.device_memory_bytes)}"
    holder = "process" if cost.device_memory_bytes is None else "device"
    parted = f", models divided among {plan.layout.shard}" if plan.layout.shard > 1 else ""
    parts = ", ".join(f"{name} {amount(size)}" for name, size in cost.memory_bytes_by_arm.items())
    lines = [f"memory: at most {amount(cost.memory_bytes)}{has} in one {holder}{parted} ({parts})"]
    if cost.host_memory_bytes is not None:
        number, one = plan.layout.num_workers, cost.host_memory_bytes
        together = f", {amount(number * one)} where all {number} are on one machine" if number > 1 else ""
        lines.append(f"memory of the GPUs' machine: at most {amount(one)} for one worker{together}")
    large = [name for name, size in cost.memory_bytes_by_arm.items() if size > (cost.device_memory_bytes or size)]
    if large:
        lines.append(f"warning: does not fit into one {cost.device}: {', '.join(large)}")
    return lines


def amount(num_bytes: int) -> str:
    """Bytes for a person: `690 MB`, `16.1 GB`."""
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes / 1e6:,.0f} MB"
