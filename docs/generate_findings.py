"""Write docs/findings.md from the tables of the real study, which lie in docs/smollm2/.

`python docs/generate_findings.py` writes the page; with `--check` it fails where the page is not what would be written.
`make real` runs the study, puts its tables there and writes this page: no number in it is typed by hand.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import claims
import numpy as np
import polars as pl
from claims import FULL, Difference, Status, Sweep
from generated import write_or_check

from rankscope.records import Verdict
from rankscope.report.wording import amount_of, counted, duration, plain, rate, scaled, unit_of
from rankscope.spec import Study
from rankscope.study_file import load_study

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "smollm2"
PAGE = HERE / "findings.md"
_WORDS = {"gain": "gain", "gain_nats": "gain", "forgetting": "forgotten", "forgetting_nats": "forgotten, text"}
_KINDS = {"rewind": "update times", "truncate": "cut to rank", "intruders": "intruders times"}
_BALANCED = "Ranks 32 to 64 balance capacity and stability"
_SHAPE = "Recall is flat over ranks, reasoning peaks at 32 to 64"
_OF_THE_MIDDLE = (_BALANCED, _SHAPE)
_PREDICTORS = {
    "rank": "rank", "learning_rate": "learning rate", "update_norm": "size of the update",
    "intruder_dimensions": "intruder dimensions", "rho_16": "overlap with the base's 16 largest directions",
    "rho_128": "the same of 128", "cka": "likeness of representations (CKA)",
    "attention_divergence": "divergence of attention",
}  # fmt: skip


@dataclass(frozen=True)
class Findings:
    """What the page is made of."""

    study: Study
    tables: dict[str, pl.DataFrame]
    verdicts: tuple[Verdict, ...]
    loop: dict[str, float] | None

    @property
    def sweeps(self) -> dict[str, Sweep]:
        """By training set."""
        decide = self.study.decide.model_dump()
        return {
            verdict.training_set: claims.sweep_of(self.tables, verdict.training_set, decide)
            for verdict in self.verdicts
        }

    def of(self, table: str, training_set: str) -> pl.DataFrame:
        """The rows of a table that belong to one training set."""
        return self.tables[table].filter(pl.col("training_set") == training_set)


def read(folder: Path = FOLDER) -> Findings:
    """The study's tables, verdicts and settings as they are shipped."""
    files = sorted((folder / "tables").glob("*.csv"))
    tables = {path.stem: pl.read_csv(path, infer_schema_length=None) for path in files}
    verdicts = json.loads((folder / "verdicts.json").read_text(encoding="utf-8"))
    loop = folder / "loop.json"
    return Findings(
        study=load_study(folder / "study.yaml"),
        tables=tables,
        verdicts=tuple(Verdict.model_validate(verdict) for verdict in verdicts),
        loop=json.loads(loop.read_text(encoding="utf-8")) if loop.is_file() else None,
    )


def page(found: Findings | None = None) -> str:
    """The whole page."""
    found = found or read()
    parts = [
        _introduction(found),
        _summary(found),
        *_claims(found),
        _checks(found),
        _explained(found),
        _rates(found),
        _cost(found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(found: Findings) -> str:
    ranks = sorted({rank for sweep in found.sweeps.values() for rank in sweep.ranks.values()})
    runs = found.tables["runs"].filter(pl.col("train_seconds").is_not_null())
    text = f"""The paper that rankscope implements ([arXiv 2512.15634](https://arxiv.org/abs/2512.15634)) compares full
        fine-tuning with LoRA of ranks 8 to 128 on two models of 7 and 8 billion parameters, with one seed and no
        intervals. Here its question is put to SmolLM2-135M-Instruct, a model that two processor cores can train: full
        fine-tuning against LoRA of ranks {_listed(ranks)}, {counted(len(found.study.seeds), "seed")}, each arm at its
        own learning rate out of three. It is one small model, two training sets and few items; what follows holds for
        these and is no law. {counted(runs.height, "run")} were trained, {_chosen(found)} of them at the chosen rates.

        The [report](smollm2/report.html) is the page that the study wrote (open it from a disk: it needs no network),
        the [tables](https://github.com/rankscope/rankscope/tree/main/docs/smollm2/tables) hold every number of it, and
        the [study file](smollm2/study.yaml) is what was run. `make real` does all of it again and writes this page:
        its numbers are taken from those tables."""
    return "# The paper's claims on a small real model\n\n" + _wrapped(text)


def _chosen(found: Findings) -> int:
    return found.tables["runs"].filter(pl.col("is_chosen")).height


def _summary(found: Findings) -> str:
    lines = ["## The verdicts"]
    for verdict in found.verdicts:
        lines += ["", f"**Trained on {verdict.training_set}: {_decision(verdict)}.** {_because(verdict)}".rstrip()]
        lines += ["", _standings(found, verdict)]
    lines += ["", _wrapped(_margins(found))]
    return "\n".join(lines)


def _decision(verdict: Verdict) -> str:
    if verdict.decision == "undecided":
        safe = f"; safe meanwhile: {verdict.safe_arm}" if verdict.safe_arm else ""
        return f"undecided{safe}"
    return "do not fine-tune" if verdict.arm == "base" else f"{verdict.arm} at {rate(verdict.learning_rate)}"


def _because(verdict: Verdict) -> str:
    return " ".join(part for part in (verdict.because, verdict.needed) if part)


def _margins(found: Findings) -> str:
    decide = found.study.decide
    return f"""Gains and losses of accuracy are in points, losses on text in nats per token, with
        {100 * decide.confidence:g}% intervals over items and seeds. What the study calls equal: gains within
        {_amount(decide.margin, "gain")} ({_amount(decide.margin_nats, "gain_nats")} where loss is the score). What it
        accepts as forgotten: {_amount(decide.forgetting_budget, "forgetting")} on tasks that the base can do and
        {_amount(decide.forgetting_budget_nats, "forgetting_nats")} on text. Both were written down before anything was
        trained."""


def _standings(found: Findings, verdict: Verdict) -> str:
    rows = found.of("arms", verdict.training_set)
    measures = [name for name in _WORDS if name in rows["measure"]]
    header = ["arm", "rate", *(_WORDS[name] for name in measures)]
    lines = []
    for arm in rows["arm"].unique(maintain_order=True):
        mine = rows.filter(pl.col("arm") == arm)
        values = [_value(mine.filter(pl.col("measure") == name), name) for name in measures]
        lines.append([arm, rate(mine["learning_rate"][0]) if arm != "base" else "", *values])
    return _table(header, lines)


def _value(rows: pl.DataFrame, measure: str) -> str:
    if rows.is_empty():
        return ""
    row = rows.row(0, named=True)
    return amount_of(row["value"], row["low"], row["high"], measure)


def _claims(found: Findings) -> list[str]:
    sections = [_competitive, _balanced, _shape, _knowledge, _elsewhere, _growth, _layers]
    made = [section(found) for section in sections]
    header = ["claim", *found.sweeps]
    lines = [[title, *(statuses.get(name, "not asked") for name in found.sweeps)] for title, statuses, _ in made]
    intro = """## The claims, one by one

Supported and contradicted are said where an interval lies wholly on one side of the study's limits; everything else is
undecided. No correction is made for how many intervals are looked at."""
    texts = [f"### {title}\n\n{text}" for title, _, text in made]
    return [intro + "\n\n" + _table(header, lines), *texts]


Section = tuple[str, dict[str, Status], str]


def _competitive(found: Findings) -> Section:
    statuses = {name: claims.competitive(sweep) for name, sweep in found.sweeps.items()}
    parts = ["LoRA less full fine-tuning, in what was learned:", _against_full(found, "score")]
    for name, sweep in found.sweeps.items():
        ahead = claims.better_than_full(sweep)
        said = f"surely better than full fine-tuning: {_listed(ahead)}" if ahead else "no rank is surely better"
        parts.append(f"On {name} {said}. {_to_decide(statuses[name], found, name)}".rstrip())
    return "LoRA is competitive with full fine-tuning", statuses, "\n\n".join(parts)


def _against_full(found: Findings, what: str) -> str:
    rows = []
    for name, sweep in found.sweeps.items():
        measures = [sweep.score] if what == "score" else list(sweep.budgets)
        for measure in measures:
            values = [sweep.difference(arm, FULL, measure) for arm in sweep.ranks]
            rows += [
                [name, arm, _WORDS[measure], _shown(v, measure)] for arm, v in zip(sweep.ranks, values, strict=True)
            ]
    return _table(["trained on", "arm", "measure", "less full fine-tuning"], [row for row in rows if row[-1]])


def _balanced(found: Findings) -> Section:
    statuses = {name: claims.balanced(sweep) for name, sweep in found.sweeps.items()}
    text = """Supported would be: rank 32 or 64 surely learns more, or surely forgets less, than each rank that is
        lower or higher. Contradicted: one of those surely does as well within the margin and the budgets."""
    parts = [_wrapped(text)]
    for name, sweep in found.sweeps.items():
        best = max(sweep.ranks, key=lambda arm, sweep=sweep: _middle(sweep.of_arm(arm, sweep.score)))
        least = min(sweep.ranks, key=lambda arm, sweep=sweep: _middle(sweep.of_arm(arm, _watched(sweep))))
        estimates = f"by the estimates {best} learned most and {least} forgot least"
        parts.append(f"On {name} {estimates}. {_to_decide(statuses[name], found, name, _BALANCED)}".rstrip())
    return _BALANCED, statuses, "\n\n".join(parts)


def _watched(sweep: Sweep) -> str:
    return "forgetting" if sweep.of_arm(next(iter(sweep.ranks)), "forgetting") else "forgetting_nats"


def _shape(found: Findings) -> Section:
    statuses: dict[str, Status] = {}
    parts = ["For a recall set the claim is that no two ranks differ; for a reasoning set, that 32 or 64 learns most."]
    for name, sweep in found.sweeps.items():
        kind = _kind(found, name)
        statuses[name] = claims.flat(sweep) if kind == "recall" else claims.peaked(sweep)
        names = list(sweep.ranks)
        pairs = [(a, b) for index, a in enumerate(names) for b in names[index + 1 :]]
        known = {pair: item for pair in pairs if (item := sweep.difference(*pair, sweep.score)) is not None}
        if not known:
            continue
        (first, second), widest = max(known.items(), key=lambda item: abs(item[1].value))
        far = f"the ranks that lie furthest apart are {first} and {second}: {_shown(widest, sweep.score)}"
        title = _SHAPE if kind == "reasoning" else ""
        parts.append(f"{name} ({kind}): {far}. {_to_decide(statuses[name], found, name, title)}".rstrip())
    return _SHAPE, statuses, "\n\n".join(parts)


def _kind(found: Findings, training_set: str) -> str:
    tasks = found.study.evaluate
    names = [name for name, task in tasks.items() if training_set in (task.in_domain_for or ())]
    return "reasoning" if any(tasks[name].scoring == "loss" for name in names) else "recall"


def _knowledge(found: Findings) -> Section:
    statuses = {name: claims.keeps_knowledge(sweep) for name, sweep in found.sweeps.items()}
    text = """Supported where every LoRA arm surely stays within both budgets of forgetting, contradicted where one
        surely goes beyond one of them. The table has LoRA less full fine-tuning: below zero, LoRA forgot less."""
    return "LoRA keeps general knowledge", statuses, f"{_wrapped(text)}\n\n{_against_full(found, 'forgetting')}"


def _elsewhere(found: Findings) -> Section:
    statuses: dict[str, Status] = {}
    rows = []
    for name, sweep in found.sweeps.items():
        mine = found.of("comparisons", name)
        statuses[name] = claims.keeps_elsewhere(mine, sweep.ranks, found.study.decide.margin)
        whole = mine.filter((pl.col("relation") == "out_of_domain") & pl.col("category").is_null())
        for row in whole.iter_rows(named=True):
            measure = "gain" if row["unit"] == "accuracy" else "gain_nats"
            value = amount_of(row["value"], row["low"], row["high"], measure)
            rows.append([name, row["task"], row["arm"], value, str(row["num_items"])])
    text = """Tuned less base on tasks of another domain. Supported where no LoRA arm is worse than the base by more
        than the margin on any of them."""
    table = _table(["trained on", "task", "arm", "change", "items"], rows)
    return "LoRA keeps what it can do in other domains", statuses, f"{_wrapped(text)}\n\n{table}"


def _growth(found: Findings) -> Section:
    statuses: dict[str, Status] = {}
    parts = []
    for name, sweep in found.sweeps.items():
        norms = _norms(found, name, sweep)
        statuses[name] = claims.grows_with_rank(norms)
        rows = [
            [
                row["arm"],
                rate(row["learning_rate"]),
                plain(row["value"], 3),
                f"{plain(row['lowest'], 3)} to {plain(row['highest'], 3)}",
            ]
            for row in norms.iter_rows(named=True)
        ]
        parts.append(f"{name}:\n\n" + _table(["arm", "rate", "mean norm of a matrix's update", "over seeds"], rows))
        parts.append(_growth_said(norms))
    return (
        "The update's norm grows with the logarithm of the rank",
        statuses,
        "\n\n".join(part for part in parts if part),
    )


def _growth_said(norms: pl.DataFrame) -> str:
    if norms["learning_rate"].n_unique() != 1:
        text = "The arms chose different learning rates, and the norm follows the rate: ranks cannot be compared by it."
    elif norms.height < 3:
        text = "Two ranks cannot tell a logarithm from a line."
    else:
        ranks, values = norms["rank"].to_numpy().astype(float), norms["value"].to_numpy()
        logarithm, line = claims.fit(np.log2(ranks), values), claims.fit(ranks, values)
        text = f"""All at one learning rate. A straight line in the logarithm of the rank explains
            {100 * logarithm:.0f}% of the variance, one in the rank itself {100 * line:.0f}%."""
    return _wrapped(text)


def _norms(found: Findings, training_set: str, sweep: Sweep) -> pl.DataFrame:
    rates = sweep.arms.select("arm", "learning_rate").unique("arm")
    spectra = found.of("spectra_by_arm", training_set)
    rows = spectra.filter((pl.col("measure") == "update_norm") & pl.col("arm").is_in(list(sweep.ranks)))
    return rows.join(rates, on="arm").sort("rank")


def _layers(found: Findings) -> Section:
    statuses: dict[str, Status] = {}
    parts = ["The norm of the update relative to the matrix, mean over the matrices of the layers:"]
    for name in found.sweeps:
        thirds = claims.thirds(found.of("spectra_by_module", name))
        statuses[name] = claims.upper_layers_change_most(thirds)
        rows = [[arm, *(f"{value:.2%}" for value in values)] for arm, *values in thirds.iter_rows()]
        parts.append(f"{name}:\n\n" + _table(["arm", "lower third", "middle third", "upper third"], rows))
    return "Middle and upper layers change most", statuses, "\n\n".join(parts)


def _checks(found: Findings) -> str:
    rows = []
    ranks = {arm: rank for sweep in found.sweeps.values() for arm, rank in sweep.ranks.items()}
    for row in found.tables["derived"].iter_rows(named=True):
        if row["amount"] == (ranks.get(row["arm"]) if row["kind"] == "truncate" else 1):
            continue  # the run itself
        point = f"{_KINDS[row['kind']]} {row['amount']:g}"
        change = amount_of(row["change"], row["change_low"], row["change_high"], row["measure"])
        value = amount_of(row["value"], row["low"], row["high"], row["measure"])
        rows.append([row["training_set"], row["arm"], point, _WORDS[row["measure"]], value, change])
    if not rows:
        return ""
    text = """The paper looks at spectra and leaves it at that. rankscope changes the trained adapter, trains nothing,
        and scores it again on the same items: the update made smaller, cut to a lower rank, or freed of its intruder
        dimensions (directions among the tuned matrix's largest that the base does not have). If intruders were what is
        forgotten, the last kind would bring it back. These intervals rest on the arm's own seeds."""
    header = ["trained on", "arm", "made of it", "measure", "value", "change against the arm itself"]
    return f"## What the causal checks add\n\n{_wrapped(text)}\n\n{_table(header, rows)}"


def _explained(found: Findings) -> str:
    table = found.tables["explanations"].filter(pl.col("low").is_not_null())
    if table.is_empty():
        return ""
    rows = []
    for row in table.iter_rows(named=True):
        given = "" if row["given"] is None else f", at equal {_PREDICTORS[row['given']]}"
        limits = f"{plain(row['low'], 2)} to {plain(row['high'], 2)}"
        name = f"{_PREDICTORS[row['predictor']]}{given}"
        rows.append(
            [
                row["training_set"],
                _WORDS[row["target"]],
                name,
                plain(row["value"], 2),
                limits,
                str(row["num_candidates"]),
            ]
        )
    text = """Rank correlations over the arms at their chosen rates, each the mean of its seeds. So few arms give wide
        intervals; one that holds zero says nothing."""
    header = ["trained on", "what", "goes with", "correlation", "interval", "arms"]
    return f"## What goes with forgetting\n\n{_wrapped(text)}\n\n{_table(header, rows)}"


def _rates(found: Findings) -> str:
    rows = []
    chosen = found.tables["rates"].filter(pl.col("measure") == "loss_nats_per_token")
    for (name, arm), part in chosen.group_by("training_set", "arm", maintain_order=True):
        best = part.filter(pl.col("is_chosen"))
        edge = best["at_edge"][0] if best.height else None
        rows.append(
            [
                name,
                arm,
                _listed(rate(value) for value in part["learning_rate"]),
                rate(best["learning_rate"][0]) if best.height else "none",
                f"the {edge} tried" if edge else "",
            ]
        )
    text = """A sweep of ranks at one learning rate measures the rate. Here each arm has its own, chosen on validation
        items; where it is the highest tried, a higher one may learn more, and may forget more."""
    table = _table(["trained on", "arm", "tried", "chosen", "at the edge"], rows)
    return f"## The learning rates\n\n{_wrapped(text)}\n\n{table}"


def _cost(found: Findings) -> str:
    trained = float(found.tables["runs"]["train_seconds"].sum())
    items = found.tables["comparisons"].filter(pl.col("category").is_null()).unique("task", maintain_order=True)
    counts = _listed(f"{row['task']} {row['num_items']}" for row in items.iter_rows(named=True))
    text = f"""Training took {duration(trained)} in all, added up over runs, two of them at a time. To fit the study
        into about an hour and a half there, this was cut: examples to train on
        ({_listed(f"{name} {count}" for name, count in _examples(found).items())}), items ({counts}), seeds
        ({len(found.study.seeds)}), ranks of the second training set, and generated answers: GSM8K is judged by the loss
        on worked solutions, since a model of this size gets next to none of its answers right. On a GPU raise
        `max_examples` and `seeds` in `studies/smollm2.yaml` and run `make real` again; the verdicts above say how much
        it takes."""
    return f"## What was cut, and what it cost\n\n{_wrapped(text)}{_loop(found)}"


def _examples(found: Findings) -> dict[str, int]:
    rows = found.tables["data"].filter(pl.col("role") == "train")
    return dict(rows.select("name", "num_used").iter_rows())


def _loop(found: Findings) -> str:
    if found.loop is None:
        return ""
    loop = found.loop
    training = f"{loop['peer_train_seconds'] / loop['train_seconds']:.1f}"
    scoring = f"{loop['peer_score_seconds'] / loop['score_seconds']:.1f}"
    text = f"""**Against a loop over TRL, PEFT and lm-eval.** One run of this study ({loop["run"]}) was trained with
        TRL's SFTTrainer and PEFT and scored on all tasks with lm-eval's HFLM, on the same strings, with both cores of
        the same machine: {loop["peer_train_seconds"]:.0f} s and {loop["peer_score_seconds"]:.0f} s. rankscope,
        which has two pieces of work going, one on each core, took {loop["train_seconds"]:.0f} s and
        {loop["score_seconds"]:.0f} s a run: {training} and {scoring} times as fast. Multiplied out over the
        {loop["num_trained_steps"]:,.0f} steps and {loop["num_scored_models"]:.0f} scored models of this study, the loop
        would take {duration(loop["peer_multiplied_seconds"])}, and with every rate trained to its end, as without
        halving, {duration(loop["peer_multiplied_without_halving_seconds"])}; rankscope
        {duration(loop["multiplied_seconds"])}. Its whole study, with spectra, attention, representations, neurons,
        derived models and report, which the loop does not have, took {duration(loop["study_seconds"])} by its records,
        with whatever else the machine did meanwhile."""
    return "\n\n" + _wrapped(text)


def _to_decide(status: Status, found: Findings, training_set: str, title: str = "") -> str:
    if status != "undecided":
        return ""
    if not claims.is_learned(found.sweeps[training_set]):
        return "Undecided: no arm surely learned anything here, so that arms are alike says nothing of them."
    if title in _OF_THE_MIDDLE and not claims.is_bracketed(found.sweeps[training_set]):
        return "Undecided: ranks below 32 and above 64 were not both trained here, so nothing can show a peak between."
    widths = [item.high - item.low for item in _differences(found.sweeps[training_set])]
    if not widths:
        return "There is nothing to compare."
    sweep = found.sweeps[training_set]
    half, margin = float(np.median(widths)) / 2, sweep.margin
    times = (half / margin) ** 2
    unit = unit_of(sweep.score)
    limits = f"intervals between arms are ±{plain(scaled(half, sweep.score), 1 if unit == 'points' else 3)} {unit} wide"
    if times <= 1:
        return f"Undecided: {limits}, and the differences lie near the limit."
    return f"Undecided: {limits}; about {times:.1f} times the items and seeds together would bring them to the margin."


def _differences(sweep: Sweep) -> list[Difference]:
    names = [*sweep.ranks, FULL]
    pairs = [(a, b) for index, a in enumerate(names) for b in names[index + 1 :]]
    return [item for pair in pairs if (item := sweep.difference(*pair, sweep.score)) is not None]


def _middle(item: Difference | None) -> float:
    return float("nan") if item is None else item.value


def _shown(item: Difference | None, measure: str) -> str:
    return "" if item is None else amount_of(item.value, item.low, item.high, measure)


def _amount(value: float, measure: str) -> str:
    return f"{scaled(value, measure):g} {unit_of(measure)}"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


def _wrapped(text: str) -> str:
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return "\n\n".join(textwrap.fill(part, 120, break_on_hyphens=False, break_long_words=False) for part in paragraphs)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(), "docs/generate_findings.py", sys.argv[1:]))
